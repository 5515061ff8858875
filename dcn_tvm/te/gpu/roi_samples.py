"""Bilinear samples on a grid in each bin, on a GPU: lists where they fit, else sample by sample.

Neighbouring samples share their pixels, so a list is about half as long as there are corners, and
a bin has a quarter of the reads, or of the atomic additions, that its samples have corners. How
long a list may be is known before a box is: see `fits`.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te.gpu.grid import Cells, int32
from dcn_tvm.te.gpu.roi_bins import Bin, MovedTables, PixelTables, Tables, Visit, entry_of
from dcn_tvm.te.gpu.roi_boxes import Values
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_bins import Grid, MovedPixels, Pixels, Rule

ADAPTIVE_ENTRIES = 24  # of a list whose length the box decides: bins of 20 pixels and more are rare
MARGIN = 4  # entries of a bin beyond its size in pixels


class GridTables(Tables):
    """Lists of [slot, entry], and what a walk over the samples needs where they do not fit."""

    rule: Grid

    def __init__(
        self, g: Frame, rule: Grid, values: Values, slots: tuple[int, int], bytes_of_lists: int
    ) -> None:
        super().__init__(g, rule, values, slots)
        wide = 8 if g.problem.accumulate == "float64" else 4
        room = bytes_of_lists // (sum(slots) * (4 + (2 if g.problem.moves else 1) * wide))
        self.capacity = 2 * rule.fixed if rule.fixed else min(ADAPTIVE_ENTRIES, room)
        if self.capacity > room or self.capacity <= MARGIN - 2 * bool(rule.fixed):
            self.capacity = 0
        self.lists = self.capacity > 0
        self.walks = not self.lists or not rule.fixed

    def open(self, scope: str, *, slopes: bool) -> None:
        """Allocate the tables."""
        super().open(scope, slopes=slopes)
        if self.lists:
            self.count = self.per_slot("int32")
            self.pixels = self.per_slot("int32", self.capacity)
            self.shares = self.per_slot(self.real, self.capacity)
            self.slope = self.per_slot(self.real, self.capacity) if slopes else []
        if self.walks:
            self.origin = self.per_slot(self.real)
            self.first, self.stop = self.per_slot("int32"), self.per_slot("int32")
        self.used = self.per_slot("int32") if self.rule.counted else []
        self.box = T.sblock_alloc_buffer((4,), self.real, scope=self.scope)
        self.whole = Cells("int32", "from", "to", "base", "last", "low", "gap", "used")
        self.part = Cells(self.real, "origin", "y", "fraction", "slope", "bin", "number")
        self.kept = Cells(self.real, "low", "high", "slope_low", "slope_high", "finite", "share_x")
        self.corner = Cells("int32", "low_y", "high_y", "low_x", "high_x")
        self.weight = Cells(self.real, "y", "x", "slope_y", "slope_x")

    def fill_box(self, k: Expr) -> None:
        """The share of the mean, and bin sizes and numbers of samples."""
        super().fill_box(k)
        for axis in range(2):
            T.buffer_store(self.box, self.value("bin_size", k, axis), [axis])
            T.buffer_store(self.box, self.value("samples", k, axis), [2 + axis])

    def _mean(self, k: Expr) -> Expr:
        poison = super()._mean(k)
        return poison if self.rule.counted else self.value("inverse", k) + poison

    def _share_of_each(self, y: Expr, x: Expr) -> Expr:
        if not self.rule.counted:
            return self.mean[0]
        return self._of_used(self.used[0][y] * self.used[1][x])

    def _fits(self, y: Expr, x: Expr) -> Expr:
        """Whether lists hold all entries; NaN has none. Samples are at most a pixel apart."""
        limit = self.g.const(self.capacity - MARGIN)
        return tirx.Not(tirx.any(y > limit, x > limit))

    # -- one slot ----------------------------------------------------------------------------

    def _fill(self, at: Bin) -> None:
        g, whole, part = self.g, self.whole, self.part
        origin = self.value("origin", at.k, at.axis, at.bin)
        part["origin"] = origin if at.shift is None else origin + at.shift
        part["bin"] = self.value("bin_size", at.k, at.axis)
        part["number"] = self.value("samples", at.k, at.axis)
        self.kept["finite"] = self.value("poison", at.k)
        self._range(at)
        if self.walks:
            T.buffer_store(self.origin[at.axis], part["origin"], [at.slot])
            T.buffer_store(self.first[at.axis], whole["from"], [at.slot])
            T.buffer_store(self.stop[at.axis], whole["to"], [at.slot])
        if not self.lists and not self.rule.counted:
            return
        if self.lists and self.walks:
            other = self.value("bin_size", at.k, 1 - at.axis)
            whole["to"] = tirx.Select(self._fits(part["bin"], other), whole["to"], int32(0))
        whole["base"], whole["last"], whole["used"] = int32(-2), int32(-4), int32(0)
        for name in ("low", "high", "slope_low", "slope_high"):
            self.kept[name] = g.const(0)
        with T.serial(whole["from"], whole["to"]) as s:
            part["y"] = self._position(s)
            with T.If(self._reached(at.axis)), T.Then():
                whole["used"] = whole["used"] + 1
                if self.lists:
                    self._add(at)
        if self.lists:
            T.buffer_store(self.count[at.axis], whole["base"] + 2, [at.slot])
        if self.rule.counted:
            T.buffer_store(self.used[at.axis], whole["used"], [at.slot])

    def _range(self, at: Bin) -> None:
        """Which samples can be on the map: a box may have more of them than can be walked over."""
        g, whole, part, rule = self.g, self.whole, self.part, self.rule
        finite = self.kept["finite"] <= g.const(0)
        if rule.fixed:
            whole["from"] = int32(0)
            whole["to"] = tirx.Select(finite, int32(rule.fixed), int32(0))
            return
        step = part["bin"] / te.max(part["number"], g.const(1))
        size = g.real(self.size(at.axis))

        def bounded(sample: Expr) -> Expr:
            return te.max(te.min(sample, part["number"]), g.const(0)).astype("int32")

        start = te.floor((g.const(-rule.reach[0]) - part["origin"]) / step) - g.const(2)
        stop = te.ceil((size + g.const(rule.reach[1]) - part["origin"]) / step) + g.const(2)
        whole["from"] = bounded(start)
        whole["to"] = tirx.Select(finite, bounded(stop), int32(0))

    def _position(self, sample: Expr) -> Expr:
        g, part = self.g, self.part
        nth = g.real(sample)
        if self.rule.fixed:  # a box may be turned round: then the last sample is the lowest
            nth = tirx.Select(part["bin"] < g.const(0), part["number"] - g.const(1) - nth, nth)
        return part["origin"] + ((nth + g.const(self.rule.phase)) * part["bin"]) / part["number"]

    def _reached(self, axis: int) -> Expr:
        before, beyond = self.rule.reach
        highest = self.g.real(self.size(axis)) + self.g.const(beyond - 1)
        return tirx.all(self.part["y"] >= self.g.const(-before), self.part["y"] <= highest)

    def _cell(self, axis: int) -> Expr:
        """Set cell, fraction and slope of a sample; return the last row of the map."""
        g, whole, part = self.g, self.whole, self.part
        last = self.size(axis) - 1
        clamped = tirx.any(part["y"] < g.const(0), part["y"] >= g.real(last))
        part["slope"] = tirx.Select(clamped, g.const(0), g.const(1))
        part["y"] = te.max(part["y"], g.const(0))
        whole["low"] = te.min(te.floor(part["y"]).astype("int32"), last)
        beyond = whole["low"] >= last
        part["fraction"] = tirx.Select(beyond, g.const(0), part["y"] - te.floor(part["y"]))
        return last

    def _add(self, at: Bin) -> None:
        """One sample: its two neighbours are entries base and base + 1, perhaps there already.

        The sums of these two entries are in registers too: nothing is read that was just written.
        """
        g, whole, part, kept = self.g, self.whole, self.part, self.kept
        last = self._cell(at.axis)
        whole["gap"] = te.min(whole["low"] - whole["last"], int32(2))
        whole["last"] = whole["low"]
        whole["base"] = whole["base"] + whole["gap"]
        base, gap, slot = whole["base"], whole["gap"], at.slot
        T.buffer_store(self.pixels[at.axis], whole["low"], [slot, base])
        T.buffer_store(self.pixels[at.axis], te.min(whole["low"] + 1, last), [slot, base + 1])
        sums = [(self.shares, "low", "high", g.const(1) - part["fraction"], part["fraction"])]
        if self.slopes:
            sums.append((self.slope, "slope_low", "slope_high", -part["slope"], part["slope"]))
        for buffers, low, high, to_low, to_high in sums:
            buffer, zero = buffers[at.axis], g.const(0)
            before = tirx.Select(gap == 0, kept[low], tirx.Select(gap == 1, kept[high], zero))
            kept[low] = before + to_low
            kept[high] = tirx.Select(gap == 0, kept[high], zero) + to_high
            T.buffer_store(buffer, kept[low], [slot, base])
            T.buffer_store(buffer, kept[high], [slot, base + 1])

    # -- one bin -----------------------------------------------------------------------------

    def entries(self, y: Expr, x: Expr, visit: Visit) -> None:
        """Visit the entries of the lists, or the corners of the samples."""
        if not self.walks:
            self._listed(y, x, visit)
        elif not self.lists:
            self._walked(y, x, visit)
        else:
            with T.If(self._fits(self.box[0], self.box[1])):
                with T.Then():
                    self._listed(y, x, visit)
                with T.Else():
                    self._walked(y, x, visit)

    def _listed(self, y: Expr, x: Expr, visit: Visit) -> None:
        at, now = self.at, self.now
        at["count_y"], at["count_x"] = self.count[0][y], self.count[1][x]
        with T.serial(0, at["count_y"]) as i:
            # In a register: after each atomic addition the compiler would read memory again.
            self.corner["low_y"] = self.pixels[0][y, i]
            row = int64(self.corner["low_y"]) * self.g.w
            now["share_y"] = self.shares[0][y, i]
            if self.slopes:
                now["slope_y"] = self.slope[0][y, i]
            with T.serial(0, at["count_x"]) as j:
                self.corner["low_x"] = self.pixels[1][x, j]
                pixel = row + int64(self.corner["low_x"])
                slope_x = self.slope[1][x, j] if self.slopes else None
                visit(entry_of(self, pixel, self.shares[1][x, j], slope_x))

    def _walked(self, y: Expr, x: Expr, visit: Visit) -> None:
        at, now = self.at, self.now
        at["first_y"], at["count_y"] = self.first[0][y], self.stop[0][y]
        at["first_x"], at["count_x"] = self.first[1][x], self.stop[1][x]

        def corners(axis: int, slot: Expr, sample: Expr, each: Any) -> None:
            name = "yx"[axis]
            self.part["origin"] = self.origin[axis][slot]
            self.part["bin"], self.part["number"] = self.box[axis], self.box[2 + axis]
            self.part["y"] = self._position(sample)
            with T.If(self._reached(axis)), T.Then():
                last = self._cell(axis)
                self.corner[f"low_{name}"] = self.whole["low"]
                self.corner[f"high_{name}"] = te.min(self.whole["low"] + 1, last)
                self.weight[name] = self.part["fraction"]
                self.weight[f"slope_{name}"] = self.part["slope"]
                with T.serial(0, 2) as side:
                    low = side == 0
                    fraction, slope = self.weight[name], self.weight[f"slope_{name}"]
                    each(
                        tirx.Select(low, self.corner[f"low_{name}"], self.corner[f"high_{name}"]),
                        tirx.Select(low, self.g.const(1) - fraction, fraction),
                        tirx.Select(low, -slope, slope),
                    )

        def row(pixel: Expr, share: Expr, slope: Expr) -> None:
            now["share_y"] = share
            if self.slopes:
                now["slope_y"] = slope
            begin = int64(pixel) * self.g.w

            def corner(pixel: Expr, share: Expr, slope: Expr) -> None:
                self.kept["share_x"] = share
                visit(entry_of(self, begin + int64(pixel), self.kept["share_x"], slope))

            with T.serial(at["first_x"], at["count_x"]) as s:
                corners(1, x, s, corner)

        with T.serial(at["first_y"], at["count_y"]) as s:
            corners(0, y, s, row)


def tables_of(
    g: Frame, rule: Rule, values: Values, slots: tuple[int, int], bytes_of_lists: int
) -> Tables:
    """The tables of a rule, whose lists take at most so many bytes."""
    if isinstance(rule, Grid):
        return GridTables(g, rule, values, slots, bytes_of_lists)
    if isinstance(rule, MovedPixels):
        return MovedTables(g, rule, values, slots)
    assert isinstance(rule, Pixels)
    return PixelTables(g, rule, values, slots)
