"""Scaling: how time and memory grow with one size, and where faster than it.

A curve is a provider's rows of one sweep. Between two of its points the size grows by `gx` and the
time by `gt`; `log gt / log gx` is the exponent of the growth, 1 if it is linear. With threads the
time should fall: the speed-up over `gx` is the efficiency, 1 if it is linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dcn_tvm.results.row import Row

THREADS = "threads"
STEEP = 1.1  # exponents up to here count as linear
EFFICIENT = 0.9  # efficiencies from here on too
SMALL_MIB = 1.0  # peaks below are the allocator's, not the op's


@dataclass(frozen=True)
class Curve:
    """The rows of one provider in one sweep, by position, of which there are at least two."""

    op: str
    mode: str
    sweep: str
    variant: str
    cache: str
    role: str
    device: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The curve in a few words, without its sweep."""
        cold = ", cold" if self.cache == "cold" else ""
        return f"{self.op} {self.mode}, {self.variant}{cold}"


@dataclass(frozen=True)
class Span:
    """A part of a curve: its sweep and the rows at both ends."""

    sweep: str
    first: Row
    last: Row

    @property
    def growth(self) -> float:
        """How many times the position grows."""
        return position(self.last) / position(self.first)

    def exponent(self, of: Callable[[Row], float | None]) -> float | None:
        """Return the exponent with which a quantity grows, None where it is not positive."""
        before, after = of(self.first), of(self.last)
        if not before or not after or before < 0 or after < 0:
            return None
        return math.log(after / before) / math.log(self.growth)

    @property
    def time(self) -> float:
        """The exponent of the time; with threads negative, −1 if the speed-up is linear."""
        return math.log(self.last.median_us / self.first.median_us) / math.log(self.growth)

    @property
    def speedup(self) -> float:
        """How many times faster the last row is."""
        return self.first.median_us / self.last.median_us

    @property
    def efficiency(self) -> float:
        """The speed-up over the growth of the position."""
        return self.speedup / self.growth

    @property
    def memory(self) -> float | None:
        """The exponent of the peak memory, None where it was not measured."""
        return self.exponent(lambda row: _peak(row))

    @property
    def slow(self) -> bool:
        """Whether time grows faster than linearly, beyond what p20 and p80 leave open."""
        if self.sweep == THREADS:
            at_best = self.first.p80_us / self.last.p20_us / self.growth
            return self.efficiency < EFFICIENT and at_best < 1
        at_least = math.log(self.last.p20_us / self.first.p80_us) / math.log(self.growth)
        return self.time > STEEP and at_least > 1

    @property
    def hungry(self) -> bool:
        """Whether memory grows faster than linearly."""
        return self.memory is not None and self.memory > STEEP


def position(row: Row) -> float:
    """Return where a row stands on the axis of its sweep.

    Raises:
        ValueError: the row is of no sweep, or its sizes lack what the sweep changes.
    """
    sizes = row.sizes
    if row.sweep == THREADS:
        return float(row.threads)
    names = {"pixels": ("height", "width"), "channels": _channels(row)}
    factors = [sizes.get(name) for name in names.get(row.sweep, (row.sweep,))]
    numbers = [factor for factor in factors if isinstance(factor, int)]
    if not row.sweep or not numbers or len(numbers) < len(factors):
        raise ValueError(f"a row of a sweep must have its sizes, got {row.sweep!r} of {row.op}")
    return float(math.prod(numbers))


def curves(rows: Iterable[Row]) -> list[Curve]:
    """Return the curves that rows of sweeps make, ours first, else in the order of the rows."""
    groups: dict[tuple[str | int, ...], list[Row]] = {}
    for row in rows:
        if row.sweep:
            threads = 0 if row.sweep == THREADS else row.threads
            where = (row.op, row.mode, row.sweep, row.variant, row.cache, row.device, threads)
            groups.setdefault(where, []).append(row)
    found = [_curve(group) for group in groups.values()]
    return sorted((c for c in found if len(c.rows) > 1), key=lambda curve: curve.role != "ours")


def whole(curve: Curve) -> Span:
    """Return the curve from its first to its last row."""
    return Span(curve.sweep, curve.rows[0], curve.rows[-1])


def steep_spans(curve: Curve, *, memory: bool = False) -> list[Span]:
    """Return where growth is worse than linear: neighbouring steps that all are, as one span."""
    spans: list[Span] = []
    for first, last in zip(curve.rows, curve.rows[1:], strict=False):
        step = Span(curve.sweep, first, last)
        if not (step.hungry if memory else step.slow):
            continue
        if spans and spans[-1].last is first:
            spans[-1] = Span(curve.sweep, spans[-1].first, last)
        else:
            spans.append(step)
    overall = whole(curve)
    # Steps within the noise can add up to what no step shows.
    return spans or [overall] * (overall.hungry if memory else overall.slow)


def _channels(row: Row) -> tuple[str]:
    return ("channels",) if "channels" in row.sizes else ("in_channels",)


def _curve(group: Sequence[Row]) -> Curve:
    """Return a curve of rows, the latest one at each position."""
    by_position = {position(row): row for row in sorted(group, key=lambda row: row.date)}
    rows = tuple(by_position[x] for x in sorted(by_position))
    one = rows[0]
    return Curve(one.op, one.mode, one.sweep, one.variant, one.cache, one.role, one.device, rows)


def _peak(row: Row) -> float | None:
    return None if row.peak_mib is None else max(row.peak_mib, SMALL_MIB)
