import dataclasses

import pytest
import torch

from dcn_tvm.agreement import TOLERANCES, relative_error
from dcn_tvm.bench import Plan, bench_of, memory, plan, probe
from dcn_tvm.bench.contender import (
    MEMORY_FORMATS,
    Contender,
    Mode,
    Setting,
    example_of,
)
from dcn_tvm.bench.overhead import measure_overhead
from dcn_tvm.suites import SUITES

TINY = SUITES["deform_conv2d"][4].resized(in_channels=4, out_channels=6, height=5, width=7)
FORWARD = Plan(modes=("forward",), seconds=0.01, min_rounds=1, memory=False)


def test_the_suite_is_the_agreed_one() -> None:
    names = ("batch", "in_channels", "height", "width", "out_channels", "offset_groups")
    found = [
        (*(case.integer(name) for name in names), case.pair("stride"), case.pair("dilation"))
        for case in SUITES["deform_conv2d"]
    ]
    assert found == [
        (1, 512, 38, 63, 512, 4, (1, 1), (2, 2)),
        (1, 256, 38, 63, 256, 1, (1, 1), (1, 1)),
        (2, 128, 50, 84, 128, 1, (1, 1), (1, 1)),
        (2, 512, 25, 42, 512, 1, (1, 1), (1, 1)),
        (1, 64, 56, 56, 64, 1, (1, 1), (1, 1)),
        (1, 64, 128, 128, 64, 8, (1, 1), (1, 1)),
        (1, 256, 50, 84, 256, 1, (2, 2), (1, 1)),
    ]
    assert len({case.label for case in SUITES["deform_conv2d"]}) == 7
    assert all(case.pair("padding") == case.pair("dilation") for case in SUITES["deform_conv2d"])


def test_a_case_asked_for_the_wrong_kind_of_size() -> None:
    with pytest.raises(TypeError, match="stride must be an integer"):
        TINY.integer("stride")
    with pytest.raises(TypeError, match="batch must be a word, got 1"):
        TINY.text("batch")
    with pytest.raises(TypeError, match="mode must be one or two integers, got max"):
        TINY.resized(mode="max").pair("mode")


def test_everyone_gets_the_same_numbers_in_the_format_that_is_asked_for() -> None:
    plain, last = (example_of(TINY, Setting(memory_format=form)) for form in MEMORY_FORMATS)
    for tensor, other in zip(plain.tensors[:4], last.tensors[:4], strict=True):
        assert tensor is not None
        assert other is not None
        assert torch.equal(tensor, other)
    (input, *_), grad = last.tensors, last.make_grad()
    assert input is not None
    for tensor in (input, grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def test_flops_are_the_convolutions() -> None:
    bench = bench_of("deform_conv2d")
    case = SUITES["deform_conv2d"][6]  # stride 2: 25×42 outputs
    forward = 2 * 25 * 42 * 256 * 256 * 9
    assert bench.flops(case, "forward") == forward
    assert bench.flops(case, "forward+backward") == 3 * forward


def test_who_does_something_else_is_credited_with_that() -> None:
    bench, case = bench_of("deform_conv2d"), SUITES["deform_conv2d"][4]  # 64 channels, 56 x 56
    pixels, window = 56 * 56, 64 * 9

    def work(name: str, mode: Mode) -> tuple[int, int]:
        return bench.work(bench.contender(name), case, Setting(mode))

    assert work("dcn_tvm", "forward")[0] == work("gemm", "forward")[0] == 2 * 64 * window * pixels
    assert work("gemm", "forward")[1] == 4 * (64 * window + window * pixels + 64 * pixels)
    assert work("gemm", "forward+backward")[1] == 3 * work("gemm", "forward")[1]
    rest = work("torch ops", "network")
    assert rest == (2 * 2 * 64 * 64 * pixels, 4 * (4 * 64 * pixels + 2 * 64 * 64))
    whole, op = work("dcn_tvm", "network"), work("dcn_tvm", "forward")
    assert [a - b for a, b in zip(whole, op, strict=True)] == list(rest)


def test_the_bytes_of_a_convolution() -> None:
    maps, offset, weight, output = 4 * 35, 18 * 35, 6 * 4 * 9 + 6, 6 * 35
    forward = maps + offset + weight + output
    backward = output + 2 * (maps + offset + weight)
    filters = maps + 16 + maps + output + 36 + output
    modes = {"forward": 0, "forward+backward": backward, "network": filters}
    for mode, more in modes.items():
        moved = bench_of("deform_conv2d").bytes_moved(TINY, Setting(mode))
        assert moved == 4 * (forward + more)
    half = Setting("forward", "bfloat16")
    assert bench_of("deform_conv2d").bytes_moved(TINY, half) == 2 * forward


def quick_settings(contender: Contender) -> list[Setting]:
    """Return the settings, of ours without those whose kernels the tests of the op compile."""
    own = contender.role == "ours"
    return [s for s in contender.settings if not own or s.dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize("name", ["torchvision", "onnxruntime", "dcn_tvm"])
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
def test_contenders_compute_the_op(name: str, mode: str) -> None:
    bench = bench_of("deform_conv2d")
    contender = bench.contender(name)
    if reason := contender.absent_because():
        pytest.skip(reason)
    for setting in (s for s in quick_settings(contender) if s.mode == mode):
        results, wanted = (f(TINY, setting)() for f in (contender.prepare, bench.oracle))
        assert len(results) == len(wanted) == (1 if mode == "forward" else 5)
        assert relative_error(results, wanted) <= TOLERANCES[setting.dtype]


def test_every_contender_runs_in_every_setting_it_names() -> None:
    for contender in bench_of("deform_conv2d").present():
        for setting in quick_settings(contender):
            assert all(torch.is_tensor(t) for t in contender.prepare(TINY, setting)())


def test_an_unknown_op_has_no_benchmark() -> None:
    with pytest.raises(ValueError, match="no_such_op"):
        bench_of("no_such_op")


def test_modes_are_checked() -> None:
    assert plan.parse_modes(None) == ("forward", "forward+backward", "network")
    assert plan.parse_modes(["network"]) == ("network",)
    assert plan.parse_modes(["both"]) == ("forward", "forward+backward")
    assert plan.parse_modes(["backward", "forward+backward"]) == ("forward+backward",)
    with pytest.raises(ValueError, match="mode must be one of forward"):
        plan.parse_modes(["backwards"])


def test_other_choices_are_checked() -> None:
    assert plan.parse_dtypes(None)["forward"] == ("float32", "bfloat16")
    assert plan.parse_dtypes(None)["network"] == ("float32",)
    assert set(plan.parse_dtypes(["float16"]).values()) == {("float16",)}
    with pytest.raises(ValueError, match=r"dtype must be one of float32, .*, got int8"):
        plan.parse_dtypes(["int8"])
    assert plan.parse_memory_formats(None) == MEMORY_FORMATS
    with pytest.raises(ValueError, match="memory format must be one of contiguous"):
        plan.parse_memory_formats(["nhwc"])
    assert plan.parse_against(["conv2d"], ["deform_conv2d"]) == {"conv2d"}
    with pytest.raises(ValueError, match=r"contender must be one of conv2d, .*, got caffe"):
        plan.parse_against(["caffe"], ["deform_conv2d"])
    with pytest.raises(ValueError, match="cache must be one of warm, cold, got hot"):
        plan.parse_cache("hot")
    assert plan.parse_device("cpu:0") == "cpu"
    for name in ("tpu9", "meta", "cuda:77"):
        with pytest.raises(ValueError, match=f"device must be .*, got {name}"):
            plan.parse_device(name)


def test_only_who_is_asked_for_takes_part() -> None:
    bench = bench_of("deform_conv2d")
    chosen = dataclasses.replace(FORWARD, against=frozenset({"torchvision"}))
    names = {c.name for c, _ in chosen.entrants(bench, TINY, "forward")}
    assert names == {"conv2d", "dcn_tvm", "torchvision"}
    assert "onnxruntime" not in chosen.absent(["deform_conv2d"])
    wide = dataclasses.replace(
        FORWARD, dtypes=plan.parse_dtypes(["float64"]), memory_formats=("contiguous",)
    )
    settings = [s for _, s in wide.entrants(bench, TINY, "forward")]
    assert {(s.dtype, s.memory_format) for s in settings} == {("float64", "contiguous")}
    roi = dataclasses.replace(FORWARD, memory_formats=("channels_last",))
    case = SUITES["roi_align"][0]
    settings = [(c.name, s) for c, s in roi.entrants(bench_of("roi_align"), case, "forward")]
    formats = {(name, s.memory_format) for name, s in settings}
    assert formats == {("copy", "contiguous"), ("dcn_tvm", "channels_last")}
    on_cuda = dataclasses.replace(FORWARD, device="cuda:0")
    assert {s.device for _, s in on_cuda.entrants(bench, TINY, "forward")} == {"cuda:0"}
    assert "onnxruntime" not in {c.name for c, _ in on_cuda.entrants(bench, TINY, "forward")}


def test_the_bare_kernel_is_less_than_the_call() -> None:
    finding = measure_overhead(TINY)
    assert (finding.unit, finding.provider) == ("us", "dcn_tvm")
    assert 0 < finding.value < 2000


def test_the_first_call_is_measured_in_a_process_of_its_own() -> None:
    (first,) = probe.measure_first_call(TINY)
    assert 0 < first.value < 60


def test_a_probe_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"a probe failed: .*no_such_contender|StopIteration"):
        probe._first_call_elsewhere(TINY, "no_such_contender")


def test_memory_is_what_a_call_needs_beside_inputs_and_results() -> None:
    case = SUITES["deform_conv2d"][4]  # 64 channels, 56 x 56
    bench = bench_of("deform_conv2d")
    setting, missing = Setting(), dataclasses.replace(bench.contenders[0], name="no_such")
    for name in ("dcn_tvm", "torchvision"):  # kernels are compiled here, as in a benchmark
        bench.contender(name).prepare(case, setting)()
    with memory.probe() as peak:
        ours, theirs = (peak(case, bench.contender(n), setting) for n in ("dcn_tvm", "torchvision"))
        if ours is None:
            pytest.skip("memory is measured on Linux only")
        assert theirs is not None
        columns_mib = 64 * 9 * 56 * 56 * 4 / 2**20  # which torchvision writes, and we do not
        assert 0.5 < ours < columns_mib < theirs < 3 * columns_mib
        assert peak(case, missing, setting) is None
        again = peak(case, bench.contender("dcn_tvm"), setting)
        assert again == pytest.approx(ours, rel=0.05), "scratch that is kept counts every time"


def test_results_are_no_memory_beside_them_new_ones_or_filled_again() -> None:
    bench, case = bench_of("roi_pool"), SUITES["roi_pool"][0]  # results of 14 MiB
    bench.contender("dcn_tvm").prepare(case, Setting())()
    with memory.probe() as peak:
        copied, ours = (peak(case, bench.contender(n), Setting()) for n in ("copy", "dcn_tvm"))
    assert copied is None or copied < 1
    assert ours is None or ours < 7


def test_only_results_that_are_new_are_taken_off_the_peak() -> None:
    again, first, second = torch.zeros(5), torch.zeros(3, dtype=torch.float64), torch.zeros(3)
    assert memory.new_bytes([again, first], [again, second]) == 3 * 8
    assert memory.new_bytes([first], []) == 3 * 8


def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PATIENCE_S", 0.01)
    with memory.probe() as peak:
        assert peak(TINY, bench_of("deform_conv2d").contender("dcn_tvm"), Setting()) is None


def test_new_pages_are_counted() -> None:
    size = 64 << 20
    assert memory.faults(lambda: None) < 100
    assert memory.faults(lambda: torch.zeros(size, dtype=torch.int8)) > size / (2 << 20) / 2
