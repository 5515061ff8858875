"""The search proposes legal new points, repeatably, and soon finds a good one."""

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcn_tvm.knobs import Choice, Knobs
from dcn_tvm.space import Space, explore
from dcn_tvm.tuning.search import BATCH, Search, features

TRIALS = 64
SEEDS = (0, 1, 2)
Point = dict[str, Choice]
Cost = Callable[[Point], float | None]

# Tiles, rows and taps as deform_conv2d asks them: 612 points, of which the rows depend on the tile.
TILES = "14x2 8x3 6x4 28x1 12x2 8x2 16x1 8x1 4x4 4x2".split()


def ask(knobs: Knobs) -> None:
    tile = knobs.choice("register_tile", TILES, "14x2")
    step = math.lcm(int(tile.split("x")[0]), 8)
    knobs.choice("rows", range(step, 257, step), step)
    knobs.choice("taps", [1, 3, 9], 1)


def cost(point: Point) -> float:
    """Seconds: small tiles are slow, few rows too, and too many do not fit beside their taps."""
    rows, vectors = map(int, str(point["register_tile"]).split("x"))
    height, taps = int(point["rows"]), int(point["taps"])
    loads = 6 * (rows + vectors) / (rows * vectors)
    spilled = max(0, height * taps - 500) / 250
    return 1e-3 * (1 + loads + spilled + 80 / height + 0.8 / taps)


SPACE = explore(ask)
BEST = min(map(cost, SPACE.points()))
SMALL = explore(
    lambda knobs: knobs.choice("b", [1, 2, 3], 1) if knobs.choice("a", [0, 1], 0) else None
)


def run(space: Space, measure: Cost, trials: int = TRIALS, seed: int = 0) -> list[Point]:
    search = Search(space, trials, seed)
    return go_on(search, measure)


def go_on(search: Search, measure: Cost) -> list[Point]:
    tried = []
    while batch := search.ask():
        tried += batch
        search.tell([measure(point) for point in batch])
    return tried


def keys(points: list[Point]) -> set[frozenset[Any]]:
    return {frozenset(point.items()) for point in points}


def check_points(space: Space, points: list[Point], trials: int) -> None:
    assert len(points) == min(trials, space.size)
    assert len(keys(points)) == len(points)  # each once
    assert all(point in space for point in points)


@pytest.fixture(scope="module")
def searched() -> dict[int, list[Point]]:
    """Points by seed, in the order of being tried."""
    return {seed: run(SPACE, cost, seed=seed) for seed in SEEDS}


def test_the_objective_is_worth_a_search() -> None:
    costs = sorted(map(cost, SPACE.points()))
    good = sum(c <= 1.05 * BEST for c in costs)
    assert SPACE.size == 612
    assert len(SPACE.products) > 1
    assert good < SPACE.size / 64  # chance would need more trials than the search has
    assert cost(dict(SPACE.default)) > 1.1 * BEST


@pytest.mark.parametrize("seed", SEEDS)
def test_all_trials_are_legal_and_new(seed: int, searched: dict[int, list[Point]]) -> None:
    check_points(SPACE, searched[seed], TRIALS)


@pytest.mark.parametrize("seed", SEEDS)
def test_64_trials_come_within_5_percent_of_the_best(
    seed: int, searched: dict[int, list[Point]]
) -> None:
    assert min(map(cost, searched[seed])) <= 1.05 * BEST


def test_proposals_become_better(searched: dict[int, list[Point]]) -> None:
    """The model is asked after the first batches, which are taken at random."""
    for points in searched.values():
        costs = [cost(point) for point in points]
        assert np.median(costs[3 * BATCH :]) < np.median(costs[: 2 * BATCH])


def test_seeds_differ(searched: dict[int, list[Point]]) -> None:
    first = [json.dumps(points[:BATCH]) for points in searched.values()]
    assert len(set(first)) == len(SEEDS)


def test_a_seed_gives_the_same_points_again(searched: dict[int, list[Point]]) -> None:
    """Whatever the state of all other randomness, and between the turns of another search."""
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    search, other = Search(SPACE, 32, 1), Search(SPACE, 32, 2)
    tried = []
    while batch := search.ask():
        tried += batch
        search.tell([cost(point) for point in batch])
        np.random.rand()  # noqa: NPY002
        other.tell([cost(point) for point in other.ask()])
    assert tried == run(SPACE, cost, 32, seed=1)
    assert tried[: 3 * BATCH] == searched[1][: 3 * BATCH]


_FRESH = """
import json, sys
from tests.test_search import SPACE, cost, run
tried = run(SPACE, cost, 24, seed=2)
print(json.dumps([tried, "tvm.s_tir.tensor_intrin" in sys.modules]))
"""


def test_a_fresh_process_gives_the_same_points_and_imports_no_intrinsics() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FRESH],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=Path.cwd(),
        timeout=120,
    )
    tried, imported = json.loads(done.stdout.splitlines()[-1])
    assert tried == run(SPACE, cost, 24, seed=2)
    assert not imported


def test_no_stand_in_of_the_intrinsics_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM's own import of them, later, must find the real ones."""
    name = "tvm.s_tir.tensor_intrin"
    monkeypatch.delitem(sys.modules, name, raising=False)
    Search(SMALL, 4)
    assert name not in sys.modules
    here = object()
    monkeypatch.setitem(sys.modules, name, here)
    Search(SMALL, 4)
    assert sys.modules[name] is here


def test_randomness_of_others_is_left_alone() -> None:
    before, plain = np.random.get_state(), random.getstate()  # noqa: NPY002
    search = Search(SPACE, 24, 3)
    search.learn([(point, cost(point)) for point in SPACE.points()][:40])
    assert len(go_on(search, cost)) == 24
    after = np.random.get_state()  # noqa: NPY002
    assert random.getstate() == plain
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("trials", [1, 7, BATCH, BATCH + 1, 20])
def test_there_are_no_more_proposals_than_trials(trials: int) -> None:
    search = Search(SPACE, trials)
    check_points(SPACE, go_on(search, cost), trials)
    assert search.ask() == []


@pytest.mark.parametrize("trials", [1, 3, 4, 5, TRIALS])
def test_a_small_space_is_used_up_without_hanging(trials: int) -> None:
    start = time.monotonic()
    tried = run(SMALL, lambda point: 1e-3 * (2 + int(point.get("b", 0))), trials)
    check_points(SMALL, tried, trials)
    assert time.monotonic() - start < 20


def test_a_space_as_large_as_the_trials_is_tried_completely() -> None:
    space = explore(lambda knobs: (knobs.choice("a", range(5), 0), knobs.choice("b", range(5), 0)))
    tried = run(space, lambda point: 1e-3 * (1 + int(point["a"])), 25)
    check_points(space, tried, 25)


def test_a_space_of_one_point_has_that_one() -> None:
    assert run(explore(lambda knobs: None), lambda point: 1.0) == [{}]


def test_failures_are_survived_and_avoided() -> None:
    def fails(point: Point) -> bool:
        return int(point["rows"]) > 128

    tried = run(SPACE, lambda point: None if fails(point) else cost(point))
    check_points(SPACE, tried, TRIALS)
    best = min(cost(point) for point in SPACE.points() if not fails(point))
    assert min(cost(point) for point in tried if not fails(point)) <= 1.1 * best
    late = tried[2 * BATCH :]
    assert sum(map(fails, late)) < 0.25 * len(late)  # of the space half does


def test_a_search_where_all_fails_ends() -> None:
    check_points(SPACE, run(SPACE, lambda point: None, 40), 40)


def test_first_all_fail_and_then_some_succeed() -> None:
    count = 0

    def measure(point: Point) -> float | None:
        nonlocal count
        count += 1
        return None if count <= 3 * BATCH else cost(point)

    check_points(SPACE, run(SPACE, measure, 40), 40)


def test_points_of_other_spaces_teach_nothing() -> None:
    """Those of another version of the schedule, or of another tree; a search goes on as without."""
    foreign: list[Any] = [
        ({"register_tile": "14x2", "rows": 8, "taps": 1}, 1e-9),  # 8 rows are no whole tile
        ({"register_tile": "5x5", "rows": 8, "taps": 1}, 1e-9),
        ({"register_tile": "8x2", "rows": 8}, 1e-9),
        ({"register_tile": "8x2", "rows": 8, "taps": 1, "slice": 4}, None),
        ({}, 1e-9),
    ]
    search = Search(SPACE, 16, 0)
    search.learn(foreign)
    assert go_on(search, cost) == run(SPACE, cost, 16)
    search = Search(SPACE, 16, 0)
    search.learn([])
    assert go_on(search, cost) == run(SPACE, cost, 16)


def test_what_was_learned_helps() -> None:
    """The first batch of a search that knows a quarter of the space is better than one at random.

    None of what it knows is near the best, so it is more than remembered.
    """
    known = [point for point in SPACE.points() if cost(point) > 1.15 * BEST]
    known = random.Random(0).sample(known, SPACE.size // 4)
    for seed in SEEDS:
        taught, fresh = Search(SPACE, BATCH, seed), Search(SPACE, BATCH, seed)
        failed = [(point, None) for point in known[:5]]
        taught.learn([(point, cost(point)) for point in known[5:]] + failed)
        first = [cost(point) for point in taught.ask()]
        assert np.median(first) < np.median([cost(point) for point in fresh.ask()])


def test_the_fastest_points_are_the_parents_of_the_next() -> None:
    search = Search(SPACE, TRIALS)
    known = random.Random(1).sample(list(SPACE.points()), 40)
    search.learn([(known[0], None), *((point, cost(point)) for point in known[1:])])
    parents = search._database.get_top_k(search._workload, 40)
    seconds = [float(parent.run_secs[0]) for parent in parents]
    assert seconds == sorted(cost(point) for point in known[1:])


def test_features_tell_points_apart() -> None:
    rows = [tuple(features(SPACE, point)) for point in SPACE.points()]
    assert len(set(rows)) == SPACE.size
    assert len({len(row) for row in rows}) == 1
    point: Point = {"register_tile": "6x4", "rows": 24, "taps": 9}
    place = SPACE.knobs["rows"].index(24)
    tile = SPACE.knobs["register_tile"].index("6x4")
    assert features(SPACE, point) == [0, tile, 6, 4, place, 24, 2, 9]
    assert features(SMALL, {"a": 0}) == [0, 0, 0, -1, -1]  # no b is asked


def test_a_point_said_by_other_types_is_the_same_point() -> None:
    """JSON and TVM give integers of their own."""
    search = Search(SPACE, BATCH)
    search.learn([({"register_tile": "8x2", "rows": np.int64(8), "taps": 3.0}, 1e-3)])
    check_points(SPACE, search.ask(), BATCH)
