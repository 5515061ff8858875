"""A tuning session: tasks one after another, each ending in a record."""

from __future__ import annotations

import datetime
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcn_tvm import bridge, build, records, settings, suites
from dcn_tvm import target as targets
from dcn_tvm.errors import CompileError
from dcn_tvm.examples import judged_sizes
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Choices
from dcn_tvm.openmp import find_compiler
from dcn_tvm.problem import Problem
from dcn_tvm.records import Record, store
from dcn_tvm.target import Target
from dcn_tvm.tuning import machine as machines
from dcn_tvm.tuning.crew import COMPILERS, DEFAULT, Compilers, Stations
from dcn_tvm.tuning.machine import Machine
from dcn_tvm.tuning.remote import Tracker
from dcn_tvm.tuning.task import Journal, Task, Trial, tasks_of
from dcn_tvm.tuning.trial import Hunt, Verdict
from dcn_tvm.workload import Workload

TRIALS = 64
LEAST_S = 20.0  # of a task: in less a search finds little, and its verdict takes some seconds
_SURVEY = 0.25  # of the time at most, to find out which tasks are worth it
_SURVEY_S = 0.1  # for the time of one default
_SURVEY_PATIENCE_S = 120.0

Tunable = str | suites.Case | Workload | tuple[Problem, Mapping[str, int]]


class Reporter:
    """Is told what a session does; this one keeps it to itself."""

    def surveying(self, tasks: int) -> None:
        """The defaults of tasks are timed, to begin with those that take longest."""

    def started(self, task: Task, number: int, tasks: int) -> None:
        """A task begins, the `number`-th of `tasks`."""

    def tried(self, task: Task, trials: Sequence[Trial], wanted: int) -> None:
        """A task has tried this so far, of so many wanted."""

    def finished(self, task: Task, record: Record, verdict: Verdict) -> None:
        """A task has ended in a record."""

    def failed(self, task: Task, reason: str) -> None:
        """A task has ended without a record."""

    def skipped(self, task: Task, record: Record) -> None:
        """A task was tuned before."""


@dataclass(frozen=True)
class Plan:
    """How tasks are tuned.

    Attributes:
        trials: points that a task tries, the default included.
        minutes: that the session may take. Tasks that take longest by default come first, and
            share the time evenly, as far as that leaves each `LEAST_S`. None: no limit.
        seed: of the search.
        resume: go on where an earlier session stopped; tasks that have a record of as many trials
            are not tuned again.
        root: folder of the records, with a folder for each target in it.
    """

    trials: int
    minutes: float | None
    seed: int
    resume: bool
    root: Path


def tune(
    problems: Tunable | Iterable[Tunable],
    *,
    target: Target | str | None = None,
    trials: int = TRIALS,
    minutes: float | None = None,
    threads: int | None = None,
    seed: int = 0,
    resume: bool = False,
    tracker: Tracker | None = None,
    root: Path | None = None,
    reporter: Reporter | None = None,
) -> list[Record]:
    """Search the fastest choices for every kernel of every problem, and keep them as records.

    Candidates are compiled in child processes and measured in turn with the default schedule; the
    winner is compared with the reference before it becomes a record. Where nothing beats the
    default by more than the measured noise, the record says so. Later calls of this process and of
    all others of this user use the records at once.

    Args:
        problems: names of suites, workloads (as `record_problems` collects them), cases of
            `dcn_tvm.suites`, pairs of a problem and its free sizes, or any of them in a list.
        target: what to generate code for: this machine's CPU if None, its spec, such as
            "x86-64-v3", or a CUDA device of this machine, "cuda" or "cuda:1".
        trials: points that each kernel's search tries, at least 2: the default is the first, what
            records say comes next. A space that is no larger is tried out completely.
        minutes: limit for all of it. It goes to the kernels that take longest by default first,
            in even shares, but not less than `LEAST_S` each.
        threads: that a CPU's kernels run on; the target's cores if None. Servers decide it
            themselves.
        seed: of the search.
        resume: go on where an earlier session stopped.
        tracker: of the servers to measure on, instead of this machine.
        root: where to keep the records; the user's folder if None.
        reporter: is told what happens.

    Returns:
        The records, new and skipped ones; on Ctrl-C those there are by then.

    Raises:
        ValueError: a problem, size or number makes no sense.
        CompileError: there is no C compiler, which makes the libraries that are measured, or no
            compiler for the device.
        ConnectionError: the tracker cannot be reached or has no server.
        OSError: the records cannot be written.

    Example:
        >>> with dcn_tvm.record_problems() as met:
        ...     model(images).sum().backward()
        >>> [record.speedup for record in dcn_tvm.tune(met, trials=32)]
    """
    machine = machines.parse(target, threads, tracker)
    for name, number in (("trials", trials), ("minutes", minutes)):
        if number is not None and number <= 0:
            raise ValueError(f"{name} must be positive, got {number}")
    if trials < 2:
        raise ValueError("trials must be at least 2, as the default is the first, got 1")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    plan = Plan(trials, minutes, seed, resume, root or records.user_root())
    tasks = plan_tasks(problems, machine.target, machine.threads)
    if not tasks:
        return []
    for folder in (plan.root / machine.target.ids[0], settings.home() / "tuning"):
        _check_writable(folder)
    if find_compiler() is None:
        raise CompileError("tuning needs a C compiler: install cc, gcc or clang, or set CC")
    machine.versions()  # or say now that device code cannot be compiled
    return _Session(plan, machine, reporter or Reporter()).run(tasks)


def plan_tasks(
    problems: Tunable | Iterable[Tunable], target: Target | Gpu, threads: int
) -> list[Task]:
    """Return the tasks of problems, each once.

    Raises:
        ValueError: a name or size makes no sense.
    """
    workloads = workloads_of(problems)
    for workload in workloads:
        judged_sizes(workload.problem, dict(workload.sizes))  # refuses what has no example
    tasks = (t for w in workloads for t in tasks_of(w, target, threads))
    return list(dict.fromkeys(tasks))


def workloads_of(problems: Any) -> list[Workload]:
    """Return the workloads that `tune` means by its first argument.

    Raises:
        ValueError: there is no such suite, or a size makes no sense.
        TypeError: it is nothing that can be tuned.
    """
    if isinstance(problems, Workload):
        return [problems]
    if isinstance(problems, suites.Case):
        return [Workload.of(problems.problem(), problems.free_sizes)]
    if isinstance(problems, str):
        return workloads_of(suites.named(problems))
    if not isinstance(problems, Iterable):
        raise TypeError(f"cannot tune {problems!r}")
    parts = list(problems)
    if len(parts) == 2 and isinstance(parts[0], Problem) and isinstance(parts[1], Mapping):
        return [Workload.of(parts[0], parts[1])]
    return [workload for part in parts for workload in workloads_of(part)]


def _check_writable(folder: Path) -> None:
    """Find out before the search, not after it, that what it finds cannot be kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


class _Session:
    """Children and folders that the tasks of one call of `tune` share."""

    def __init__(self, plan: Plan, machine: Machine, reporter: Reporter) -> None:
        self._plan, self._machine, self._reporter = plan, machine, reporter
        self._stopped = False
        self._verdict_s = 0.0  # what the slowest one took so far

    def run(self, tasks: Sequence[Task]) -> list[Record]:
        """Tune tasks until they, the time or the user's patience end."""
        end = self._end()
        found = []
        with tempfile.TemporaryDirectory(prefix="dcn_tvm-tune-") as folder:
            stations = Stations(self._machine.bench)
            compilers = Compilers(Path(folder), min(targets.detect().cores, COMPILERS))
            try:
                tasks = self._in_order(tasks, compilers, stations)
                for number, task in enumerate(tasks, start=1):
                    left_s = end - time.monotonic()
                    if self._stopped or left_s <= 0:
                        break
                    share_s = min(max(left_s / (len(tasks) - number + 1), LEAST_S), left_s)
                    until = time.monotonic() + share_s - self._verdict_s
                    self._reporter.started(task, number, len(tasks))
                    record = self._tune(task, compilers, stations, until)
                    found += [record] if record else []
            except KeyboardInterrupt:  # in between, or a second one: no more verdicts
                pass
            finally:
                stations.close()
                compilers.close()
        return found

    def _in_order(
        self, tasks: Sequence[Task], compilers: Compilers, stations: Stations
    ) -> list[Task]:
        """Return the tasks that take longest by default first, where time is short.

        What resuming only passes over stays in front; what cannot be timed, or is not reached in a
        quarter of the time, comes last.
        """
        plan = self._plan
        if plan.minutes is None or len(tasks) == 1:
            return list(tasks)
        end = time.monotonic() + _SURVEY * 60 * plan.minutes
        self._reporter.surveying(len(tasks))
        times_us = {task: float("inf") for task in tasks if plan.resume and self._recorded(task)}
        left = [task for task in tasks if task not in times_us]
        while left and time.monotonic() < end:
            part, left = left[:COMPILERS], left[COMPILERS:]
            made = compilers.make_all([(task, task.space.default) for task in part])
            for task, library in zip(part, made, strict=True):
                if isinstance(library, Path) and time.monotonic() < end:
                    times_us[task] = _default_us(task, library, stations)
        return sorted(tasks, key=lambda task: -times_us.get(task, 0.0))

    def _end(self) -> float:
        minutes = self._plan.minutes
        return float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def _tune(
        self, task: Task, compilers: Compilers, stations: Stations, until: float
    ) -> Record | None:
        """Return the task's record, None where there is none to be had."""
        plan = self._plan
        wanted = min(plan.trials, task.space.size)
        if plan.resume and (before := self._recorded(task)):
            self._reporter.skipped(task, before)
            return before
        journal = Journal(settings.home() / "tuning", task)
        if not plan.resume:
            journal.remove()
        try:
            hunt = Hunt(task, compilers, stations, journal)
            if plan.resume:
                hunt.resume()
            try:
                hunt.run(
                    plan.trials,
                    plan.seed,
                    until,
                    lambda tried: self._reporter.tried(task, tried, wanted),
                    self._known_choices(task),
                    self._machine.bench.batch,
                )
            except KeyboardInterrupt:  # what was found is kept; a second one ends it all
                self._stopped = True
            start = time.monotonic()
            complete = not self._stopped and start < until
            if not complete and len(hunt.tried) < min(wanted, 2):
                self._reporter.failed(task, f"{task}: stopped before anything but the default ran")
                return None
            verdict = hunt.decide()
            self._verdict_s = max(self._verdict_s, time.monotonic() - start)
        except (CompileError, ConnectionError, RuntimeError) as error:
            self._reporter.failed(task, str(error))
            self._stopped |= isinstance(error, ConnectionError)  # no server is left
            return None
        complete |= verdict.trials >= wanted
        if verdict.choices is None and not complete:  # no proof that the default is best
            self._reporter.failed(task, f"{task}: stopped before anything beat the default")
            return None
        record = self._record(task, verdict)
        records.append(plan.root, task.target.ids[0], [record])
        if complete:  # else a later session may go on
            journal.remove()
        bridge.forget()  # this process, too, looks its kernels up again
        self._reporter.finished(task, record, verdict)
        return record

    def _known_choices(self, task: Task) -> list[Choices]:
        """Return what records choose now for the task's calls, or for near ones."""
        problem, kernel = task.request.problem, task.request.kernel
        found = records.find(problem, kernel, dict(task.sizes), task.target.ids, task.threads)
        return [f.record.choices for f in found if f.record.choices is not None]

    def _recorded(self, task: Task) -> Record | None:
        """Return the task's record if it was made with as many trials as it would be now."""
        request, trials = task.request, min(self._plan.trials, task.space.size)
        path = store.file_of(self._plan.root, task.target.ids[0], request.problem.op)
        wanted = (request.problem, request.kernel, dict(task.sizes), task.threads)
        for line in reversed(records.read(path)[0]):
            made = line.record
            if (made.problem, made.kernel, dict(made.sizes), made.threads) == wanted:
                return made if made.trials >= trials else None
        return None

    def _record(self, task: Task, verdict: Verdict) -> Record:
        return Record(
            problem=task.request.problem,
            kernel=task.request.kernel,
            sizes=dict(task.sizes),
            choices=verdict.choices,
            median_us=verdict.median_us,
            default_us=verdict.default_us,
            noise=verdict.noise,
            trials=verdict.trials,
            threads=task.threads,
            device=task.target.name or task.target.id,
            versions=_versions(self._machine),
            date=datetime.date.today().isoformat(),
        )


def _default_us(task: Task, library: Path, stations: Stations) -> float:
    """Return the time of a task's default, 0 if it does not run."""
    try:
        timings = stations.first.rotate(task, {DEFAULT: library}, _SURVEY_S, _SURVEY_PATIENCE_S)
    except RuntimeError:
        return 0.0
    return timings[DEFAULT].median_us


def _versions(machine: Machine) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for text in (*build.versions(), *machine.versions()):
        name, _, version = text.partition(" ")
        found[name] = version
    return found
