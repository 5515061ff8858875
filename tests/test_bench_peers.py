"""Every peer computes the op in every setting that it names, on every kind of call it serves."""

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable

import pytest
import torch
import torchvision.ops
from torch import Tensor

from dcn_tvm import examples, reference
from dcn_tvm.agreement import TOLERANCES, relative_error
from dcn_tvm.bench import bench_of, mmcv_peer, onnx_peer
from dcn_tvm.bench.contender import Contender, Setting, settings
from dcn_tvm.problem import DTYPES
from dcn_tvm.suites import SUITES, Case

PLAIN = SUITES["deform_conv2d"][4].resized(in_channels=12, out_channels=8, height=9, width=11)
CONVOLUTIONS = {
    "v1": PLAIN,
    "v2": PLAIN.resized(modulated=True, offset_groups=2),
    "no bias": PLAIN.resized(bias=False, batch=2),
    "window": PLAIN.resized(
        kernel_size=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2), modulated=True
    ),
    "groups": PLAIN.resized(groups=2, offset_groups=3, bias=False, modulated=True),
    "far": SUITES["deform_conv2d"][6].resized(in_channels=8, out_channels=4, height=41, width=37),
}
ALIGN = SUITES["roi_align"][0].resized(channels=3)
RECTANGLE = {"channels": 3, "output_size": (3, 5)}
POOLS = {
    "max": SUITES["roi_pool"][0].resized(**RECTANGLE),
    "align": ALIGN,
    "align, moved half a pixel": ALIGN.resized(**RECTANGLE, aligned=True),
    "align, adaptive": ALIGN.resized(**RECTANGLE, sampling_ratio=0),
    "align, adaptive and moved": ALIGN.resized(sampling_ratio=0, aligned=True, stride=4),
    "ps": SUITES["ps_roi_pool"][0].resized(channels=2 * 49),
    "ps, rfcn": SUITES["ps_roi_pool"][2].resized(channels=2 * 49),
    "ps align": SUITES["ps_roi_align"][0].resized(channels=2 * 49),
    "deform ps": SUITES["deform_ps_roi_pool"][0].resized(channels=2 * 49),
    "deform ps, classes": SUITES["deform_ps_roi_pool"][2].resized(channels=21 * 49),
}
CASES = {**CONVOLUTIONS, **POOLS}
BACKWARD = Setting("forward+backward")


def judged(case: Case) -> Case:
    return case.resized(**examples.judged_sizes(case.problem(), case.free_sizes))


def assert_agrees(contender: Contender, case: Case, setting: Setting) -> None:
    oracle = bench_of(case.op).oracle
    results, wanted = (prepare(case, setting)() for prepare in (contender.prepare, oracle))
    dtype = getattr(torch, setting.dtype)
    assert all(result.dtype == dtype for result in results), setting
    assert relative_error(results, wanted) <= TOLERANCES[setting.dtype], setting


def served() -> list[tuple[str, str]]:
    """Return every peer with every kind of call that it serves."""
    return [
        (contender.name, kind)
        for kind, case in CASES.items()
        for contender in bench_of(case.op).contenders
        if contender.role == "peer" and contender.serves(case)
    ]


@pytest.mark.parametrize(("name", "kind"), served())
def test_peers_compute_the_op(name: str, kind: str) -> None:
    case = judged(CASES[kind])
    contender = bench_of(case.op).contender(name)
    if reason := contender.absent_because():
        pytest.skip(reason)
    for setting in contender.settings:
        if setting.mode != "network":
            assert_agrees(contender, case, setting)


def test_who_serves_what() -> None:
    found = {kind: {name for name, other in served() if other == kind} for kind in CASES}
    everyone = {"torchvision", "onnxruntime", "openvino", "mmcv"}
    aligns = dict.fromkeys((kind for kind in POOLS if kind.startswith("align")), everyone)
    assert found == {
        **dict.fromkeys(CONVOLUTIONS, everyone),
        **aligns,
        "max": {"torchvision", "onnxruntime", "openvino"},
        "ps": {"torchvision"},
        "ps, rfcn": {"openvino"},
        "ps align": {"torchvision"},
        "deform ps": {"openvino"},
        "deform ps, classes": {"openvino"},
    }
    msra = PLAIN.resized(boundary="msra")
    assert {c.name for c in bench_of("deform_conv2d").contenders if c.serves(msra)} == {
        *("conv2d", "dcn_tvm", "gemm", "torch ops")
    }
    grouped = {c.name for c in bench_of("deform_conv2d").contenders if c.serves(CASES["groups"])}
    assert "gemm" not in grouped  # it is one product, not one for each group


def test_settings_are_those_that_can_be_asked_for() -> None:
    everything = {*settings(dtypes=DTYPES)}
    for op in SUITES:
        for contender in bench_of(op).contenders:
            assert set(contender.settings) <= everything
            assert len(set(contender.settings)) == len(contender.settings)
        modes = {"forward", "forward+backward", *(("network",) if op == "deform_conv2d" else ())}
        ours, baseline = bench_of(op).contender("dcn_tvm"), bench_of(op).contenders[0]
        assert set(ours.settings) == {s for s in everything if s.mode in modes}
        assert {(s.mode, s.dtype) for s in baseline.settings} == {
            (mode, dtype) for mode in modes for dtype in DTYPES
        }


@pytest.mark.parametrize("op", ["deform_conv2d", "deform_roi_pool"])
def test_the_oracle_is_as_wide_as_sums_are(op: str) -> None:
    case = judged(PLAIN if op == "deform_conv2d" else SUITES[op][0].resized(channels=2))
    for dtype in DTYPES:
        wide = torch.float64 if dtype == "float64" else torch.float32
        results = bench_of(op).oracle(case, dataclasses.replace(BACKWARD, dtype=dtype))()
        assert {result.dtype for result in results} == {wide}


def test_what_is_no_peer_in_half_types_says_the_truth() -> None:
    """In float16 torchvision samples elsewhere on a large map; it would be refused in every run."""
    case = judged(CASES["far"])
    setting = Setting(dtype="float16")
    torchvision_, oracle = (
        bench_of(case.op).contender("torchvision").prepare,
        bench_of(case.op).oracle,
    )
    error = relative_error(torchvision_(case, setting)(), oracle(case, setting)())
    assert error > TOLERANCES["float16"]


def test_bytes_and_flops_of_groups_masks_and_biases() -> None:
    case = CASES["groups"]  # 12 channels in 2 groups, 8 out, 9 taps, 3 offset groups, no bias
    pixels = 9 * 11
    bench = bench_of("deform_conv2d")
    assert bench.flops(case, "forward") == 2 * pixels * 8 * 6 * 9
    moved = 12 * pixels + 3 * 9 * 3 * pixels + 8 * 6 * 9 + 8 * pixels
    assert bench.bytes_moved(case, Setting()) == 4 * moved
    assert bench.bytes_moved(case.resized(bias=True), Setting()) == 4 * (moved + 8)


def test_a_model_leaves_out_what_there_is_not() -> None:
    onnx = pytest.importorskip("onnx")
    tensor = torch.zeros(1, dtype=torch.float64)
    inputs = {"X": tensor, "W": tensor, "offset": tensor, "B": None, "mask": tensor}
    node = onnx_peer.Node("DeformConv", 19, {"group": 1}, inputs, frozenset(("W", "B")))
    graph = onnx.load_from_string(onnx_peer.model(node)).graph
    assert list(graph.node[0].input) == ["X", "W", "offset", "", "mask"]
    assert [value.name for value in graph.input] == ["X", "offset", "mask"]
    assert [value.name for value in graph.initializer] == ["W"]
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE


# The `forward` of mmcv 2.2.0's autograd functions, without `ctx`: `apply` takes positions only, and
# gives each its meaning by its place.
def deform_conv2d(
    input, offset, weight, stride=1, padding=0, dilation=1, groups=1, deform_groups=1,
    bias=False, im2col_step=32, /,
) -> Tensor:  # fmt: skip
    assert bias is False
    assert groups == input.shape[1] // weight.shape[1]
    assert deform_groups * 2 * weight[0, 0].numel() == offset.shape[1]
    return torchvision.ops.deform_conv2d(input, offset, weight, None, stride, padding, dilation)


def modulated_deform_conv2d(
    input, offset, mask, weight, bias=None, stride=1, padding=0, dilation=1, groups=1,
    deform_groups=1, /,
) -> Tensor:  # fmt: skip
    assert groups == input.shape[1] // weight.shape[1]
    assert deform_groups * weight[0, 0].numel() == mask.shape[1]
    return torchvision.ops.deform_conv2d(
        input, offset, weight, bias, stride, padding, dilation, mask
    )


def roi_align(
    input, rois, output_size, spatial_scale=1.0, sampling_ratio=0, pool_mode="avg", aligned=True, /,
) -> Tensor:  # fmt: skip
    assert pool_mode == "avg"
    assert rois.dtype == input.dtype
    return torchvision.ops.roi_align(
        input, rois, output_size, spatial_scale, sampling_ratio, aligned
    )


def deform_roi_pool(
    input, rois, offset, output_size, spatial_scale=1.0, sampling_ratio=0, gamma=0.1, /,
) -> Tensor:  # fmt: skip
    assert sampling_ratio is not None
    assert rois.dtype == input.dtype
    return reference.deform_roi_pool(
        input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma
    )


STANDINS = (deform_conv2d, modulated_deform_conv2d, roi_align, deform_roi_pool)
MMCV_CASES = {
    **CONVOLUTIONS,
    **{kind: case for kind, case in POOLS.items() if case.op == "roi_align"},
    "deform": SUITES["deform_roi_pool"][-1].resized(channels=2, output_size=(2, 3)),
    "deform, adaptive": SUITES["deform_roi_pool"][-1].resized(channels=2, sampling_ratio=0),
}


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put functions with mmcv's places in the place of mmcv's; return the names of those called."""
    called = []

    def noted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: object) -> Tensor:
            called.append(function.__name__)
            return function(*arguments)

        return call

    ops = types.ModuleType("mmcv.ops")
    for function in STANDINS:
        setattr(ops, function.__name__, noted(function))
    package = types.ModuleType("mmcv")
    package.ops = ops
    monkeypatch.setitem(sys.modules, "mmcv", package)
    monkeypatch.setitem(sys.modules, "mmcv.ops", ops)
    return called


@pytest.mark.parametrize("kind", MMCV_CASES)
def test_mmcv_gets_each_argument_in_its_place(kind: str, standin: list[str]) -> None:
    case = judged(MMCV_CASES[kind])
    contender = bench_of(case.op).contender("mmcv")
    assert contender.absent_because() is None
    assert contender.serves(case)
    for setting in contender.settings:
        if setting.mode != "network":
            assert_agrees(contender, case, setting)
    modulated = "modulated_" if case.sizes.get("modulated") else ""
    assert set(standin) == {modulated + case.op}


def test_the_standins_have_the_places_of_mmcv() -> None:
    ops = pytest.importorskip("mmcv.ops", exc_type=ImportError)
    for function in STANDINS:
        theirs = list(
            inspect.signature(getattr(ops, function.__name__).__self__.forward).parameters
        )
        assert theirs[1:] == list(inspect.signature(function).parameters)  # all but ctx


def test_mmcv_runs_where_it_has_kernels() -> None:
    devices = {
        op: [c.devices for c in bench_of(op).contenders if c.name == "mmcv"] for op in SUITES
    }
    both, cuda = ("cpu", "cuda"), ("cuda",)
    assert {op: found for op, found in devices.items() if found} == {
        "deform_conv2d": [both],
        "roi_align": [both],
        "deform_roi_pool": [cuda],
    }
    deform = SUITES["deform_roi_pool"]
    able = [bench_of("deform_roi_pool").contender("mmcv").serves(case) for case in deform]
    assert able == [case.text("sampling") == "grid" for case in deform]


def test_an_absent_mmcv_comes_with_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmcv", None)
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)
    reason = bench_of("roi_align").absent()["mmcv"]
    assert reason.endswith(mmcv_peer.INSTALL)
    assert "mmcv" in reason.partition(";")[0]
