"""Goals: what the rows should show, and what they do show.

A speed-up is a peer's time over ours in the same row, the median of each; torchvision's rows are
contiguous, so in channels_last it is compared with those, and as it has no bfloat16 that type is
compared with its float16. Backward is the time with gradients less that without.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dcn_tvm.device import benchmark
from dcn_tvm.device.journal import Result
from dcn_tvm.device.rows import has_products

PEER, OURS = "torchvision", "dcn_tvm"
_HALF = ("float16", "bfloat16")
_SINGLE = ("float32", "tf32")
_ALL = (*_HALF, *_SINGLE)
_STANDS_IN = {"bfloat16": "float16"}

Key = tuple[str, str, str, str, str]  # op, problem, mode, precision, memory format


@dataclass(frozen=True)
class Goal:
    """What a geometric mean over rows should be.

    Attributes:
        text: in words.
        least: the mean should be at least this, or, if `most`, at most.
        most: see there.
        values: the values over which the mean is taken, by row.
    """

    text: str
    least: float
    values: dict[str, float]
    most: bool = False

    @property
    def mean(self) -> float | None:
        """The geometric mean, None if nothing was measured."""
        return statistics.geometric_mean(self.values.values()) if self.values else None

    @property
    def worst(self) -> str | None:
        """The row that is furthest from the goal."""
        if not self.values:
            return None
        choose = max if self.most else min
        return choose(self.values, key=lambda row: self.values[row])

    @property
    def reached(self) -> bool | None:
        """Whether the mean is as it should be; None if nothing was measured."""
        if self.mean is None:
            return None
        return self.mean <= self.least if self.most else self.mean >= self.least


class Times:
    """The medians of rows."""

    def __init__(self, rows: Iterable[Result]) -> None:
        self.rows = list(rows)
        self._found = {key_of(row): _medians(row) for row in self.rows}

    def ours(self, row: Result) -> float | None:
        """Our time with default choices."""
        return _medians(row).get(OURS)

    def of(self, row: Result, name: str, **changes: str) -> float | None:
        """The time of a contender in a row, or in one that differs by `changes`."""
        return self._found.get(key_of({**row, **changes}), {}).get(name)

    def peer(self, row: Result) -> float | None:
        """The time of the peer in the precision that it has, contiguous."""
        contiguous = {"memory_format": "contiguous"}
        own = self.of(row, PEER, **contiguous)
        stands_in = _STANDS_IN.get(row["precision"])
        if own is not None or stands_in is None:
            return own
        return self.of(row, PEER, precision=stands_in, **contiguous)


def goals(rows: Sequence[Result], tuned: Sequence[Result]) -> list[Goal]:
    """Return the goals and what was measured of them."""
    times, products = Times(rows), [row for row in rows if has_products(row["op"])]
    pools = [row for row in rows if not has_products(row["op"])]

    def forward(among: list[Result], precisions: Sequence[str]) -> list[Result]:
        return [r for r in among if r["mode"] == "forward" and r["precision"] in precisions]

    def both(among: list[Result], precisions: Sequence[str]) -> list[Result]:
        return [r for r in among if r["mode"] != "forward" and r["precision"] in precisions]

    def speedup(row: Result) -> float | None:
        return _over(times.peer(row), times.ours(row))

    def cost(row: Result) -> float | None:
        return _over(times.ours(row), times.of(row, _baseline(row)))

    def backward(row: Result) -> float | None:
        own, peer = (_difference(times, row, name) for name in (OURS, PEER))
        return _over(peer, own)

    def gain(row: Result) -> float | None:
        medians = _medians(row)
        return _over(medians.get(OURS), medians.get(f"{OURS} {benchmark.TUNED}"))

    return [
        Goal("forward, half types, times as fast as torchvision", 3.0,
             _values(forward(products, _HALF), speedup)),
        Goal("forward, half types, time over conv2d's", 1.5,
             _values(forward(products, _HALF), cost), most=True),
        Goal("forward, float32 and TF32, times as fast as torchvision", 2.5,
             _values(forward(products, _SINGLE), speedup)),
        Goal("forward + backward, times as fast as torchvision", 3.0,
             _values(both(products, _ALL), speedup)),
        Goal("pooling forward, times as fast as torchvision", 1.0,
             _values(forward(pools, ("float32",)), speedup)),
        Goal("pooling backward, times as fast as torchvision", 1.5,
             _values(both(pools, ("float32",)), backward)),
        Goal("tuned, times as fast as by default", 1.15, _values(tuned, gain)),
    ]  # fmt: skip


def key_of(row: Result) -> Key:
    """Return what tells a row from others."""
    op, problem, mode, precision, memory_format = (
        str(row[name]) for name in ("op", "problem", "mode", "precision", "memory_format")
    )
    return op, problem, mode, precision, memory_format


def _medians(row: Result) -> dict[str, float]:
    return {time["name"]: float(time["median_us"]) for time in row["times"]}


def _baseline(row: Result) -> str:
    return next((str(t["name"]) for t in row["times"] if t["role"] == "baseline"), "")


def _difference(times: Times, row: Result, name: str) -> float | None:
    """Return what backward alone takes."""
    whole, forward = times.of(row, name), times.of(row, name, mode="forward")
    if whole is None or forward is None or whole <= forward:
        return None
    return whole - forward


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def _values(rows: Iterable[Result], value: Callable[[Result], float | None]) -> dict[str, float]:
    found = {", ".join(key_of(row)): value(row) for row in rows}
    return {key: each for key, each in found.items() if each is not None}
