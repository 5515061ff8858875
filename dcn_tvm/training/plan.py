"""What is trained: which network on which scenes, how long, from which seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

TaskName = Literal["segmentation", "rfcn", "faster_rcnn"]

TASKS: tuple[TaskName, ...] = get_args(TaskName)
# Each detector's steps and learning rate: fully connected layers learn more slowly than votes.
DETECTORS: tuple[tuple[TaskName, int, float], ...] = (
    ("rfcn", 600, 3e-3),
    ("faster_rcnn", 1000, 2e-3),
)

# No compared run has it: one that did would draw the very head that the backbone grew up with.
START_SEED = 100


@dataclass(frozen=True)
class Run:
    """One network's training; two runs that differ in `deformable` only are a comparison.

    Attributes:
        task: what the network learns.
        deformable: whether res5a to res5c and, in detectors, RoI pooling are deformable.
        seed: of the initial weights and of the order of the scenes.
        steps: of the optimiser.
        batch: scenes in a step, over all processes.
        learning_rate: its peak, reached after a tenth of the steps.
        offset_rate: multiplier of the learning rate for the layers that make offsets.
        size: side of a scene in pixels.
        train_scenes: scenes to learn from.
        test_scenes: scenes to be judged by.
        upright: whether all digits stand upright and are of about one size.
        start: the run whose backbone this one starts with; None: with random weights.
    """

    task: TaskName
    deformable: bool
    seed: int
    steps: int
    batch: int = 16
    learning_rate: float = 3e-3
    offset_rate: float = 1.0
    size: int = 64
    train_scenes: int = 4000
    test_scenes: int = 400
    upright: bool = False
    start: Run | None = None

    @property
    def variant(self) -> str:
        """The network's side in the comparison."""
        return "deformable" if self.deformable else "plain"

    @property
    def name(self) -> str:
        """A name for files."""
        kind = f"{self.variant}-upright" if self.upright else self.variant
        return f"{self.task}-{kind}-{self.seed}"


def full_plan() -> list[Run]:
    """Return the runs of `make train`.

    As in the paper a plain network is trained first, on something easier, and every network starts
    with its backbone; the offsets of the deformable ones start at zero.
    """
    first = Run("segmentation", False, START_SEED, 400, train_scenes=3000, upright=True)
    segmentation = [
        Run("segmentation", deformable, seed, steps=600, start=first)
        for seed in range(3)
        for deformable in (False, True)
    ]
    detection = [
        Run(task, deformable, seed, steps, batch=8, learning_rate=rate, start=first)
        for task, steps, rate in DETECTORS
        for seed in range(2)
        for deformable in (False, True)
    ]
    return [first, *segmentation, *detection]


def quick_plan() -> list[Run]:
    """Return a run of each kind that takes seconds and teaches next to nothing."""
    tiny = Run("segmentation", False, 0, steps=6, batch=4, size=48, train_scenes=12, test_scenes=6)
    first = replace(tiny, seed=START_SEED, upright=True)
    compared = [
        replace(tiny, task=task, deformable=deformable, start=first)
        for task in TASKS
        for deformable in (False, True)
    ]
    return [first, *compared]
