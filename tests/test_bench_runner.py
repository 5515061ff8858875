import dataclasses
import time
from collections.abc import Sequence

import pytest
import torch

from dcn_tvm.bench import Plan, bench_of, provenance
from dcn_tvm.bench.contender import (
    Call,
    Contender,
    OpBench,
    Setting,
)
from dcn_tvm.bench.runner import Outcome, run
from dcn_tvm.results import Ceiling, Ceilings
from dcn_tvm.suites import SUITES, Case

TINY = SUITES["deform_conv2d"][4].resized(in_channels=4, out_channels=6, height=5, width=7)
FORWARD = Plan(modes=("forward",), seconds=0.01, min_rounds=1, memory=False)


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
    assert base.ratio == 1.0
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
