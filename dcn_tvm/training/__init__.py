"""Networks of the paper, small, trained on handwritten digits: what deformable layers are good for.

`dcn-tvm train`, or with several processes `torchrun --nproc_per_node=2 -m dcn_tvm train`: every run
of a plan, plain against deformable, then a report. What was interrupted goes on where it stopped.

Source: Dai et al., Deformable Convolutional Networks, tables 1 to 3, on other data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

try:  # now, and not when the first network is to be judged
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
    import pycocotools  # noqa: F401
    import sklearn  # noqa: F401
    import torchmetrics  # noqa: F401
except ImportError as error:
    message = f"dcn_tvm.training needs {error.name}: pip install 'dcn_tvm[train]'"
    raise ImportError(message) from error

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from dcn_tvm.training import report
from dcn_tvm.training.digits import UPRIGHT, VARIED, Scenes, Variation, make_scenes
from dcn_tvm.training.loop import Outcome, finish, forget, load_outcome, train
from dcn_tvm.training.plan import Run, full_plan, quick_plan
from dcn_tvm.training.tasks import task_of
from dcn_tvm.training.world import World, joined

__all__ = ["Run", "full_plan", "quick_plan", "run_all"]

TRAIN_SEED, TEST_SEED = 0, 1


def run_all(
    plan: Sequence[Run], folder: Path, console: Console, *, fresh: bool = False
) -> Path | None:
    """Train what the plan says and has not been trained yet, and write the report.

    Args:
        plan: the runs.
        folder: gets a checkpoint and an outcome of each run, `results.json` and `index.html`.
        console: is told how far it is and what came out, by the first process.
        fresh: whether to begin anew, and not where an earlier call stopped.

    Returns:
        The path of the report; None in processes other than the first.

    Raises:
        OSError: the folder cannot be made.
        ValueError: the plan is empty, or the processes cannot share a batch evenly.
        RuntimeError: a loss is no longer finite.
    """
    if not plan:
        raise ValueError("a plan must have runs, got none")
    folder.mkdir(parents=True, exist_ok=True)
    with joined() as world:
        for run in plan:
            world.share(range(run.batch))  # an error now, and not after minutes
        if fresh and world.first:
            for run in plan:
                forget(run, folder)
        world.wait()
        outcomes = _train_all(plan, folder, console, world)
        if not world.first:
            return None
        with console.status("drawing the report"):
            return report.write(outcomes, _test_scenes(plan[-1]), folder, console)


def _train_all(plan: Sequence[Run], folder: Path, console: Console, world: World) -> list[Outcome]:
    """Return the outcome of every run; in processes other than the first, nothing."""
    finished = {run.name: load_outcome(run, folder) for run in plan}
    world.wait()  # nobody writes an outcome before everybody has seen which there are
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),  # of 80 columns; the note needs the rest
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not world.first) as progress:
        whole = progress.add_task("all networks", total=len(plan), note="")
        for run in plan:
            outcome = finished[run.name]
            if outcome is None:
                outcome = _train_one(run, folder, world, progress)
            finished[run.name] = outcome
            progress.advance(whole)
    return [outcome for outcome in finished.values() if outcome is not None]


def _train_one(run: Run, folder: Path, world: World, progress: Progress) -> Outcome | None:
    line = progress.add_task(run.name, total=run.steps, note="making scenes")
    network = train(
        run,
        _train_scenes(run),
        folder,
        world,
        lambda steps, loss: progress.update(line, completed=steps, note=f"loss {loss:.3f}"),
    )
    outcome = None
    if world.first:
        outcome = finish(run, network, _test_scenes(run), folder, world)
        score = task_of(run).score
        progress.update(line, note=f"{score} {outcome.metrics[score]:.3f}")
    world.wait()
    return outcome


def _train_scenes(run: Run) -> Scenes:
    return make_scenes(
        run.train_scenes, run.size, train=True, seed=TRAIN_SEED, variation=_variation(run)
    )


def _test_scenes(run: Run) -> Scenes:
    return make_scenes(
        run.test_scenes, run.size, train=False, seed=TEST_SEED, variation=_variation(run)
    )


def _variation(run: Run) -> Variation:
    return UPRIGHT if run.upright else VARIED
