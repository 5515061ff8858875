"""Which rows, or columns, of the map a bin is made of, and with which shares: one class per rule.

A rule has two halves. Its *stages* say in tensor expressions what follows from each box. Its `fill`
emits, where a worker comes to a bin, the bin's *entries* along one axis: pixels, their shares, and
for gradients the slopes of the shares in the position. Entries lie inside the map, whatever the
box; a box that is not finite, or an offset that is NaN, has none, and makes the mean NaN.
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import TOO_FAR, Box, Expr, Frame, finite_or_nan

Buffers = Mapping[str, Any]


def int32(value: Expr) -> Expr:
    """A 32-bit constant or cast: pixels along one axis."""
    return tirx.const(value, "int32") if isinstance(value, int) else value.astype("int32")


class Cells:
    """Numbers that change while a nest runs, each a register of its own."""

    def __init__(self, dtype: str, *names: str) -> None:
        self._buffers = {name: T.sblock_alloc_buffer((1,), dtype, scope="local") for name in names}

    def __getitem__(self, name: str) -> Expr:
        return self._buffers[name][0]

    def __setitem__(self, name: str, value: Expr) -> None:
        T.buffer_store(self._buffers[name], value, [0])


@dataclass(frozen=True)
class Place:
    """A bin along one axis: of which box, where in the grid of bins, and how far it is moved."""

    k: Expr
    axis: int
    bin: Expr
    slot: Expr
    shift: Expr | None


class Rule(ABC):
    """What the rules share: the size of each bin, and whether its box is finite."""

    weighted = True

    def __init__(self, g: Frame, box: Box) -> None:
        self.g, self.box = g, box
        counts = g.bins

        def bin_size(k: Expr, axis: Expr) -> Expr:
            return box.size[k, axis] / g.real(g.side(axis, int32(counts[0]), int32(counts[1])))

        bins = g.per_axis("bin_size", bin_size)
        # A stage of its own: added to at once, the product would be fused and rounded otherwise.
        steps = g.per_bin("steps", lambda k, a, i: g.real(i) * bins[k, a], g.problem.accumulate, 1)

        def poison(k: Expr) -> Expr:
            # A size has a least value, which would hide a corner at minus infinity.
            values = [box.corners[k, c] for c in range(4)] + [box.size[k, a] for a in range(2)]
            return functools.reduce(operator.add, (finite_or_nan(g.real(v)) for v in values))

        self.bin_size, self.steps = bins, steps
        self.stages = {
            "poison": te.compute((g.boxes_count,), poison, name="poison"),
            "size": box.size,
        }

    @abstractmethod
    def capacity(self, size: Expr) -> Expr:
        """The most entries that a bin can have on a map of this size along the axis."""

    def open(self, slots: tuple[int, int], *, slopes: bool) -> None:
        """Allocate the entries of the worker that is being emitted: some bins on each axis."""
        dtype, sizes = self.g.problem.accumulate, (self.g.h, self.g.w)
        self.count = [T.sblock_alloc_buffer((slot,), "int32") for slot in slots]
        shapes = [(int64(s), self.capacity(n)) for s, n in zip(slots, sizes, strict=True)]
        self.pixels = [T.sblock_alloc_buffer(shape, "int32") for shape in shapes]
        self.shares = [T.sblock_alloc_buffer(shape, dtype) for shape in shapes]
        self.slopes = [T.sblock_alloc_buffer(shape, dtype) for shape in shapes] if slopes else []
        self.used = [T.sblock_alloc_buffer((slot,), "int32") for slot in slots]

    @abstractmethod
    def fill(self, b: Buffers, at: Place) -> None:
        """Emit the entries of a bin along one axis."""

    def pixel(self, at: Place, entry: Expr) -> Expr:
        """Row, or column, of an entry."""
        return self.pixels[at.axis][at.slot, entry]

    def share_of_each(self, b: Buffers, y: Place, x: Place) -> Expr:
        """1 / n of the mean: what a sample counts for; 0 where there is none."""
        used = self.used[0][y.slot] * self.used[1][x.slot]
        one = self.g.const(1) / self.g.real(te.max(used, int32(1)))
        return tirx.Select(used > 0, one, self.g.const(0))

    def size(self, axis: int) -> Expr:
        """Rows, or columns, of the map."""
        return (self.g.h, self.g.w)[axis].astype("int32")


class Pixels(Rule):
    """All pixels of a bin, each with the share 1: edges are rounded outwards.

    `limit` rows less are in reach: torchvision's position-sensitive pooling leaves out the last
    row and column. With `whole` the box starts at a whole number, which is added after rounding.
    """

    weighted = False

    def __init__(self, g: Frame, box: Box, *, whole: bool = True, limit: int = 0) -> None:
        super().__init__(g, box)

        def edge(k: Expr, axis: Expr, i: Expr, rounded: Any) -> Expr:
            start, step = box.start[k, axis], self.steps[k, axis, i]
            place = rounded(step) + start if whole else rounded(step + start)
            last = g.real(g.side(axis, g.h, g.w) - limit)
            return te.max(te.min(place, last), g.const(0))

        lower = g.per_bin("first", lambda k, a, i: edge(k, a, i, te.floor), "int32")
        upper = g.per_bin("stop", lambda k, a, i: edge(k, a, i + 1, te.ceil), "int32")
        self.stages |= {"first": lower, "stop": upper}

    def capacity(self, size: Expr) -> Expr:
        """Every row of the map."""
        return size

    def open(self, slots: tuple[int, int], *, slopes: bool) -> None:
        """Allocate where the bins begin and how long they are."""
        self.count = [T.sblock_alloc_buffer((slot,), "int32") for slot in slots]
        self.first = [T.sblock_alloc_buffer((slot,), "int32") for slot in slots]
        self.used = self.count

    def pixel(self, at: Place, entry: Expr) -> Expr:
        """Row, or column, of an entry: they follow one another."""
        return self.first[at.axis][at.slot] + entry

    def fill(self, b: Buffers, at: Place) -> None:
        """Emit first pixel and count."""
        first, stop = (b[name][at.k, at.axis, at.bin] for name in ("first", "stop"))
        finite = b["poison"][at.k] <= self.g.const(0)
        count = tirx.Select(finite, te.max(stop - first, int32(0)), int32(0))
        T.buffer_store(self.first[at.axis], first, [at.slot])
        T.buffer_store(self.count[at.axis], count, [at.slot])


class MovedPixels(Pixels):
    """All pixels of a bin, moved: each becomes two neighbours, whose shares add up inside the bin.

    All pixels move alike, so inside the bin shares are 1, and slopes cancel but at its ends.
    Pixels that leave the map count as 0.
    """

    weighted = True

    def pixel(self, at: Place, entry: Expr) -> Expr:
        """Row, or column, of an entry on the map."""
        return Rule.pixel(self, at, entry)

    def open(self, slots: tuple[int, int], *, slopes: bool) -> None:
        """Allocate the entries."""
        Rule.open(self, slots, slopes=slopes)
        self.whole = Cells("int32", "length", "low", "high", "begin")
        self.part = Cells(self.g.problem.accumulate, "moved", "fraction")

    def fill(self, b: Buffers, at: Place) -> None:
        """Emit the entries that are on the map."""
        g, whole, part, axis = self.g, self.whole, self.part, at.axis
        assert at.shift is not None
        first, stop = (b[name][at.k, axis, at.bin] for name in ("first", "stop"))
        finite = b["poison"][at.k] <= g.const(0)
        whole["length"] = tirx.Select(finite, te.max(stop - first, int32(0)), int32(0))
        part["moved"] = te.max(te.min(at.shift, g.const(TOO_FAR)), g.const(-TOO_FAR))
        part["fraction"] = part["moved"] - te.floor(part["moved"])
        whole["begin"] = first + te.floor(part["moved"]).astype("int32")
        whole["low"] = te.max(int32(0), -whole["begin"])
        entries = tirx.Select(whole["length"] > 0, whole["length"] + 1, int32(0))
        whole["high"] = te.min(entries, self.size(axis) - whole["begin"])
        T.buffer_store(self.used[axis], whole["length"], [at.slot])
        count = te.max(whole["high"] - whole["low"], int32(0))
        T.buffer_store(self.count[axis], count, [at.slot])
        with T.serial(0, count) as e:
            t = whole["low"] + e
            zero, one, fraction = g.const(0), g.const(1), part["fraction"]
            inner, outer = t < whole["length"], t > 0
            share = tirx.Select(inner, one - fraction, zero) + tirx.Select(outer, fraction, zero)
            T.buffer_store(self.pixels[axis], whole["begin"] + t, [at.slot, e])
            T.buffer_store(self.shares[axis], share, [at.slot, e])
            if self.slopes:
                slope = tirx.Select(outer, one, zero) - tirx.Select(inner, one, zero)
                T.buffer_store(self.slopes[axis], slope, [at.slot, e])


class Grid(Rule):
    """Bilinear samples on a grid in each bin; neighbouring samples share their entries.

    Samples stand at `(s + phase) bin / count`, `count` fixed, or with 0 as many as the bin is long.
    One further than `reach` beyond the centres of the outermost pixels counts as 0, others are
    moved onto the map. `counted`: the mean is over the samples that count, else over all.
    """

    def __init__(
        self,
        g: Frame,
        box: Box,
        *,
        count: int,
        phase: float = 0.5,
        reach: tuple[float, float] = (1.0, 1.0),
        counted: bool = False,
    ) -> None:
        super().__init__(g, box)
        self.fixed, self.phase, self.reach, self.counted = count, phase, reach, counted

        def number(k: Expr, axis: Expr) -> Expr:
            if count:
                return g.const(count)
            return te.max(te.min(te.ceil(self.bin_size[k, axis]), g.const(2.0**30)), g.const(0))

        numbers = g.per_axis("samples", number)

        def inverse(k: Expr) -> Expr:
            return g.const(1) / te.max(numbers[k, 0] * numbers[k, 1], g.const(1))

        def origin(k: Expr, axis: Expr, i: Expr) -> Expr:
            return box.start[k, axis] + self.steps[k, axis, i]

        self.stages |= {
            "bin_size": self.bin_size,
            "samples": numbers,
            "inverse": te.compute((g.boxes_count,), inverse, name="inverse"),
            "origin": g.per_bin("origin", origin, g.problem.accumulate),
        }

    def capacity(self, size: Expr) -> Expr:
        """Two for each sample, or every row of the map and the one beyond the last."""
        return int64(2 * self.fixed) if self.fixed else size + 1

    def open(self, slots: tuple[int, int], *, slopes: bool) -> None:
        """Allocate the entries, and the state of the walk over samples."""
        super().open(slots, slopes=slopes)
        self.whole = Cells("int32", "from", "to", "base", "last", "low", "gap", "used")
        self.real = Cells(self.g.problem.accumulate, "origin", "y", "fraction", "slope")

    def share_of_each(self, b: Buffers, y: Place, x: Place) -> Expr:
        """1 / n, n as `counted` says."""
        return super().share_of_each(b, y, x) if self.counted else b["inverse"][y.k]

    def fill(self, b: Buffers, at: Place) -> None:
        """Walk over the samples in rising order and emit their entries."""
        g, whole, real = self.g, self.whole, self.real
        origin = b["origin"][at.k, at.axis, at.bin]
        real["origin"] = origin if at.shift is None else origin + at.shift
        self._range(b, at)
        whole["base"], whole["last"], whole["used"] = int32(-2), int32(-4), int32(0)
        lowest = g.const(-self.reach[0])
        highest = g.real(self.size(at.axis)) + g.const(self.reach[1] - 1)
        with T.serial(whole["from"], whole["to"]) as s:
            bin_size, number = b["bin_size"][at.k, at.axis], b["samples"][at.k, at.axis]
            nth = g.real(s)
            if self.fixed:  # a box may be turned round: then the last sample is the lowest
                nth = tirx.Select(bin_size < g.const(0), number - g.const(1) - nth, nth)
            real["y"] = real["origin"] + ((nth + g.const(self.phase)) * bin_size) / number
            with T.If(tirx.all(real["y"] >= lowest, real["y"] <= highest)), T.Then():
                self._add(at)
        T.buffer_store(self.count[at.axis], whole["base"] + 2, [at.slot])
        T.buffer_store(self.used[at.axis], whole["used"], [at.slot])

    def _range(self, b: Buffers, at: Place) -> None:
        """Which samples can be on the map: a box may have more of them than can be walked over."""
        g, whole, number = self.g, self.whole, b["samples"][at.k, at.axis]
        finite = b["poison"][at.k] <= g.const(0)
        if self.fixed:
            whole["from"] = int32(0)
            whole["to"] = tirx.Select(finite, int32(self.fixed), int32(0))
            return
        step = b["bin_size"][at.k, at.axis] / te.max(number, g.const(1))
        size = g.real(self.size(at.axis))

        def bounded(sample: Expr) -> Expr:
            return te.max(te.min(sample, number), g.const(0)).astype("int32")

        start = te.floor((g.const(-self.reach[0]) - self.real["origin"]) / step) - g.const(2)
        stop = te.ceil((size + g.const(self.reach[1]) - self.real["origin"]) / step) + g.const(2)
        whole["from"] = bounded(start)
        whole["to"] = tirx.Select(finite, bounded(stop), int32(0))

    def _add(self, at: Place) -> None:
        """One sample: its two neighbours are entries base and base + 1, perhaps there already."""
        g, whole, real, axis = self.g, self.whole, self.real, at.axis
        last = self.size(axis) - 1
        clamped = tirx.any(real["y"] < g.const(0), real["y"] >= g.real(last))
        real["slope"] = tirx.Select(clamped, g.const(0), g.const(1))
        real["y"] = te.max(real["y"], g.const(0))
        whole["low"] = te.min(te.floor(real["y"]).astype("int32"), last)
        beyond = whole["low"] >= last
        real["fraction"] = tirx.Select(beyond, g.const(0), real["y"] - te.floor(real["y"]))
        whole["gap"] = te.min(whole["low"] - whole["last"], int32(2))
        whole["last"] = whole["low"]
        whole["base"] = whole["base"] + whole["gap"]
        whole["used"] = whole["used"] + 1
        base, gap, slot = whole["base"], whole["gap"], at.slot
        T.buffer_store(self.pixels[axis], whole["low"], [slot, base])
        T.buffer_store(self.pixels[axis], te.min(whole["low"] + 1, last), [slot, base + 1])
        lower = (self.shares[axis], g.const(1) - real["fraction"], real["fraction"])
        pairs = [lower]
        if self.slopes:
            pairs.append((self.slopes[axis], -real["slope"], real["slope"]))
        for buffer, low, high in pairs:
            before = tirx.if_then_else(gap < 2, buffer[slot, base], g.const(0))
            T.buffer_store(buffer, before + low, [slot, base])
            before = tirx.if_then_else(gap < 1, buffer[slot, base + 1], g.const(0))
            T.buffer_store(buffer, before + high, [slot, base + 1])
