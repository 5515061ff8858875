import time
from collections.abc import Callable

import pytest

from dcn_tvm import measure
from dcn_tvm.measure import Timing


def test_every_round_gives_every_contender_a_turn() -> None:
    turns: list[str] = []
    calls = {name: (lambda name=name: turns.append(name)) for name in "abc"}
    timings = measure.rotate(calls, seconds=9, min_rounds=4, max_rounds=4, turn_us=0)
    rounds = ["".join(sorted(turns[i : i + 3])) for i in range(len(turns) - 12, len(turns), 3)]
    assert rounds == ["abc"] * 4
    assert all(set(timing.rounds) == {0, 1, 2, 3} for timing in timings.values())
    assert len({tuple(turns[i : i + 3]) for i in range(len(turns) - 12, len(turns), 3)}) > 1


def test_a_slow_contender_leaves_and_the_fast_one_goes_on() -> None:
    calls = {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.0005)}
    timings = measure.rotate(calls, seconds=0.1, min_rounds=2, turn_us=500)
    assert 2 <= len(timings["slow"].rounds) <= 4
    assert len(timings["fast"].rounds) > len(timings["slow"].rounds)
    assert 20e3 <= timings["slow"].median_us


def test_short_calls_are_repeated_to_fill_a_turn() -> None:
    count = 0

    def call() -> None:
        nonlocal count
        count += 1

    measure.rotate({"call": call}, seconds=1, min_rounds=1, max_rounds=1, turn_us=2000)
    assert count > 100


def test_the_ratio_cancels_a_slow_spell_of_the_machine() -> None:
    baseline = Timing({0: 10.0, 1: 1000.0, 2: 10.0, 3: 10.0})
    assert measure.ratio(Timing({0: 20.0, 1: 2000.0, 2: 20.0}), baseline) == 2.0
    with pytest.raises(ValueError, match="one rotation"):
        measure.ratio(Timing({7: 1.0}), baseline)


def test_percentiles() -> None:
    timing = Timing({i: float(us) for i, us in enumerate([5, 1, 4, 2, 3, 6])})
    assert (timing.p20_us, timing.median_us, timing.p80_us) == (2.0, 3.5, 5.0)
    assert Timing({0: 3.0}).p80_us == 3.0


def test_rounds_must_be_possible() -> None:
    with pytest.raises(ValueError, match="min_rounds"):
        measure.rotate({}, min_rounds=0)


class Clock:
    """A clock which stands still but for the turns that are taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.turns: list[str] = []
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now_s)

    def turn(self, name: str, lasts_s: float, says_us: float) -> Callable[[], float]:
        def take() -> float:
            self.now_s += lasts_s
            self.turns.append(name)
            return says_us + len(self.turns)

        return take


def test_what_times_itself_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    turns = {name: clock.turn(name, 1.0, 100.0 * i) for i, name in enumerate("abc")}
    timings = measure.rotate_turns(turns, seconds=1e9, max_rounds=4)
    assert list(timings) == ["a", "b", "c"]
    for i, name in enumerate("abc"):
        said = [100.0 * i + n for n, turn in enumerate(clock.turns, start=1) if turn == name]
        assert list(timings[name].rounds.values()) == said
        assert list(timings[name].rounds) == [0, 1, 2, 3]


def test_self_timed_turns_rotate_in_orders_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        clock = Clock(monkeypatch)
        turns = {name: clock.turn(name, 1.0, 1.0) for name in "abc"}
        measure.rotate_turns(turns, seconds=1e9, max_rounds=12, seed=seed)
        return [tuple(clock.turns[i : i + 3]) for i in range(0, 36, 3)]

    assert all(sorted(order) == ["a", "b", "c"] for order in orders(0))
    assert len(set(orders(0))) > 3
    assert orders(0) == orders(0) != orders(1)


def test_a_share_is_spent_by_the_time_that_turns_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the times they say: those of another machine leave out compiling and the way there."""
    clock = Clock(monkeypatch)
    turns = {
        "slow": clock.turn("slow", 10.0, 1.0),
        "middle": clock.turn("middle", 1.0, 1e9),
        "fast": clock.turn("fast", 0.5, 1.0),
    }
    timings = measure.rotate_turns(turns, seconds=15.0, min_rounds=2, max_rounds=8)
    counts = {name: len(timing.rounds) for name, timing in timings.items()}
    assert counts == {"slow": 2, "middle": 5, "fast": 8}  # of 5 s each; 2 and 8 are the bounds
    assert measure.ratio(timings["slow"], timings["fast"]) > 0


def test_a_turn_that_fails_is_not_hidden() -> None:
    def fail() -> float:
        raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="gone"):
        measure.rotate_turns({"a": lambda: 1.0, "b": fail}, seconds=1.0)


@pytest.mark.parametrize(("least", "most"), [(0, 5), (6, 5), (-1, -1)])
def test_rounds_of_self_timed_turns_must_be_possible(least: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"min_rounds must be .* got {least} and {most}"):
        measure.rotate_turns({}, seconds=1.0, min_rounds=least, max_rounds=most)


def test_nobody_takes_no_turns() -> None:
    assert measure.rotate_turns({}, seconds=1.0) == {}
