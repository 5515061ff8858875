"""Run a suite: check that the contenders agree, then rotate them and make rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from dcn_tvm import measure
from dcn_tvm.agreement import TOLERANCES, relative_error
from dcn_tvm.bench.contender import MODES, Call, Contender, Mode, OpBench, Setting, bench_of
from dcn_tvm.bench.rows import Row, Work, make_row
from dcn_tvm.measure import Timing
from dcn_tvm.report import Machine
from dcn_tvm.suites import Case

Entrant = tuple[Contender, Setting]


def run(
    cases: Sequence[Case],
    modes: Sequence[Mode] = MODES,
    *,
    seconds: float = 3.0,
    min_rounds: int = 3,
    report: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Return one row for every case, mode, contender, dtype and memory format.

    All contenders of a case and mode rotate in one process. Before that every one that claims to
    compute the op is compared with the oracle. A mode in which nobody takes part gives no rows.

    Args:
        cases: the problems, as in `dcn_tvm.suites.SUITES`.
        modes: any of `MODES`.
        seconds: the time that a case and mode may take once everything is compiled; slow
            contenders may need more for their `min_rounds`.
        min_rounds: turns of every contender.
        report: is told what is being measured.

    Raises:
        RuntimeError: a contender does not compute what the oracle computes.
    """
    machine = Machine.here()
    rows = []
    for case in cases:
        bench = bench_of(case.op)
        for mode in modes:
            report(f"{case.op} {case.label}, {mode}")
            rows += _run_one(bench, case, mode, machine, seconds, min_rounds)
    return rows


def _run_one(
    bench: OpBench, case: Case, mode: Mode, machine: Machine, seconds: float, min_rounds: int
) -> list[Row]:
    entrants = [(c, s) for c in bench.present(case) for s in c.settings if s.mode == mode]
    if not entrants:
        return []
    calls = {entrant: entrant[0].prepare(case, entrant[1]) for entrant in entrants}
    _check(bench, case, calls)
    names = {_name(entrant): call for entrant, call in calls.items()}
    timings = measure.rotate(names, seconds=seconds, min_rounds=min_rounds)
    by_entrant = {entrant: timings[_name(entrant)] for entrant in entrants}
    return [
        make_row(
            *entrant,
            case,
            timing,
            Work(bench.flops(case, mode), bench.bytes_moved(case, entrant[1])),
            _ratio(entrant, by_entrant),
            machine,
        )
        for entrant, timing in by_entrant.items()
    ]


def _name(entrant: Entrant) -> str:
    contender, setting = entrant
    return f"{contender.name} {setting.dtype} {setting.memory_format}"


def _check(bench: OpBench, case: Case, calls: dict[Entrant, Call]) -> None:
    """Compare all that claim to be the op with the oracle, and on all of the case at least so.

    Where the oracle is asked about another case than the one that is timed, the first contender of
    each dtype, which was right there, stands in for it on the timed one.
    """
    same = {entrant: call for entrant, call in calls.items() if entrant[0].same_function}
    judged = bench.judged(case)
    if judged == case:
        _compare(same, case, lambda entrant: bench.oracle(case, entrant[1]))
        return
    small = {(c, setting): c.prepare(judged, setting) for c, setting in same}
    _compare(small, judged, lambda entrant: bench.oracle(judged, entrant[1]))
    _compare(same, case, lambda entrant: same[entrant])


def _compare(calls: dict[Entrant, Call], case: Case, trusted: Callable[[Entrant], Call]) -> None:
    """Compare calls with the trusted one of their dtype, made for the first that has it."""
    wanted: dict[str, Sequence[Tensor]] = {}
    for (contender, setting), call in calls.items():
        if setting.dtype not in wanted:
            wanted[setting.dtype] = trusted((contender, setting))()
        error = relative_error(call(), wanted[setting.dtype])
        if not error <= TOLERANCES[setting.dtype]:
            raise RuntimeError(
                f"{contender.name} ({setting.dtype}, {setting.memory_format}, {setting.mode}) is "
                f"wrong on {case.label}: relative error {error:.1e}, "
                f"required {TOLERANCES[setting.dtype]:.1e}"
            )


def _ratio(entrant: Entrant, timings: dict[Entrant, Timing]) -> float | None:
    """Return the time relative to the baseline's, in the network mode that of the op alone."""
    contender, setting = entrant
    if contender.role == "rest":
        return None
    memory_format = "contiguous" if contender.role == "baseline" else setting.memory_format
    # A baseline that knows no memory format has one row for all.
    baseline = _find(timings, "baseline", memory_format) or _find(timings, "baseline", "contiguous")
    if baseline is None:
        return None
    own, other = timings[entrant], timings[baseline]
    if setting.mode == "network":
        own = _without_rest(own, timings, setting.memory_format)
        other = _without_rest(other, timings, baseline[1].memory_format)
    return measure.ratio(own, other)


def _without_rest(timing: Timing, timings: dict[Entrant, Timing], memory_format: str) -> Timing:
    """Subtract, round by round, what the network takes without the op."""
    entrant = _find(timings, "rest", memory_format)
    if entrant is None:
        return timing
    rest = timings[entrant]
    return Timing({r: us - rest.rounds.get(r, rest.median_us) for r, us in timing.rounds.items()})


def _find(timings: dict[Entrant, Timing], role: str, memory_format: str) -> Entrant | None:
    """Return the float32 entrant of a role in a memory format."""
    for contender, setting in timings:
        if (contender.role, setting.memory_format) == (role, memory_format):
            return contender, setting
    return None
