import dataclasses
import time
from collections.abc import Sequence

import pytest
import torch

from dcn_tvm.agreement import TOLERANCES, relative_error
from dcn_tvm.bench import Plan, bench_of, memory, plan, probe, provenance, tables
from dcn_tvm.bench.contender import (
    MEMORY_FORMATS,
    Call,
    Contender,
    Mode,
    OpBench,
    Setting,
    example_of,
)
from dcn_tvm.bench.overhead import measure_overhead
from dcn_tvm.bench.runner import Outcome, run
from dcn_tvm.report import Machine
from dcn_tvm.results import Ceiling, Ceilings, Finding, Rejection, Results, Row
from dcn_tvm.results.means import mean_ratio, speedups
from dcn_tvm.suites import SUITES, Case

TINY = SUITES["deform_conv2d"][4].resized(in_channels=4, out_channels=6, height=5, width=7)
FORWARD = Plan(modes=("forward",), seconds=0.01, min_rounds=1, memory=False)
MACHINE = Machine("some CPU", 2, {"torch": "2"})


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


@pytest.mark.parametrize("name", ["torchvision", "onnxruntime", "dcn_tvm"])
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
def test_contenders_compute_the_op(name: str, mode: str) -> None:
    bench = bench_of("deform_conv2d")
    contender = bench.contender(name)
    if reason := contender.absent_because():
        pytest.skip(reason)
    for setting in (s for s in contender.settings if s.mode == mode):
        results, wanted = (f(TINY, setting)() for f in (contender.prepare, bench.oracle))
        assert len(results) == len(wanted) == (1 if mode == "forward" else 5)
        assert relative_error(results, wanted) <= TOLERANCES[setting.dtype]


def test_every_contender_runs_in_every_setting_it_names() -> None:
    for contender in bench_of("deform_conv2d").present():
        for setting in contender.settings:
            assert all(torch.is_tensor(t) for t in contender.prepare(TINY, setting)())


def _contender(name: str, role: str, value: float) -> Contender:
    def prepare(_: Case, setting: Setting) -> Call:
        def call() -> Sequence[torch.Tensor]:
            time.sleep(0.001)
            return [torch.full((2,), value)]

        return call

    return Contender(name, role, "torch", (Setting(),), prepare, f"pip install {name}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> OpBench:
    """Replace the op's contenders by ones that only sleep."""
    absent = dataclasses.replace(_contender("gone", "peer", 1.0), imports=("no_such_module",))
    bench = OpBench(
        contenders=(
            _contender("base", "baseline", 7.0),
            _contender("mine", "ours", 1.0),
            _contender("theirs", "peer", 1.0),
            absent,
        ),
        oracle=lambda case, _: lambda: [torch.ones(2)],
        flops=lambda case, mode: 1_000_000,
        shrink=lambda case: case,
        bytes_moved=lambda case, setting: 2_000_000,
    )
    monkeypatch.setattr("dcn_tvm.bench.runner.bench_of", lambda op: bench)
    return bench


def test_rows_are_complete_in_themselves(fake: OpBench) -> None:
    gemm = Ceiling("gemm", "float32", torch.get_num_threads(), 64, 1.0, "some CPU", "2026")
    copy = dataclasses.replace(gemm, kind="copy", rate=4.0)
    outcome = run([TINY], dataclasses.replace(FORWARD, seconds=0.03), Ceilings([gemm, copy]))
    assert outcome.rejections == []
    assert [row.provider for row in outcome.rows] == ["base", "mine", "theirs"]
    for row in outcome.rows:
        assert row.median_us >= 1000
        assert row.p20_us <= row.median_us <= row.p80_us
        assert row.gflop_per_s == pytest.approx(1e6 / row.median_us / 1e3)
        assert row.gbyte_per_s == pytest.approx(2e6 / row.median_us / 1e3)
        assert (row.floor_us, row.bound) == (1000.0, "arithmetic")
        assert row.roofline == pytest.approx(1000.0 / row.median_us)
        assert (row.problem, row.dtype, row.cache, row.threads) == (
            TINY.label,
            "float32",
            "warm",
            torch.get_num_threads(),
        )
        assert row.sizes == TINY.sizes
        assert row.device
        assert row.version
        assert row.versions["torch"]
        assert row.date.startswith("20")
        assert row.faults is not None
        assert 0.5 < (row.ratio or 0) < 2
    base, mine, theirs = outcome.rows
    assert (base.error, mine.error, theirs.error) == (None, 0.0, 0.0)
    assert run([TINY], FORWARD).rows[0].roofline is None, "no ceiling, no floor"


def test_who_is_wrong_is_reported_and_not_ranked(
    fake: OpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, mine, *_ = fake.contenders
    bench = dataclasses.replace(fake, contenders=(base, _contender("liar", "peer", 1.001), mine))
    monkeypatch.setattr("dcn_tvm.bench.runner.bench_of", lambda op: bench)
    rows, (rejection,) = run([TINY], FORWARD)
    assert [row.provider for row in rows] == ["base", "mine"]
    assert (rejection.provider, rejection.kind, rejection.role) == ("liar", "wrong", "peer")
    assert rejection.error == pytest.approx(1e-3, rel=1e-3)
    assert "relative error 1.0e-03 on 1x4x5x7->6" in rejection.reason


def test_who_refuses_a_problem_is_reported_with_its_words(
    fake: OpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, mine, theirs, _ = fake.contenders

    def prepare(_: Case, setting: Setting) -> Call:
        def call() -> Sequence[torch.Tensor]:
            raise NotImplementedError("no kernel\n for this type")

        return call

    bench = dataclasses.replace(
        fake, contenders=(base, mine, dataclasses.replace(theirs, prepare=prepare))
    )
    monkeypatch.setattr("dcn_tvm.bench.runner.bench_of", lambda op: bench)
    rows, (rejection,) = run([TINY], FORWARD)
    assert len(rows) == 2
    assert (rejection.kind, rejection.error) == ("failed", None)
    assert rejection.reason == "no kernel for this type"


@pytest.mark.parametrize("results", [[torch.ones(3)], [torch.ones(2)] * 2, []])
def test_other_results_than_wanted_are_wrong(
    fake: OpBench, monkeypatch: pytest.MonkeyPatch, results: list[torch.Tensor]
) -> None:
    other = dataclasses.replace(fake.contender("theirs"), prepare=lambda case, s: lambda: results)
    bench = dataclasses.replace(fake, contenders=(other, fake.contender("mine")))
    monkeypatch.setattr("dcn_tvm.bench.runner.bench_of", lambda op: bench)
    rows, (rejection,) = run([TINY], FORWARD)
    assert [row.provider for row in rows] == ["mine"]
    assert (rejection.provider, rejection.kind, rejection.error) == ("theirs", "wrong", None)


def test_a_network_that_is_lost_in_the_rest_has_no_ratio(
    fake: OpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = (Setting("network"),)
    slow = dataclasses.replace(
        _contender("rest", "rest", 1.0),
        prepare=lambda case, s: lambda: [time.sleep(0.003) or torch.ones(2)],
    )
    contenders = [dataclasses.replace(c, settings=network) for c in (*fake.contenders[:2], slow)]
    bench = dataclasses.replace(fake, contenders=tuple(contenders))
    monkeypatch.setattr("dcn_tvm.bench.runner.bench_of", lambda op: bench)
    rows, _ = run([TINY], dataclasses.replace(FORWARD, modes=("network",)))
    assert [(row.provider, row.ratio) for row in rows] == [
        ("base", None),
        ("mine", None),
        ("rest", None),
    ]


def test_nan_is_wrong(fake: OpBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = dataclasses.replace(fake, contenders=(_contender("nan", "peer", float("nan")),))
    monkeypatch.setattr("dcn_tvm.bench.runner.bench_of", lambda op: bench)
    rows, rejections = run([TINY], FORWARD)
    assert rows == []
    assert [(r.kind, r.error) for r in rejections] == [("wrong", None)], "JSON has no NaN"


def test_who_cannot_do_a_case_takes_no_part(fake: OpBench, monkeypatch: pytest.MonkeyPatch) -> None:
    base, mine, theirs, _ = fake.contenders
    partial = dataclasses.replace(theirs, serves=lambda case: case.integer("height") == 5)
    bench = dataclasses.replace(fake, contenders=(base, mine, partial))
    monkeypatch.setattr("dcn_tvm.bench.runner.bench_of", lambda op: bench)
    rows, _ = run([TINY, TINY.resized(height=6)], FORWARD)
    assert [row.provider for row in rows] == ["base", "mine", "theirs", "base", "mine"]
    assert run([TINY], dataclasses.replace(FORWARD, modes=("network",))) == Outcome([], [])


def test_the_oracle_judges_a_smaller_case_and_contenders_the_whole(
    fake: OpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def oracle(case: Case, _: Setting) -> Call:
        asked.append(case.integer("height"))
        return lambda: [torch.ones(2)]

    def odd_on(height: int) -> Contender:
        """Return a contender that is wrong on one height."""

        def prepare(case: Case, _: Setting) -> Call:
            return lambda: [torch.full((2,), 1.0 + (case.integer("height") == height))]

        return dataclasses.replace(fake.contender("theirs"), name=f"odd{height}", prepare=prepare)

    small = {"oracle": oracle, "judged": lambda case: case.resized(height=2)}
    for height in (2, 5):
        others = (fake.contender("mine"), odd_on(height))
        bench = dataclasses.replace(fake, contenders=others, **small)
        monkeypatch.setattr("dcn_tvm.bench.runner.bench_of", lambda op, bench=bench: bench)
        rows, (rejection,) = run([TINY], FORWARD)
        assert [row.provider for row in rows] == ["mine"]
        assert rejection.provider == f"odd{height}"
        where = "on 1x4x2x7" if height == 2 else "from mine on 1x4x5x7->6, both right on 1x4x2x7->6"
        assert where in rejection.reason
    assert asked == [2, 2]


def test_cold_calls_are_timed_one_by_one_after_the_caches_are_overwritten(
    fake: OpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    monkeypatch.setattr("dcn_tvm.bench.clock._flusher", lambda device: lambda: flushed.append(1))
    rows, _ = run([TINY], dataclasses.replace(FORWARD, cold=True, min_rounds=2))
    assert {row.cache for row in rows} == {"cold"}
    assert len(flushed) == sum(row.rounds for row in rows)


def test_rows_of_ours_tell_whose_choices_they_follow() -> None:
    bench = bench_of("deform_conv2d")
    call = bench.contender("dcn_tvm").prepare(TINY, Setting("forward+backward"))
    found = provenance.of(call, TINY)
    assert len(found) == 3, found
    assert all("default" in text or ".jsonl" in text for text in found)
    assert any(text.startswith("forward: ") for text in found)
    assert provenance.of(bench.contender("conv2d").prepare(TINY, Setting()), TINY) == ()


def test_absent_contenders_come_with_a_reason_and_the_install_line(fake: OpBench) -> None:
    assert "no_such_module" in fake.absent()["gone"]
    assert "pip install gone" in fake.absent()["gone"]
    assert "gone" not in [contender.name for contender in fake.present()]


def _rows(times_us: dict[str, tuple[str, list[float]]]) -> list[Row]:
    """Return rows of provider → (role, times on the problems P0, P1 …), ratios to `base`."""
    shared = {"version": "1", "mode": "forward", "dtype": "float32", "memory_format": "contiguous"}
    where = {"device": "some CPU", "threads": 2, "versions": {}, "date": "2026", "rounds": 3}
    shared |= {
        "cache": "warm",
        "clock": "clock",
        "sweep": "",
        "sizes": {"height": 5, "stride": (1, 1)},
    }
    unknown = ("floor_us", "bound", "roofline", "peak_mib", "faults", "error")
    shared |= {**dict.fromkeys(unknown), "records": (), "flops": 1, "bytes_moved": 1}
    return [
        Row(
            op="op",
            problem=f"P{index}",
            provider=provider,
            role=role,
            median_us=us,
            p20_us=us,
            p80_us=us,
            gflop_per_s=1.0,
            gbyte_per_s=1.0,
            ratio=us / times_us["base"][1][index],
            **shared,
            **where,
        )
        for provider, (role, times) in times_us.items()
        for index, us in enumerate(times)
    ]


ROWS = _rows(
    {
        "base": ("baseline", [1000.0, 1000.0]),
        "mine": ("ours", [1000.0, 4000.0]),
        "theirs": ("peer", [9000.0, 4000.0]),
    }
)


def test_means_are_geometric_and_tell_the_worst() -> None:
    assert mean_ratio(ROWS, "mine") == pytest.approx(2.0)
    (mean,) = speedups(ROWS)
    assert (mean.variant, mean.against, mean.worst_problem) == ("mine", "theirs", "P1")
    assert (mean.mean, mean.worst, mean.problems) == (pytest.approx(3), pytest.approx(1), 2)


def test_a_mean_is_over_the_problems_that_the_peer_can_do() -> None:
    rows = [row for row in ROWS if (row.provider, row.problem) != ("theirs", "P1")]
    (mean,) = speedups(rows)
    assert (mean.mean, mean.worst_problem, mean.problems) == (pytest.approx(9.0), "P0", 1)
    alone = [row for row in rows if (row.provider, row.problem) != ("mine", "P0")]
    assert speedups(alone) == []


def test_means_compare_types_with_themselves() -> None:
    wide = [dataclasses.replace(row, dtype="float64") for row in ROWS if row.provider != "mine"]
    half = [dataclasses.replace(row, dtype="bfloat16", median_us=1.0) for row in ROWS[2:4]]
    (mean,) = speedups([*ROWS, *wide, *half])
    assert (mean.variant, mean.against, mean.mean) == ("mine", "theirs", pytest.approx(3))


def test_markdown_says_everything() -> None:
    findings = [Finding("import", "dcn_tvm", "", 0.05, "s")]
    where = ("op", "P0", "liar", "peer", "3", "forward", "float32", "contiguous")
    rejected = [Rejection(*where, "wrong", 0.5, "relative error 5.0e-01")]
    limits = [Ceiling("copy", "float32", 2, 1 << 20, 33.3, "some CPU", "2026")]
    absent = {"onnxruntime": "no; pip install onnxruntime"}
    text = tables.markdown(Results(MACHINE, ROWS, rejected, limits, findings, absent))
    assert text.startswith("some CPU, 2 threads, torch 2")
    assert "| P1 | 1 (1.00) | 4 (4.00) | 4 (4.00) |" in text
    assert "| mean ratio | 1.00 | 2.00 | 6.00 |" in text
    assert "| op, forward | mine | theirs | 3.00 | 1.00 | P1 | 2 |" in text
    assert (
        "| op, forward | liar 3 | float32 contiguous | wrong | relative error 5.0e-01 | P0 |"
        in text
    )
    assert "| float32 | 2 | 33.3 |" in text
    assert "pip install onnxruntime" in text
    assert "0.05 s" in text


def test_the_roofline_is_in_the_cells() -> None:
    row = dataclasses.replace(ROWS[2], roofline=0.5)
    assert tables.times("", [row]).lines[0] == ["P0", "1 (1.00) 50%"]


def test_a_curve_is_a_line_of_its_table() -> None:
    first, second = (
        dataclasses.replace(ROWS[2], sweep="batch", sizes={"batch": n}, median_us=us)
        for n, us in ((1, 1000.0), (4, 8000.0))
    )
    text = tables.markdown(Results(MACHINE, [first, second]))
    assert "| op, forward | mine | batch | 1 | 4 | batch^1.50 | 1, 8 |" in text
    assert "part of the roofline" not in text, "a curve's rows are in no other table"


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


def test_results_that_are_filled_again_are_no_memory_of_the_call() -> None:
    with memory.probe() as peak:
        copied = peak(SUITES["roi_pool"][0], bench_of("roi_pool").contender("copy"), Setting())
    assert copied is None or copied < 1


def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PATIENCE_S", 0.01)
    with memory.probe() as peak:
        assert peak(TINY, bench_of("deform_conv2d").contender("dcn_tvm"), Setting()) is None


def test_new_pages_are_counted() -> None:
    size = 64 << 20
    assert memory.faults(lambda: None) < 100
    assert memory.faults(lambda: torch.zeros(size, dtype=torch.int8)) > size / (2 << 20) / 2
