"""Audits of records: do they replay, are their results right, are they still faster."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dcn_tvm import build
from dcn_tvm import target as targets
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Choices, Knobs
from dcn_tvm.measure import ratio
from dcn_tvm.records import Line, Record
from dcn_tvm.target import Target
from dcn_tvm.tuning import machine as machines
from dcn_tvm.tuning.crew import COMPILERS, DEFAULT, Compilers, Stations
from dcn_tvm.tuning.machine import Machine
from dcn_tvm.tuning.task import Task, tasks_of
from dcn_tvm.workload import Workload


@dataclass(frozen=True)
class Finding:
    """What an audit of a record found.

    Attributes:
        line: the record and where it stands.
        wrong: what is wrong with it, None if nothing is.
        ratio: its time over the default's, where that was asked for.
    """

    line: Line
    wrong: str | None = None
    ratio: float | None = None


def machine_of(target_id: str) -> Machine | None:
    """Return what a folder of records is for, if it is here: the CPU, or the first such device."""
    if target := target_of(target_id):
        return machines.parse(target, targets.detect().cores)
    return next((d for d in machines.devices() if target_id in d.target.ids), None)


def target_of(target_id: str) -> Target | None:
    """Return the CPU's target that a folder of records is for, if this machine runs its code."""
    here = targets.detect()
    if target_id in here.ids:
        return here
    try:
        return targets.parse(target_id)
    except ValueError:
        return None


def illegal(record: Record, target: Target | Gpu) -> str | None:
    """Return why a record's choices can no longer be used on a target, None if they can."""
    if record.choices is None:
        return None
    task = _task(record, target)
    try:
        build.schedule(task.request, target, Knobs(dict(record.choices)))
    except ValueError as error:
        return str(error)
    return None


class Audit:
    """Child processes that check records one after another.

    Example:
        >>> with Audit(machine.parse("cuda")) as audit:
        ...     findings = list(audit.check(lines))
    """

    def __init__(self, machine: Machine) -> None:
        self._target = machine.target
        self._folder = tempfile.TemporaryDirectory(prefix="dcn_tvm-audit-")
        self._compilers = Compilers(Path(self._folder.name), min(targets.detect().cores, COMPILERS))
        self._stations = Stations(machine.bench)

    def __enter__(self) -> Audit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stations.close()
        self._compilers.close()
        self._folder.cleanup()

    def check(self, lines: Sequence[Line], seconds: float | None = None) -> Iterator[Finding]:
        """Yield a finding for each record: it is compiled, and its results are compared.

        Args:
            lines: the records.
            seconds: for timing each beside the default; None for not at all.
        """
        for line in lines:
            record = line.record
            if record.choices is None:
                yield Finding(line, ratio=None if seconds is None else 1.0)
            else:
                yield self._check(line, record.choices, seconds)

    def _check(self, line: Line, choices: Choices, seconds: float | None) -> Finding:
        if reason := illegal(line.record, self._target):
            return Finding(line, reason)
        task, station = _task(line.record, self._target), self._stations.first
        made, default = self._compilers.make(task, [choices, task.space.default])
        if isinstance(made, str) or isinstance(default, str):
            return Finding(line, made if isinstance(made, str) else str(default))
        if wrong := station.check(task, made, default):
            return Finding(line, wrong)
        if seconds is None:
            return Finding(line)
        try:
            timings = station.rotate(task, {"record": made, DEFAULT: default}, seconds, 600)
        except RuntimeError as error:
            return Finding(line, str(error))
        return Finding(line, ratio=ratio(timings["record"], timings[DEFAULT]))


def speedup(findings: Sequence[Finding]) -> tuple[float, float] | None:
    """Return the geometric mean and the least of default time / record time, if any was timed."""
    speedups = [1 / finding.ratio for finding in findings if finding.ratio]
    return (statistics.geometric_mean(speedups), min(speedups)) if speedups else None


def _task(record: Record, target: Target | Gpu) -> Task:
    workload = Workload.of(record.problem, dict(record.sizes), [record.kernel])
    (task,) = tasks_of(workload, target, record.threads)
    return task
