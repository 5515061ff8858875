"""The demonstration: `python -m dcn_tvm demo` trains, checks, times and writes an HTML report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dcn_tvm import kernels
from dcn_tvm.demo import figures
from dcn_tvm.demo.evidence import (
    compare_with_reference,
    measure_times,
    misplacement,
    torchvision_op,
)
from dcn_tvm.demo.lesson import (
    STRIDE,
    Extractor,
    Lesson,
    Op,
    lesson_loss,
    load_photo,
    make_lesson,
    plain_convolution,
    train,
)
from dcn_tvm.demo.pooling import Moved, move_bins
from dcn_tvm.report import Machine, write_page
from dcn_tvm.viz import SampledLayer

__all__ = ["Findings", "run"]

# Relative error in the 2-norm: some 1000 float32 roundings, which a chain of layers stays below.
ERROR_LIMIT = 1000 * 2.0**-24


@dataclass(frozen=True)
class Learned:
    """What training brought: both networks, their losses, and how far off the points were."""

    deformable: Extractor
    plain: Extractor
    sampled_before: Sequence[SampledLayer]
    losses: dict[str, list[float]]
    seconds: dict[str, float]
    misplacement_before: float
    misplacement_after: float


@dataclass(frozen=True)
class Findings:
    """What the report states."""

    machine: Machine
    kernels: int
    first_call_s: float
    learned: Learned
    moved: Moved
    errors: dict[str, float]
    times_ms: dict[str, dict[str, float]]
    absent: dict[str, str]

    @property
    def worst_error(self) -> tuple[str, float]:
        """The quantity that differs most from the float64 reference, and its relative error."""
        return max(self.errors.items(), key=lambda item: item[1])

    def facts(self) -> dict[str, str]:
        """Return the numbers that a reader looks for, as text."""
        learned, (what, error) = self.learned, self.worst_error
        losses = {name: values[-1] for name, values in learned.losses.items()}
        return {
            "machine": f"{self.machine.device}, {self.machine.threads} threads",
            "first call": f"{self.first_call_s:.1f} s, {self.kernels} kernels compiled in it",
            **{f"training, {name}": f"{s:.1f} s" for name, s in learned.seconds.items()},
            **{f"final loss, {name}": f"{loss:.4f}" for name, loss in losses.items()},
            "sampling points off their content": f"{learned.misplacement_before:.1f} pixels before "
            f"training, {learned.misplacement_after:.1f} after",
            "bins off their content": f"{self.moved.misplacement_before:.1f} pixels before "
            f"training, {self.moved.misplacement_after:.1f} after",
            "output against float64": f"{self.errors['output']:.1e} relative error",
            f"worst of all checks ({what})": f"{error:.1e} relative error",
            **{**self.machine.versions, **self.absent},
        }


def run(folder: Path, console: Console, *, steps: int = 100, seconds: float = 16.0) -> Path:
    """Train, check, time, draw, and return the path of the report.

    Args:
        folder: gets `index.html`, which needs no other file.
        console: is told how far it is and what came out.
        steps: of training.
        seconds: for measuring times.

    Raises:
        RuntimeError: our op disagrees with the reference.
    """
    torch.manual_seed(0)
    lesson = make_lesson(load_photo())
    with _stages(console) as stage:
        with stage("first call: compiles, or loads what is cached", 1):
            first_call_s, built = _first_call(lesson)
        learned = _learn(lesson, stage, steps)
        with stage("moving the bins of RoI pooling", steps) as progress:
            moved = move_bins(lesson, progress.advance, steps)
        with stage("checking against the reference in float64", 1):
            errors = compare_with_reference(learned.deformable, lesson)
        with stage("measuring times", 1):
            times_ms, absent = _times(learned.deformable, lesson, seconds)
        findings = Findings(
            Machine.here(), built, first_call_s, learned, moved, errors, times_ms, absent
        )
        with stage("drawing", 1):
            path = _write(folder, lesson, findings)
    _tell(console, findings)
    if not findings.worst_error[1] <= ERROR_LIMIT:
        raise RuntimeError(
            f"{findings.worst_error[0]} is {findings.worst_error[1]:.1e} off the reference, "
            f"required {ERROR_LIMIT:.0e}"
        )
    return path


Stage = Callable[[str, int], "_Stage"]


class _Stage:
    """One line of progress while a block runs; the block calls `advance` for each step."""

    def __init__(self, progress: Progress, title: str, steps: int) -> None:
        self._progress = progress
        self._steps = steps
        self._task = progress.add_task(title, total=steps)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.update(self._task, completed=self._steps)


@contextmanager
def _stages(console: Console) -> Iterator[Stage]:
    columns = SpinnerColumn(finished_text="✓"), TextColumn("{task.description}")
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        yield lambda title, steps: _Stage(progress, title, steps)


def _first_call(lesson: Lesson) -> tuple[float, int]:
    """Return the seconds of the first forward and backward, and the kernels compiled for them."""
    network, start, built = Extractor(), time.perf_counter(), kernels.build_count()
    torch.autograd.backward(lesson_loss(network(lesson.seen), lesson))
    return time.perf_counter() - start, kernels.build_count() - built


def _learn(lesson: Lesson, stage: Stage, steps: int) -> Learned:
    """Train both networks from the same start."""
    deformable, plain = Extractor(), Extractor()
    plain.load_state_dict(deformable.state_dict())
    before, distance = deformable.sampled(lesson.seen), misplacement(deformable, lesson)
    learners: dict[str, tuple[Extractor, Op | None]] = {
        "deformable": (deformable, None),
        "plain convolution": (plain, plain_convolution),
    }
    losses, seconds = {}, {}
    for name, (network, op) in learners.items():
        with stage(f"training, {name}", steps) as progress:
            start = time.perf_counter()
            losses[name] = train(network, lesson, op, progress.advance, steps)
            seconds[name] = time.perf_counter() - start
    after = misplacement(deformable, lesson)
    return Learned(deformable, plain, before, losses, seconds, STRIDE * distance, STRIDE * after)


def _times(
    network: Extractor, lesson: Lesson, seconds: float
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Return the times in ms by group and provider, and which providers are absent and why."""
    peer = torchvision_op()
    if isinstance(peer, str):
        return measure_times(network, lesson, None, seconds), {"torchvision": peer}
    return measure_times(network, lesson, peer, seconds), {}


@torch.no_grad()
def _write(folder: Path, lesson: Lesson, findings: Findings) -> Path:
    learned = findings.learned
    pictures = {
        "deformable": learned.deformable(lesson.seen),
        "plain convolution": learned.plain(lesson.seen, plain_convolution),
    }
    after = learned.deformable.sampled(lesson.seen)
    return write_page(
        "demo.html.j2",
        folder / "index.html",
        findings=findings,
        providers=_providers(findings),
        points=figures.draw_points(lesson, learned.sampled_before, after),
        fields=figures.draw_fields(lesson, after),
        pooling=figures.draw_pooling(lesson, findings.moved),
        pictures=figures.draw_pictures(lesson, pictures),
        losses=figures.draw_losses(learned.losses),
        bars=figures.draw_bars(findings.times_ms),
    )


def _tell(console: Console, findings: Findings) -> None:
    """Print the times and the facts."""
    providers = _providers(findings)
    table = Table("ms, median", *providers)
    for title, group in findings.times_ms.items():
        table.add_row(title, *(f"{group[p]:.2f}" if p in group else "absent" for p in providers))
    console.print(table)
    for name, value in findings.facts().items():
        console.print(f"{name}: [bold]{value}[/]", highlight=False)


def _providers(findings: Findings) -> list[str]:
    measured = (provider for group in findings.times_ms.values() for provider in group)
    return list(dict.fromkeys([*measured, *findings.absent]))
