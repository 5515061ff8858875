"""The whole benchmark, as the command line runs it: times, then what happens once per process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

from dcn_tvm.bench import overhead, probe
from dcn_tvm.bench.contender import MODES, Mode, bench_of
from dcn_tvm.bench.runner import run
from dcn_tvm.bench.tables import Results
from dcn_tvm.report import Machine
from dcn_tvm.suites import Case

Report = Callable[[str], None]


def check_modes(names: Sequence[str] | None) -> tuple[Mode, ...]:
    """Return the modes of these names, all if there are none.

    Raises:
        ValueError: a name is no mode.
    """
    wanted = [mode for mode in get_args(Mode) if mode in (names or MODES)]
    for name in names or ():
        if name not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {name}")
    return tuple(wanted)


def run_all(
    cases: Sequence[Case], modes: Sequence[Mode], *, seconds: float, quick: bool, report: Report
) -> Results:
    """Return everything there is to know about `cases`; quick: about each op's least one, tiny."""
    if quick:
        cases = [bench_of(own[0].op).shrink(_least(own)) for own in _by_op(cases)]
    rows = run(
        cases,
        modes,
        seconds=0.05 if quick else seconds,
        min_rounds=1 if quick else 3,
        report=report,
    )
    findings = [] if quick else _findings(cases, report)
    absent: dict[str, str] = {}
    for op in dict.fromkeys(case.op for case in cases):
        absent |= bench_of(op).absent()
    return Results(Machine.here(), rows, findings, absent)


def _findings(cases: Sequence[Case], report: Report) -> list[probe.Finding]:
    report("import time")
    findings = probe.measure_imports()
    for own in _by_op(cases):
        report(f"{own[0].op}, call overhead, first call and memory")
        findings.append(overhead.measure_overhead(_least(own)))
        findings += probe.measure_first_call(own[0])
        findings += probe.measure_memory(own[0])
    return findings


def _by_op(cases: Sequence[Case]) -> list[list[Case]]:
    ops = dict.fromkeys(case.op for case in cases)
    return [[case for case in cases if case.op == op] for op in ops]


def _least(cases: Sequence[Case]) -> Case:
    return min(cases, key=lambda case: bench_of(case.op).flops(case, "forward"))
