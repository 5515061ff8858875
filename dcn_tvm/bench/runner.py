"""Run a suite: judge the contenders, rotate those that are right, and make rows.

Nobody's results are believed: whoever claims to compute the op is compared with the oracle first.
Who is wrong, or refuses the problem, is reported and takes no turn.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from dcn_tvm import measure
from dcn_tvm.agreement import TOLERANCES, relative_error
from dcn_tvm.bench import memory, provenance
from dcn_tvm.bench.clock import clock
from dcn_tvm.bench.contender import Call, Contender, Mode, OpBench, Setting, bench_of
from dcn_tvm.bench.plan import Plan
from dcn_tvm.measure import Timing
from dcn_tvm.report import Machine
from dcn_tvm.results import Ceilings, Rejection, Row
from dcn_tvm.suites import Case

Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Entry:
    """A contender in a setting, ready to be called."""

    contender: Contender
    setting: Setting
    call: Call
    results: Sequence[Tensor] = ()  # of its first call, until it is judged
    error: float | None = None  # against the oracle

    @property
    def name(self) -> str:
        """What distinguishes it from the others of its case and mode."""
        return f"{self.contender.name} {self.setting.dtype} {self.setting.memory_format}"


class Outcome(NamedTuple):
    """What became of some problems."""

    rows: list[Row]
    rejections: list[Rejection]


class _Wrong(Exception):
    """A contender's results are not the oracle's."""

    def __init__(self, error: float, allowed: float, case: Case) -> None:
        super().__init__(
            f"relative error {error:.1e} on {case.label}, where {allowed:.1e} is allowed"
        )
        self.error = error


def run(
    cases: Iterable[Case],
    plan: Plan,
    ceilings: Ceilings | None = None,
    *,
    sweep: str = "",
    report: Report = lambda _: None,
) -> Outcome:
    """Return a row for every case, mode, contender, dtype and memory format, or its rejection.

    All contenders of a case and mode rotate in one process. A mode in which nobody takes part gives
    no rows.

    Args:
        cases: the problems, as in `dcn_tvm.suites.SUITES`.
        plan: how to measure.
        ceilings: of the machine; without them rows have no floor.
        sweep: the size that changes from case to case, if they are a scaling curve.
        report: is told what is being measured.
    """
    outcome = Outcome([], [])
    with memory.probe(plan.device) if plan.memory else memory.nothing() as peaks:
        for case in cases:
            for mode in plan.modes:
                report(f"{case.op} {case.label}, {mode}")
                one = _Round(case, mode, plan, ceilings or Ceilings(()), sweep, peaks)
                rows, rejections = one.outcome()
                outcome.rows.extend(rows)
                outcome.rejections.extend(rejections)
    return outcome


class _Round:
    """One case in one mode."""

    def __init__(
        self,
        case: Case,
        mode: Mode,
        plan: Plan,
        ceilings: Ceilings,
        sweep: str,
        peaks: memory.Peaks,
    ) -> None:
        self._case, self._mode, self._plan = case, mode, plan
        self._ceilings, self._sweep, self._peaks = ceilings, sweep, peaks
        self._bench: OpBench = bench_of(case.op)
        self._rejections: list[Rejection] = []

    def outcome(self) -> Outcome:
        """Judge, time, and return what was found."""
        entries = self._judged(self._prepared())
        if not entries:
            return Outcome([], self._rejections)
        turns = {e.name: self._turn(e) for e in entries}
        timings = measure.rotate_turns(
            turns, seconds=self._plan.seconds, min_rounds=self._plan.min_rounds
        )
        found = [(e, timings[e.name]) for e in entries]
        return Outcome([self._row(e, t, found) for e, t in found], self._rejections)

    def _turn(self, entry: Entry) -> Callable[[], float]:
        return clock(entry.call, self._plan.device, cold=self._plan.cold).turn

    def _prepared(self) -> list[Entry]:
        entries = []
        for contender, setting in self._plan.entrants(self._bench, self._case, self._mode):
            try:
                call = contender.prepare(self._case, setting)
                results = call()
            except Exception as error:  # peers raise what they like
                self._reject(contender, setting, "failed", None, error)
            else:
                entries.append(Entry(contender, setting, call, results))
        return entries

    def _judged(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return those that are right, with their errors.

        Where the oracle is asked about another case than the one that is timed, the first right one
        of each dtype stands in for it on all of the timed case.
        """
        judged = self._bench.judged(self._case)
        wanted: dict[tuple[str, str], Sequence[Tensor]] = {}
        right = []
        for entry in entries:
            if not entry.contender.same_function:
                right.append(replace(entry, results=()))
                continue
            try:
                error = self._error(entry, judged, wanted)
            except _Wrong as wrong:
                self._reject(entry.contender, entry.setting, "wrong", wrong.error, wrong)
            else:
                right.append(replace(entry, results=(), error=error))
        return right

    def _error(
        self, entry: Entry, judged: Case, wanted: dict[tuple[str, str], Sequence[Tensor]]
    ) -> float:
        """Return an entry's error; `wanted` keeps what was computed to compare others with.

        Raises:
            _Wrong: it is too large.
        """
        setting, dtype = entry.setting, entry.setting.dtype
        if ("judged", dtype) not in wanted:
            wanted["judged", dtype] = self._bench.oracle(judged, setting)()
        if judged == self._case:
            return _compared(entry.results, wanted["judged", dtype], dtype, judged)
        small = entry.contender.prepare(judged, setting)()
        error = _compared(small, wanted["judged", dtype], dtype, judged)
        first = wanted.setdefault(("whole", dtype), entry.results)
        return max(error, _compared(entry.results, first, dtype, self._case))

    def _reject(
        self,
        contender: Contender,
        setting: Setting,
        kind: str,
        error: float | None,
        reason: Exception,
    ) -> None:
        text = " ".join(str(reason).split()) or type(reason).__name__
        self._rejections.append(
            Rejection(
                op=self._case.op,
                problem=self._case.label,
                provider=contender.name,
                role=contender.role,
                version=contender.version,
                mode=setting.mode,
                dtype=setting.dtype,
                memory_format=setting.memory_format,
                kind=kind,
                error=error,
                reason=text[:200],
            )
        )

    def _row(self, entry: Entry, timing: Timing, all: Sequence[tuple[Entry, Timing]]) -> Row:
        contender, setting, case = entry.contender, entry.setting, self._case
        machine = Machine.here(self._plan.device)
        flops = self._bench.flops(case, self._mode)
        moved = self._bench.bytes_moved(case, setting)
        floor = self._ceilings.floor(
            flops, moved, setting.dtype, machine.threads, cold=self._plan.cold
        )
        return Row(
            op=case.op,
            problem=case.label,
            sizes=dict(case.sizes),
            provider=contender.name,
            role=contender.role,
            version=contender.version,
            mode=setting.mode,
            dtype=setting.dtype,
            memory_format=setting.memory_format,
            cache="cold" if self._plan.cold else "warm",
            sweep=self._sweep,
            median_us=timing.median_us,
            p20_us=timing.p20_us,
            p80_us=timing.p80_us,
            rounds=len(timing.rounds),
            flops=flops,
            bytes_moved=moved,
            gflop_per_s=flops / timing.median_us / 1e3,
            gbyte_per_s=moved / timing.median_us / 1e3,
            floor_us=floor and floor.us,
            bound=floor and floor.bound,
            roofline=floor and floor.us / timing.median_us,
            peak_mib=self._peaks(case, contender, setting),
            faults=memory.faults(entry.call) if self._plan.device == "cpu" else None,
            ratio=_ratio(entry, timing, all),
            error=entry.error,
            records=provenance.of(entry.call, case) if contender.role == "ours" else (),
            device=machine.device,
            threads=machine.threads,
            versions=machine.versions,
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


def _compared(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: str, case: Case) -> float:
    error = relative_error(found, wanted)
    if not error <= TOLERANCES[dtype]:
        raise _Wrong(error, TOLERANCES[dtype], case)
    return error


def _ratio(entry: Entry, timing: Timing, all: Sequence[tuple[Entry, Timing]]) -> float | None:
    """Return the time relative to the baseline's, in the network mode that of the op alone."""
    role, setting = entry.contender.role, entry.setting
    if role == "rest":
        return None
    # A baseline that knows no memory format has one row for all; its own are told in its first.
    formats = (
        ("contiguous", "contiguous")
        if role == "baseline"
        else (setting.memory_format, "contiguous")
    )
    baseline = next(filter(None, (_find(all, "baseline", setting.dtype, f) for f in formats)), None)
    if baseline is None:
        return None
    own, other = timing, baseline[1]
    if setting.mode == "network":
        own = _without_rest(own, setting, all)
        other = _without_rest(other, baseline[0].setting, all)
    return measure.ratio(own, other)


def _without_rest(timing: Timing, setting: Setting, all: Sequence[tuple[Entry, Timing]]) -> Timing:
    """Subtract, round by round, what the network takes without the op."""
    found = _find(all, "rest", setting.dtype, setting.memory_format)
    if found is None:
        return timing
    rest = found[1]
    typical = statistics.median(rest.rounds.values())
    return Timing({r: us - rest.rounds.get(r, typical) for r, us in timing.rounds.items()})


def _find(
    all: Sequence[tuple[Entry, Timing]], role: str, dtype: str, memory_format: str
) -> tuple[Entry, Timing] | None:
    """Return the first entry of a role in a dtype and memory format."""
    for entry, timing in all:
        setting = entry.setting
        if (entry.contender.role, setting.dtype) == (role, dtype):
            if setting.memory_format == memory_format:
                return entry, timing
    return None
