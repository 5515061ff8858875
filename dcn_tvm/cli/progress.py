"""What `dcn-tvm tune` shows while it searches, and a line for each kernel that is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dcn_tvm.records import Record
from dcn_tvm.tuning.session import Reporter
from dcn_tvm.tuning.task import Task, Trial
from dcn_tvm.tuning.trial import Verdict


class Live(Reporter):
    """A bar for the kernels and one for the trials of the kernel at hand."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._kernels = self._progress.add_task("kernels", note="", total=None)
        self._trials = self._progress.add_task("trials", note="", total=None)
        self._start = self._task_start = time.monotonic()
        self._done = 0
        self.failures = 0

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def surveying(self, tasks: int) -> None:
        """Show that the tasks are brought into an order."""
        self._progress.update(self._kernels, completed=0, total=tasks, note="timing the defaults")

    def started(self, task: Task, number: int, tasks: int) -> None:
        """Show the kernel, and how long the others may take, by those that are done."""
        left = ""
        if self._done:
            each_s = (time.monotonic() - self._start) / self._done
            left = f"about {_clock(each_s * (tasks - number + 1))} left"
        self._task_start = time.monotonic()
        self._progress.update(self._kernels, completed=number - 1, total=tasks, note=left)
        self._progress.update(self._trials, completed=0, total=None, description=str(task), note="")

    def tried(self, task: Task, trials: Sequence[Trial], wanted: int) -> None:
        """Show the best so far, failures, and the time that the rest of the trials may take."""
        ratios = [trial.ratio for trial in trials if trial.ratio is not None]
        failures = len(trials) - len(ratios)
        spent_s = time.monotonic() - self._task_start
        left_s = spent_s / max(len(trials), 1) * max(wanted - len(trials), 0)
        note = f"best {1 / min(ratios):.2f}x"
        note += f", {failures} failed" if failures else ""
        note += f", about {_clock(left_s)} left" if len(trials) > 1 else ""
        self._progress.update(self._trials, completed=len(trials), total=wanted, note=note)

    def finished(self, task: Task, record: Record, verdict: Verdict) -> None:
        """Print the outcome."""
        self._done += 1
        if record.choices is None:
            outcome = f"default is best (noise {verdict.noise:.1%})"
        else:
            chosen = ", ".join(f"{name} {value}" for name, value in record.choices.items())
            outcome = f"{record.speedup:.2f}x as fast with {chosen}"
        failed = f", {len(verdict.failures)} failed" if verdict.failures else ""
        self._print(
            f"{task}: {outcome}; {record.default_us / 1e3:.3g} ms by default, "
            f"{record.trials} trials{failed}"
        )

    def failed(self, task: Task, reason: str) -> None:
        """Print why there is no record."""
        self._done += 1
        self.failures += 1
        self._print(f"not tuned: {reason}")

    def skipped(self, task: Task, record: Record) -> None:
        """Print that there was a record."""
        self._print(f"{task}: tuned before, on {record.date}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
