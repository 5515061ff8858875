"""Run a suite: judge the contenders, rotate those that are right, and make rows.

Nobody's results are believed: whoever claims to compute the op is compared with the oracle first.
Who is wrong, or refuses the problem, is reported and takes no turn.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
    error: float | None  # against the oracle

    @property
    def name(self) -> str:
        """What distinguishes it from the others of its case and mode."""
        return f"{self.contender.name} {self.setting.dtype} {self.setting.memory_format}"


class Outcome(NamedTuple):
    """What became of some problems."""

    rows: list[Row]
    rejections: list[Rejection]


class _Wrong(Exception):
    """A contender's results are not what they should be."""

    def __init__(self, reason: str, error: float | None = None) -> None:
        super().__init__(reason)
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
        self._oracles: dict[str, Sequence[Tensor]] = {}  # by dtype
        self._firsts: dict[str, tuple[str, Sequence[Tensor]]] = {}  # name and results, by dtype

    def outcome(self) -> Outcome:
        """Judge, time, and return what was found."""
        entrants = self._plan.entrants(self._bench, self._case, self._mode)
        prepared = [self._entry(contender, setting) for contender, setting in entrants]
        entries = [entry for entry in prepared if entry is not None]
        self._oracles.clear()
        self._firsts.clear()
        if not entries:
            return Outcome([], self._rejections)
        clocks = {e.name: clock(e.call, self._plan.device, cold=self._plan.cold) for e in entries}
        timings = measure.rotate_turns(
            {name: made.turn for name, made in clocks.items()},
            seconds=self._plan.seconds,
            min_rounds=self._plan.min_rounds,
        )
        found = [(e, timings[e.name]) for e in entries]
        rows = [self._row(e, t, clocks[e.name].kind, found) for e, t in found]
        return Outcome(rows, self._rejections)

    def _entry(self, contender: Contender, setting: Setting) -> Entry | None:
        """Return a contender that is right, or reject it."""
        try:
            call = contender.prepare(self._case, setting)
            results = call()
            error = self._error(contender, setting, results) if contender.same_function else None
        except _Wrong as wrong:
            self._reject(contender, setting, "wrong", wrong.error, wrong)
        except Exception as refusal:  # peers raise what they like
            self._reject(contender, setting, "failed", None, refusal)
        else:
            return Entry(contender, setting, call, error)
        return None

    def _error(self, contender: Contender, setting: Setting, results: Sequence[Tensor]) -> float:
        """Return a contender's error, and compare it with the others of its dtype.

        Where the oracle is asked about another case than the one that is timed, as it would take
        too long, on all of the timed case the contenders are compared among themselves.

        Raises:
            _Wrong: it is too large.
        """
        dtype, judged = setting.dtype, self._bench.judged(self._case)
        if dtype not in self._oracles:
            self._oracles[dtype] = self._bench.oracle(judged, setting)()
        if judged == self._case:
            return _compared(results, self._oracles[dtype], dtype, f"on {judged.label}")
        small = contender.prepare(judged, setting)()
        error = _compared(small, self._oracles[dtype], dtype, f"on {judged.label}")
        first, whole = self._firsts.setdefault(dtype, (contender.name, results))
        where = f"from {first} on {self._case.label}, both right on {judged.label}"
        return max(error, _compared(results, whole, dtype, where))

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

    def _row(
        self, entry: Entry, timing: Timing, clock: str, all: Sequence[tuple[Entry, Timing]]
    ) -> Row:
        contender, setting, case = entry.contender, entry.setting, self._case
        machine = Machine.here(self._plan.device)
        flops, moved = self._bench.work(contender, case, setting)
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
            clock=clock,
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


def _compared(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: str, where: str) -> float:
    """Return the relative error.

    Raises:
        _Wrong: it is too large, or there are other results than wanted.
    """
    try:
        error = relative_error(found, wanted)
    except ValueError as other:  # another number of them, or other shapes
        raise _Wrong(f"{other}, {where}") from other
    if not error <= TOLERANCES[dtype]:
        finite = error if math.isfinite(error) else None
        allowed = f"where {TOLERANCES[dtype]:.1e} is allowed"
        raise _Wrong(f"relative error {error:.1e} {where}, {allowed}", finite)
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
        if min(own.median_us, other.median_us) <= 0:  # lost in what is subtracted
            return None
    ratio = measure.ratio(own, other)
    return ratio if ratio > 0 else None


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
