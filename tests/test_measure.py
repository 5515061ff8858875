import time

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
