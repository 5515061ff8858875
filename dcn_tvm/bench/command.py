"""The whole benchmark, as the command line runs it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from dcn_tvm import suites
from dcn_tvm.bench import ceilings, overhead, probe
from dcn_tvm.bench.contender import bench_of
from dcn_tvm.bench.plan import Plan
from dcn_tvm.bench.runner import Outcome, run
from dcn_tvm.report import Machine
from dcn_tvm.results import Ceiling, Ceilings, Finding, Results
from dcn_tvm.suites import Case

Report = Callable[[str], None]

_SWEPT_SHARE = 0.3  # of a problem's seconds, for a point of a scaling curve


def run_all(
    cases: Sequence[Case], plan: Plan, *, scaling: bool = False, report: Report = lambda _: None
) -> Results:
    """Return everything there is to know about `cases`: times, and what happens once per process.

    Args:
        cases: the problems.
        plan: how to measure.
        scaling: whether to measure the scaling curves of their ops as well.
        report: is told what is being measured.
    """
    ops = list(dict.fromkeys(case.op for case in cases))
    _use(plan.device)
    here = torch.get_num_threads()
    swept = plan.device == "cpu" and scaling and any("threads" in suites.SCALING[op] for op in ops)
    counts = ceilings.thread_counts(here) if swept else [here]
    measured = ceilings.measure(_ceiled(plan), counts, device=plan.device, report=report)
    limits = Ceilings(measured)
    outcomes = [run(cases, plan, limits, report=report)]
    if scaling:
        short = replace(plan, seconds=plan.seconds * _SWEPT_SHARE)
        outcomes += [run_scaling(op, short, limits, report=report) for op in ops]
    findings = _findings(cases, report) if plan.device == "cpu" else []
    return _results(outcomes, plan, ops, measured, findings)


def run_quick(cases: Sequence[Case], plan: Plan, *, report: Report = lambda _: None) -> Results:
    """Return the times of each op's least problem, on a tiny map: does it all work?"""
    _use(plan.device)
    tiny = [bench_of(own[0].op).shrink(_least(own)) for own in _by_op(cases)]
    short = replace(plan, seconds=0.05, min_rounds=1)
    measured = ceilings.measure(_ceiled(plan), device=plan.device, seconds=0.01, report=report)
    outcome = run(tiny, short, Ceilings(measured), report=report)
    return _results([outcome], plan, [case.op for case in tiny], measured, [])


def run_scaling(op: str, plan: Plan, limits: Ceilings, *, report: Report) -> Outcome:
    """Return the rows of an op's scaling curves; layouts and half types do not take part."""
    plan = replace(
        plan,
        modes=tuple(mode for mode in plan.modes if mode != "network"),
        dtypes={mode: dtypes[:1] for mode, dtypes in plan.dtypes.items()},
        memory_formats=plan.memory_formats[:1],
    )
    rows, rejections = Outcome([], [])
    for sweep, points in suites.SCALING[op].items():
        if sweep == "threads":
            found = _run_threads(points, plan, limits, report) if plan.device == "cpu" else []
        else:
            found = [run(points, plan, limits, sweep=sweep, report=report)]
        for outcome in found:
            rows += outcome.rows
            rejections += outcome.rejections
    return Outcome(rows, rejections)


def _run_threads(
    points: Sequence[Case], plan: Plan, limits: Ceilings, report: Report
) -> list[Outcome]:
    before = torch.get_num_threads()
    found = []
    try:
        for count in ceilings.thread_counts(before):
            torch.set_num_threads(count)
            found.append(run(points, plan, limits, sweep="threads", report=report))
    finally:
        torch.set_num_threads(before)
    return found


def measure_ceilings(
    dtypes: Sequence[str] | None, device: str, *, report: Report = lambda _: None
) -> Results:
    """Return the machine's ceilings alone, for each dtype and number of threads."""
    _use(device)
    counts = ceilings.thread_counts(torch.get_num_threads()) if device == "cpu" else None
    measured = ceilings.measure(dtypes or ceilings.DTYPES, counts, device=device, report=report)
    return Results(Machine.here(device), ceilings=measured)


def _use(device: str) -> None:
    """Make a GPU the current one, and its products those of float32: clocks and peers ask torch."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _ceiled(plan: Plan) -> tuple[str, ...]:
    """Return the dtypes whose ceilings rows need: half types may be computed in float32."""
    return tuple(dict.fromkeys(("float32", *plan.all_dtypes)))


def _results(
    outcomes: Sequence[Outcome],
    plan: Plan,
    ops: Sequence[str],
    measured: Sequence[Ceiling],
    findings: Sequence[Finding],
) -> Results:
    return Results(
        Machine.here(plan.device),
        list(itertools.chain.from_iterable(o.rows for o in outcomes)),
        list(itertools.chain.from_iterable(o.rejections for o in outcomes)),
        measured,
        findings,
        plan.absent(ops),
    )


def _findings(cases: Sequence[Case], report: Report) -> list[Finding]:
    report("import time")
    found: list[Finding] = []
    try:
        found += probe.measure_imports()
        for own in _by_op(cases):
            report(f"{own[0].op}, call overhead and first call")
            found.append(overhead.measure_overhead(_least(own)))
            found += probe.measure_first_call(own[0])
    except RuntimeError as error:  # of a process of its own: what was timed is not lost for that
        warnings.warn(f"what happens once per process is not complete: {error}", stacklevel=2)
    return found


def _by_op(cases: Sequence[Case]) -> list[list[Case]]:
    ops = dict.fromkeys(case.op for case in cases)
    return [[case for case in cases if case.op == op] for op in ops]


def _least(cases: Sequence[Case]) -> Case:
    return min(cases, key=lambda case: bench_of(case.op).flops(case, "forward"))
