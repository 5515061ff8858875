"""Training: it teaches, goes on where it stopped, and learns the same in several processes."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dcn_tvm import training
from dcn_tvm.models import Backbone
from dcn_tvm.training import loop
from dcn_tvm.training.digits import Scenes, make_scenes
from dcn_tvm.training.loop import checkpoint_of, finish, load_network, load_outcome, train
from dcn_tvm.training.network import BLOCKS, DigitBackbone
from dcn_tvm.training.plan import TASKS, Run, TaskName, full_plan, quick_plan
from dcn_tvm.training.tasks import task_of
from dcn_tvm.training.world import World

ROOT = Path(__file__).parents[2]
ALONE = World()
TINY = Run("segmentation", True, 0, steps=4, batch=4, size=32, train_scenes=12, test_scenes=4)


def scenes_of(run: Run) -> Scenes:
    return make_scenes(run.train_scenes, run.size, train=True, seed=0)


def losses_of(run: Run, folder: Path) -> list[float]:
    folder.mkdir(exist_ok=True)
    losses: list[float] = []
    train(run, scenes_of(run), folder, ALONE, lambda _, loss: losses.append(loss))
    return losses


def tiny(task: TaskName, deformable: bool, **changes: Any) -> Run:
    return dataclasses.replace(TINY, task=task, deformable=deformable, **changes)


def test_the_small_network_is_a_backbone() -> None:
    network = DigitBackbone(BLOCKS)
    assert isinstance(network, Backbone)
    maps = network(torch.zeros(2, 1, 40, 48))
    assert {n: m.shape for n, m in maps.items()} == {
        name: (2, channels, 10, 12) for name, channels in network.out_channels.items()
    }


@pytest.mark.parametrize("task", TASKS)
def test_both_variants_begin_equal(task: TaskName, tmp_path: Path) -> None:
    first = [
        losses_of(tiny(task, deformable, steps=1), tmp_path)[0] for deformable in (False, True)
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    names = [
        {n for n, _ in task_of(tiny(task, d)).network(d).named_parameters()} for d in (False, True)
    ]
    assert names[0] < names[1]
    assert all("offset" in name for name in names[1] - names[0])


@pytest.mark.parametrize("task", TASKS)
def test_training_teaches(task: TaskName, tmp_path: Path) -> None:
    run = tiny(task, True, steps=24, batch=6, train_scenes=6, learning_rate=2e-3)
    losses = losses_of(run, tmp_path)
    assert sum(losses[-4:]) < 0.75 * sum(losses[:4])
    network = load_network(run, tmp_path)
    offsets = [p for n, p in network.named_parameters() if "offset" in n]
    assert all(p.abs().max() > 0 for p in offsets)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("task", ["segmentation", "rfcn"])
def test_a_run_goes_on_where_it_stopped(
    task: TaskName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    run = tiny(task, True)
    whole = losses_of(run, tmp_path / "whole")

    def stop(steps: int, _: float) -> None:
        if steps == 3:  # the third step's checkpoint is not written
            raise Interrupted

    (tmp_path / "cut").mkdir()
    with pytest.raises(Interrupted):
        train(run, scenes_of(run), tmp_path / "cut", ALONE, stop)
    torch.manual_seed(99)
    assert losses_of(run, tmp_path / "cut") == whole[2:]
    states = [load_network(run, tmp_path / name).state_dict() for name in ("whole", "cut")]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_damaged_checkpoint_or_one_of_another_run_is_not_used(tmp_path: Path) -> None:
    whole = losses_of(TINY, tmp_path)
    path = checkpoint_of(TINY, tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    assert losses_of(TINY, tmp_path) == whole
    longer = dataclasses.replace(TINY, steps=5)
    assert checkpoint_of(longer, tmp_path) == path
    assert len(losses_of(longer, tmp_path)) == 5
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_network(TINY, tmp_path)


def test_an_outcome_counts_for_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_outcome(TINY, tmp_path) is None
    network = train(TINY, scenes_of(TINY), tmp_path, ALONE, lambda *_: None)
    outcome = finish(TINY, network, scenes_of(TINY), tmp_path, ALONE)
    assert load_outcome(TINY, tmp_path) == outcome
    assert len(outcome.losses) == TINY.steps
    assert load_outcome(dataclasses.replace(TINY, steps=9), tmp_path) is None
    path = checkpoint_of(TINY, tmp_path)
    whole = path.read_bytes()
    for damaged in (whole[:1000], b""):
        path.write_bytes(damaged)
        assert load_outcome(TINY, tmp_path) is None
    path.write_bytes(whole)
    assert load_outcome(TINY, tmp_path) == outcome
    monkeypatch.setattr(loop, "GRADIENT_NORM", 1.0)  # another training
    assert load_outcome(TINY, tmp_path) is None
    monkeypatch.undo()
    (tmp_path / f"{TINY.name}.json").write_text("{")
    assert load_outcome(TINY, tmp_path) is None


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    run = tiny("segmentation", False)
    scenes = dataclasses.replace(scenes_of(run), images=torch.full((12, 1, 32, 32), torch.nan))
    with pytest.raises(RuntimeError, match="step 0 is nan"):
        train(run, scenes, tmp_path, ALONE, lambda *_: None)


def test_a_batch_must_be_shared_evenly() -> None:
    assert World(1, 2).share([1, 2, 3, 4]) == [3, 4]
    with pytest.raises(ValueError, match="multiple of 3 processes, got 4"):
        World(0, 3).share([1, 2, 3, 4])


def test_a_run_starts_with_the_backbone_of_another(tmp_path: Path) -> None:
    first = tiny("segmentation", False, upright=True)
    run = tiny("rfcn", True, start=first)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        losses_of(run, tmp_path)
    losses_of(first, tmp_path)
    still = train(
        dataclasses.replace(run, learning_rate=0.0),
        scenes_of(run),
        tmp_path,
        ALONE,
        lambda *_: None,
    )
    begun = still.get_submodule("backbone").state_dict()
    trained = load_network(first, tmp_path).get_submodule("backbone").state_dict()
    assert all(torch.equal(begun[name], value) for name, value in trained.items())
    assert all("conv_offset" in name for name in begun.keys() - trained.keys())
    assert run.name != first.name


@pytest.mark.parametrize("plan", [full_plan(), quick_plan()])
def test_the_plan_compares_like_with_like(plan: list[Run]) -> None:
    assert len({run.name for run in plan}) == len(plan)
    first, *compared = plan
    assert first.upright
    assert {run.task for run in compared} == set(TASKS)
    for run in compared:
        assert dataclasses.replace(run, deformable=not run.deformable) in compared
        assert run.start == first
        assert run.seed != first.seed
    pairs = {(run.task, run.seed) for run in full_plan()[1:]}
    assert len([task for task, _ in pairs if task == "segmentation"]) == 3


TOGETHER = """
import dataclasses, sys
from pathlib import Path
from rich.console import Console
from dcn_tvm import training

def short(run):
    start = short(run.start) if run.start else None
    return dataclasses.replace(run, steps=2, size=32, learning_rate=1e-3, start=start)

plan = [short(run) for run in training.quick_plan()]
training.run_all(plan, Path(sys.argv[1]), Console(quiet=True))
"""


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        result = subprocess.run(
            [*command, f"--nproc_per_node={processes}", str(script), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        assert (folder / "index.html").exists()
        outcomes = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*-*.json"))]
        assert len(outcomes) == 1 + 2 * len(TASKS)
        assert {outcome["processes"] for outcome in outcomes} == {processes}
        found[processes] = {o["run"]["task"]: (o["losses"], o["metrics"]) for o in outcomes}
    for task, (losses, metrics) in found[1].items():
        assert len(losses) == 2
        assert losses == pytest.approx(found[2][task][0], rel=1e-4), task
        assert metrics == pytest.approx(found[2][task][1], abs=0.05), task


def test_processes_that_cannot_share_every_batch_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def sixteen() -> Iterator[World]:
        yield World(0, 16)

    monkeypatch.setattr(training, "joined", sixteen)
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="multiple of 16 processes, got 8"):
        training.run_all(full_plan(), tmp_path, Console(quiet=True))
    with pytest.raises(ValueError, match="must have runs"):
        training.run_all([], tmp_path, Console(quiet=True))
