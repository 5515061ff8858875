"""One run: steps over scenes, by one process or several, with checkpoints from which it goes on."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcn_tvm.nn import parameter_groups
from dcn_tvm.training.digits import UPRIGHT, VARIED, Scenes
from dcn_tvm.training.plan import Run
from dcn_tvm.training.tasks import Task, task_of
from dcn_tvm.training.world import World

CHECKPOINT_SECONDS = 15.0
GRADIENT_NORM = 5.0
WARM_UP = 0.1  # share of the steps in which the learning rate rises

StepDone = Callable[[int, float], None]


@dataclass(frozen=True)
class Outcome:
    """What a run brought.

    Attributes:
        run: what was done.
        losses: the loss of each step.
        metrics: what the network achieves on scenes that it never saw.
        seconds: of the steps, those before an interruption included.
        step_ms: the median of a step, in milliseconds.
        parameters: of the network.
        processes: that shared each batch, in the part that finished.
        threads: of each process.
    """

    run: Run
    losses: list[float]
    metrics: dict[str, float]
    seconds: float
    step_ms: float
    parameters: int
    processes: int
    threads: int


@dataclass
class _State:
    """Everything that changes while a run goes on."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def save(self, run: Run, path: Path) -> None:
        """Write a checkpoint; an interruption leaves the one before."""
        parts = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        content = {
            "identity": identity(run),
            "losses": self.losses,
            "seconds": self.seconds,
            **parts,
        }
        _replace(path, lambda unfinished: torch.save(content, unfinished))

    def load(self, run: Run, path: Path) -> None:
        """Go on from a checkpoint of this very run; from the start if there is none to be read."""
        content = _read_checkpoint(run, path)
        if content is None:
            return
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(content[name])
        self.losses, self.seconds = content["losses"], content["seconds"]


_STATEFUL = ("network", "optimiser", "schedule")


def train(run: Run, scenes: Scenes, folder: Path, world: World, step_done: StepDone) -> nn.Module:
    """Train a network, from its last checkpoint if there is one, and return it.

    The scenes of a step, and the boxes that a detector samples, follow from the run's seed and
    the step alone. So an interrupted run goes on exactly, and several processes take the steps that
    one takes, but for roundings; in detectors these flip a proposal after some steps, and then the
    curves differ as those of two runs do. All processes must see the folder.

    Args:
        run: what to train.
        scenes: to learn from.
        folder: of the checkpoints.
        world: the processes that share each batch.
        step_done: is told the number of steps done, and the loss.

    Raises:
        ValueError: the processes cannot share the batch evenly.
        RuntimeError: the loss is no longer finite.
        FileNotFoundError: the run to start from has left no checkpoint.
    """
    task, state = task_of(run), _begin(run, folder)
    path = checkpoint_of(run, folder)
    state.load(run, path)
    shared = world.wrap(state.network.train())
    saved = time.monotonic()
    while len(state.losses) < run.steps:
        start = time.monotonic()
        loss = _step(run, task, shared, state, scenes, world)
        state.seconds.append(time.monotonic() - start)
        step_done(len(state.losses), loss)
        last = len(state.losses) == run.steps
        if world.first and (last or time.monotonic() - saved > CHECKPOINT_SECONDS):
            state.save(run, path)
            saved = time.monotonic()
    return state.network


def finish(run: Run, network: nn.Module, scenes: Scenes, folder: Path, world: World) -> Outcome:
    """Judge a trained network and write what the run brought."""
    content = _read_checkpoint(run, checkpoint_of(run, folder))
    assert content is not None, "train() has just written it"
    metrics = task_of(run).judge(network.eval(), scenes)
    outcome = Outcome(
        run,
        content["losses"],
        metrics,
        sum(content["seconds"]),
        1e3 * statistics.median(content["seconds"]),
        sum(p.numel() for p in network.parameters()),
        world.size,
        torch.get_num_threads(),
    )
    text = json.dumps({"identity": identity(run), **asdict(outcome)}, indent=1)
    _replace(_outcome_of(run, folder), lambda path: path.write_text(text, encoding="utf-8"))
    return outcome


def load_outcome(run: Run, folder: Path) -> Outcome | None:
    """Return what a run brought, None if it has not been finished or was another one."""
    try:
        content = json.loads(_outcome_of(run, folder).read_text(encoding="utf-8"))
        known = content.pop("identity") == identity(run)
        if not known or _read_checkpoint(run, checkpoint_of(run, folder)) is None:
            return None
        return Outcome(**{**content, "run": run})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_network(run: Run, folder: Path) -> nn.Module:
    """Return the network of a finished run, for inference.

    Raises:
        FileNotFoundError: there is no checkpoint of this run that can be read.
    """
    content = _read_checkpoint(run, checkpoint_of(run, folder))
    if content is None:
        raise FileNotFoundError(f"{checkpoint_of(run, folder)} holds no checkpoint of {run}")
    network = task_of(run).network(run.deformable)
    network.load_state_dict(content["network"])
    return network.eval()


def identity(run: Run) -> str:
    """Return a digest of what a run's result follows from; with another it is not reused."""
    task = task_of(run)
    network = task.network(run.deformable)
    shapes = [(name, tuple(value.shape)) for name, value in network.state_dict().items()]
    constants = GRADIENT_NORM, WARM_UP, task.offset_rates(run.offset_rate), UPRIGHT, VARIED
    parts = asdict(run), repr(network), shapes, getattr(task, "options", None), constants
    start = identity(run.start) if run.start else None
    return hashlib.sha256(repr((parts, start)).encode()).hexdigest()


def forget(run: Run, folder: Path) -> None:
    """Delete what a run left, if it left anything."""
    checkpoint_of(run, folder).unlink(missing_ok=True)
    _outcome_of(run, folder).unlink(missing_ok=True)


def checkpoint_of(run: Run, folder: Path) -> Path:
    """Return where a run's checkpoint is."""
    return folder / f"{run.name}.pt"


def _outcome_of(run: Run, folder: Path) -> Path:
    return folder / f"{run.name}.json"


def _begin(run: Run, folder: Path) -> _State:
    """Return the network with its first weights, and how they will change."""
    torch.manual_seed(run.seed)
    task = task_of(run)
    network = task.network(deformable=False)
    if (
        run.deformable
    ):  # its offset heads draw random numbers too, so the rest would begin elsewhere
        plain, network = network, task.network(deformable=True)
        _load_shared(network, plain.state_dict())
    network.to(memory_format=torch.channels_last)  # faster on CPUs
    if run.start is not None:
        trained = load_network(run.start, folder).get_submodule("backbone").state_dict()
        _load_shared(network.get_submodule("backbone"), trained)
    groups = parameter_groups(network, run.learning_rate, task.offset_rates(run.offset_rate))
    groups = [group for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [g["lr"] for g in groups], total_steps=run.steps, pct_start=WARM_UP
    )
    return _State(network, optimiser, schedule)


def _load_shared(network: nn.Module, state: dict[str, Any]) -> None:
    """Load the weights of a plain network; offset heads, which it lacks, stay at zero."""
    found = network.load_state_dict(state, strict=False)
    lacking = [name for name in found.missing_keys if "offset" not in name]
    assert not lacking and not found.unexpected_keys, "variants differ in offset heads only"


def _step(
    run: Run, task: Task, shared: nn.Module, state: _State, scenes: Scenes, world: World
) -> float:
    """Take one step of the optimiser and return the loss of the whole batch before it."""
    random = torch.Generator().manual_seed(run.seed * 1_000_003 + len(state.losses))
    batch = torch.randint(len(scenes), (run.batch,), generator=random).tolist()
    loss = torch.stack(list(task.losses(shared, scenes, world.share(batch)).values())).sum()
    mean = world.mean(loss)
    if not abs(mean) < float("inf"):
        raise RuntimeError(f"{run.name}: the loss of step {len(state.losses)} is {mean}")
    state.optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(shared.parameters(), GRADIENT_NORM)
    state.optimiser.step()
    state.schedule.step()
    state.losses.append(mean)
    return mean


def _read_checkpoint(run: Run, path: Path) -> dict[str, Any] | None:
    """Return the content of this very run's checkpoint, None if there is none that can be read."""
    try:
        content = torch.load(path, weights_only=True)
    except Exception:  # a damaged file makes torch raise nearly anything: it counts as none
        return None
    if not isinstance(content, dict) or content.get("identity") != identity(run):
        return None
    return content if {"losses", "seconds", *_STATEFUL} <= content.keys() else None


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and put it there in one step."""
    unfinished = path.with_suffix(f"{path.suffix}.unfinished")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
