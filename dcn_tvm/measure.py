"""Time contenders fairly on a machine that is not quiet.

Frequencies drift and neighbours come and go, so a contender measured after another is measured
on another machine. Here all contenders rotate: every round gives each of them one turn, in a new
order, and two contenders are compared round by round.

A turn repeats a call until about `turn_us` have passed and keeps the mean, so that short calls
find their own data in the cache, as they would in a loop; long calls are timed one by one.
"""

from __future__ import annotations

import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

MAX_CALLS_PER_TURN = 1000


@dataclass(frozen=True)
class Timing:
    """The times of one contender: round number → mean time of a call in microseconds."""

    rounds: Mapping[int, float] = field(repr=False)

    @property
    def median_us(self) -> float:
        """The median time of a call in microseconds."""
        return statistics.median(self.rounds.values())

    @property
    def p20_us(self) -> float:
        """The time that a fifth of the rounds stayed below, in microseconds."""
        return self._quintile(0)

    @property
    def p80_us(self) -> float:
        """The time that four fifths of the rounds stayed below, in microseconds."""
        return self._quintile(3)

    def _quintile(self, index: int) -> float:
        times_us = list(self.rounds.values())
        if len(times_us) == 1:
            return times_us[0]
        return statistics.quantiles(times_us, n=5, method="inclusive")[index]


def ratio(timing: Timing, baseline: Timing) -> float:
    """Return how many times longer `timing` takes: the median of the rounds' own ratios.

    Only rounds in which both took part count, so a slow spell of the machine that covers a
    round cancels out.

    Raises:
        ValueError: the two were never measured in the same round.

    Example:
        >>> ratio(Timing({0: 4.0, 1: 8.0}), Timing({0: 2.0, 1: 4.0}))
        2.0
    """
    shared = timing.rounds.keys() & baseline.rounds.keys()
    if not shared:
        raise ValueError("a ratio needs timings of one rotation; these share no round")
    return statistics.median(timing.rounds[r] / baseline.rounds[r] for r in shared)


def rotate(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 5.0,
    min_rounds: int = 3,
    max_rounds: int = 100,
    turn_us: float = 5000.0,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time every contender in interleaved rounds and return a `Timing` for each name.

    Every contender may spend the same share of `seconds`; one that has spent it leaves the
    rotation, but not before `min_rounds`. So a slow contender is measured a few times and does
    not starve the fast ones.

    Args:
        contenders: name → the call to time, without arguments.
        seconds: the time for all of them together, as far as `min_rounds` allows.
        min_rounds: turns that every contender gets, however slow.
        max_rounds: turns after which more would not tell more.
        turn_us: short calls are repeated until a turn takes about this long.
        seed: decides the order within the rounds.

    Raises:
        ValueError: `min_rounds` is not in 1 … `max_rounds`.

    Example:
        >>> sorted(rotate({"sum": lambda: sum(range(99)), "len": lambda: len("dcn")}, seconds=0.01))
        ['len', 'sum']
    """
    turns = {name: turn_of(call, turn_us) for name, call in contenders.items()}
    return rotate_turns(
        turns, seconds=seconds, min_rounds=min_rounds, max_rounds=max_rounds, seed=seed
    )


def turn_of(call: Callable[[], object], turn_us: float = 5000.0) -> Callable[[], float]:
    """Warm a call up and return a turn of it: the mean microseconds of as many calls as fill it."""
    with _no_garbage_collection():
        return functools.partial(_turn_us, call, _calls_per_turn(call, turn_us))


def turn_after(before: Callable[[], object], call: Callable[[], object]) -> Callable[[], float]:
    """Warm a call up and return a turn of one call, timed without what is done before it."""

    def turn() -> float:
        before()
        return _turn_us(call, 1)

    call()
    return turn


def rotate_turns(
    turns: Mapping[str, Callable[[], float]],
    *,
    seconds: float,
    min_rounds: int = 3,
    max_rounds: int = 100,
    seed: int = 0,
) -> dict[str, Timing]:
    """Rotate what times itself, such as kernels on another machine.

    Args:
        turns: name → takes one turn and returns the mean time of a call in microseconds.
        seconds: as in `rotate`, as are the others.
        min_rounds: see there.
        max_rounds: see there.
        seed: see there.

    Raises:
        ValueError: `min_rounds` is not in 1 … `max_rounds`.
    """
    if not 1 <= min_rounds <= max_rounds:
        raise ValueError(f"min_rounds must be in 1 … max_rounds, got {min_rounds} and {max_rounds}")
    order = list(turns)
    shuffle = random.Random(seed).shuffle
    rounds: dict[str, dict[int, float]] = {name: {} for name in order}
    left_s = dict.fromkeys(order, seconds / max(len(order), 1))
    with _no_garbage_collection():
        for number in range(max_rounds):
            shuffle(order)
            for name in order:
                if number < min_rounds or left_s[name] > 0:
                    start = time.perf_counter()
                    rounds[name][number] = turns[name]()
                    left_s[name] -= time.perf_counter() - start
    return {name: Timing(rounds[name]) for name in turns}


def _turn_us(call: Callable[[], object], calls: int) -> float:
    """Return the mean microseconds of `calls` calls."""
    start_ns = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start_ns) / 1e3 / calls


def _calls_per_turn(call: Callable[[], object], turn_us: float) -> int:
    """Warm `call` up and return how many calls fill a turn."""
    once_us = _turn_us(call, 1)
    if once_us < turn_us:  # the first call paid for caches and page faults: ask again
        once_us = min(once_us, _turn_us(call, 3))
    return max(1, min(MAX_CALLS_PER_TURN, round(turn_us / max(once_us, 1e-3))))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's cycle collector from running inside a turn."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
