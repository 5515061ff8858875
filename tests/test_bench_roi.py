import dataclasses
import math

import pytest
import torch

from dcn_tvm import ops
from dcn_tvm.bench import Plan, bench_of, roi
from dcn_tvm.bench.contender import Setting, example_of
from dcn_tvm.bench.roi import boxes_of, problem_of
from dcn_tvm.bench.runner import run
from dcn_tvm.suites import SUITES, Case

ROI_OPS = [name for name in SUITES if "roi" in name]
TINY_MAP = {"height": 5, "width": 6, "boxes": 3}
# Unless ceilings, memory or a sweep are asked for; who is not the op has no error.
OPTIONAL = {"floor_us", "bound", "roofline", "peak_mib", "faults", "sweep", "error"}
QUICK = Plan(modes=("forward",), seconds=0.01, min_rounds=1, memory=False)


def tiny(case: Case) -> Case:
    """Return the case with so few channels that its kernels are soon compiled, on a tiny map."""
    problem = problem_of(case)
    channels = 2 * problem.classes * math.prod(problem.groups)
    return bench_of(case.op).shrink(case).resized(channels=channels)


def test_every_op_has_a_suite_and_a_benchmark() -> None:
    assert list(SUITES) == list(ops.registry())
    assert all(bench_of(op).contenders for op in SUITES)


def free_sizes(op: str, **options: object) -> list[tuple[int, ...]]:
    names = ("channels", "height", "width", "boxes", "stride")
    return [
        tuple(case.integer(name) for name in names)
        for case in SUITES[op]
        if options.items() <= case.sizes.items()
    ]


def test_the_suites_are_the_agreed_ones() -> None:
    detectors = [(c, 38, 63, boxes, 16) for c in (256, 1024) for boxes in (300, 2000)]
    detectors += [(256, 200, 336, 512, 4)]
    some = [detectors[0], detectors[-1]]
    maps = [(classes * 49, 38, 63, 300, 16) for classes in (21, 81)]
    assert free_sizes("roi_pool", mode="max") == detectors
    assert free_sizes("roi_pool", mode="avg") == detectors[:1]
    assert free_sizes("roi_align", sampling_ratio=2) == detectors
    assert free_sizes("roi_align", sampling_ratio=0) == some
    assert free_sizes("deform_roi_pool", sampling="paper") == detectors
    assert free_sizes("deform_roi_pool", sampling="grid", sampling_ratio=2) == some
    for convention in ("torchvision", "rfcn"):
        assert free_sizes("ps_roi_pool", convention=convention) == maps
    assert free_sizes("ps_roi_align", sampling_ratio=2) == maps
    grid = {"sampling": "grid", "sample_per_part": 4}
    assert free_sizes("deform_ps_roi_pool", offset_classes=1, **grid) == maps
    assert free_sizes("deform_ps_roi_pool", offset_classes=21, **grid) == maps[:1]
    assert free_sizes("deform_ps_roi_pool", sampling="paper") == maps[:1]


@pytest.mark.parametrize("op", ROI_OPS)
def test_every_case_makes_a_legal_problem_and_a_label_of_its_own(op: str) -> None:
    assert len({case.label for case in SUITES[op]}) == len(SUITES[op])
    for case in SUITES[op]:
        assert problem_of(case).output_size == (7, 7)
        assert case.pair("output_size") == (7, 7)


def test_every_dtype_and_format_gets_the_same_numbers() -> None:
    case = tiny(SUITES["deform_roi_pool"][0])
    plain = example_of(case)
    half = example_of(case, Setting(dtype="bfloat16", memory_format="channels_last"))
    (input, boxes, offset), (half_input, half_boxes, half_offset) = plain.tensors, half.tensors
    assert boxes is not None
    assert half_boxes is not None
    assert torch.equal(boxes, half_boxes)
    assert torch.equal(boxes, boxes_of(case))
    for tensor, rounded in ((input, half_input), (offset, half_offset)):
        assert tensor is not None
        assert rounded is not None
        assert torch.equal(tensor.bfloat16(), rounded)
    for activation in (half_input, half.make_grad()):
        assert activation is not None
        assert activation.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", ROI_OPS)
def test_contenders_agree_and_their_rows_are_complete(op: str) -> None:
    case = tiny(SUITES[op][0])
    modes = ("forward", "forward+backward")
    plan = dataclasses.replace(QUICK, modes=modes, dtypes=dict.fromkeys(modes, ("float32",)))
    rows, rejections = run([case], plan)
    assert rejections == []
    assert {row.mode for row in rows} == set(modes)
    for row in rows:
        values = dataclasses.asdict(row)
        unmeasured = {name for name, value in values.items() if value is None or value == ""}
        assert unmeasured <= OPTIONAL
        assert (row.error is None) == (row.role in ("baseline", "floor"))
        assert min(row.median_us, row.gbyte_per_s, row.ratio or 0) > 0
        assert (row.gflop_per_s > 0) == (row.provider != "copy")
        assert (row.op, row.problem) == (op, case.label)
    bench, found = bench_of(op), {(row.provider, row.mode, row.variant) for row in rows}
    wanted = {("copy", mode, "copy") for mode in modes}
    wanted |= {("dcn_tvm", mode, f"dcn_tvm{form}") for mode in modes for form in ("", " cl")}
    assert wanted <= found
    assert {name for name, _, _ in found} == {c.name for c in bench.present(case)}


def providers(op: str, **options: object) -> set[str]:
    case = next(case for case in SUITES[op] if options.items() <= case.sizes.items())
    return {c.name for c in bench_of(op).contenders if c.serves(case)}


def test_every_peer_serves_what_it_has() -> None:
    ours, graphs = {"copy", "dcn_tvm"}, {"onnxruntime", "openvino"}
    assert providers("roi_pool", mode="max") == ours | graphs | {"torchvision"}
    assert providers("roi_pool", mode="avg") == ours
    assert providers("roi_align") == ours | graphs | {"torchvision", "mmcv"}
    assert providers("ps_roi_align") == ours | {"torchvision"}
    assert providers("ps_roi_pool", convention="torchvision") == ours | {"torchvision"}
    assert providers("ps_roi_pool", convention="rfcn") == ours | {"openvino"}
    assert providers("deform_roi_pool", sampling="paper") == ours | {"plain"}
    assert providers("deform_roi_pool", sampling="grid") == ours | {"plain", "mmcv"}
    assert providers("deform_ps_roi_pool", sampling="grid") == ours | {"plain", "openvino"}
    assert providers("deform_ps_roi_pool", sampling="paper") == ours | {"plain"}


def test_openvino_agrees_on_its_convention() -> None:
    case = tiny(next(c for c in SUITES["ps_roi_pool"] if c.text("convention") == "rfcn"))
    rows, rejections = run([case], QUICK)
    assert rejections == []
    providers = {row.provider for row in rows}
    assert "torchvision" not in providers
    if bench_of("ps_roi_pool").contender("openvino").absent_because() is None:
        assert "openvino" in providers


def test_the_bytes_of_two_cases_by_hand() -> None:
    forward, both = Setting("forward"), Setting("forward+backward")
    pool = SUITES["roi_pool"][0].resized(channels=4, **TINY_MAP)
    moved = bench_of("roi_pool").bytes_moved
    input, output, boxes = 4 * 5 * 6, 3 * 4 * 49, 3 * 5
    assert moved(pool, forward) == 4 * (input + output + boxes)
    assert moved(pool, both) == 4 * (2 * input + 2 * output + 2 * boxes)
    deform = SUITES["deform_ps_roi_pool"][0].resized(channels=2 * 49, **TINY_MAP)
    moved = bench_of("deform_ps_roi_pool").bytes_moved
    input, output, offset = 2 * 49 * 5 * 6, 3 * 2 * 49, 3 * 2 * 49
    assert moved(deform, forward) == 4 * (input + output + offset + boxes)
    # The gradient of the offset reads the map again.
    assert moved(deform, both) == 4 * (3 * input + 2 * output + 3 * offset + 2 * boxes)
    half = Setting("forward", "bfloat16")
    assert moved(deform, half) == 2 * (input + output + offset) + 4 * boxes
    (target,) = bench_of("deform_ps_roi_pool").contender("copy").prepare(deform, forward)()
    assert 2 * target.nbytes == pytest.approx(moved(deform, forward), abs=8)


def test_flops_are_the_pixels_of_a_mean_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.tensor([[0, 0, 0, 7 * 16 * 2, 7 * 16 * 3], [0, 0, 0, 1, 7 * 16 * 4.0]])
    monkeypatch.setattr(roi, "boxes_of", lambda case: boxes)
    for op, passes in (("roi_pool", 2), ("deform_roi_pool", 3)):
        bench, case = bench_of(op), SUITES[op][0].resized(channels=4, boxes=2)
        forward = 2 * (2 * 4 * 49) * (2 * 3 + 1 * 4) // 2
        assert bench.flops(case, "forward") == forward
        assert bench.flops(case, "forward+backward") == passes * forward
        copy = bench.work(bench.contender("copy"), case, Setting("forward"))
        assert copy == (0, bench.bytes_moved(case, Setting("forward"))), "it computes nothing"


@pytest.mark.parametrize("op", ROI_OPS)
def test_the_oracle_sees_the_same_kernels_on_less(op: str) -> None:
    bench = bench_of(op)
    for case in SUITES[op]:
        judged = bench.judged(case)
        assert problem_of(judged) == problem_of(bench.shrink(case)) == problem_of(case)
        assert (judged.integer("boxes"), judged.integer("height")) == (4, 24)
        assert bench.judged(bench.shrink(case)) == bench.shrink(case)
