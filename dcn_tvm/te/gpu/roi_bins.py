"""The entries of bins on a GPU: what te/roi_bins.py says, for threads that share what they find.

A rule there fills lists of entries along one axis; here one thread does so for each row, or column,
of bins, the lists lie in a block's shared memory, and all threads then walk over them for their
channels. A list must not be longer than that memory allows: pixels that follow one another need
none, samples of a bin that is too large are walked over directly, four corners for each.

`scope` is "shared" for tables of a block, "local" for those of a thread that works alone, which has
one slot on each axis and no lists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te.gpu.grid import Cells, int32
from dcn_tvm.te.gpu.roi_boxes import Values
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import TOO_FAR, Expr, Frame
from dcn_tvm.te.roi_bins import Rule

Pair = tuple[Expr, Expr]


@dataclass(frozen=True)
class Bin:
    """A bin along one axis: of which box, where in the grid, its list, and how far it is moved."""

    k: Expr
    axis: int
    bin: Expr
    slot: Expr
    shift: Expr | None


@dataclass(frozen=True)
class Entry:
    """A pixel that a bin is made of: its share, None for 1, and the share's slopes along y, x."""

    pixel: Expr
    share: Expr | None
    moves: Pair | None


Visit = Callable[[Entry], None]


class Tables(ABC):
    """What a block knows of its bins, by axis and slot; a mean's share and NaN apart."""

    def __init__(self, g: Frame, rule: Rule, values: Values, slots: tuple[int, int]) -> None:
        self.g, self.rule, self.values, self.slots = g, rule, values, slots
        self.slopes = False

    @property
    def real(self) -> str:
        """The accumulation type."""
        return str(self.g.problem.accumulate)

    def value(self, name: str, *indices: Expr) -> Expr:
        """An element of one of the rule's stages."""
        return self.values(self.rule.stages[name], *indices)

    def per_slot(self, dtype: str, *rest: int) -> list[Any]:
        """A table for each axis."""
        return [
            T.sblock_alloc_buffer((slots, *rest), dtype, scope=self.scope) for slots in self.slots
        ]

    def open(self, scope: str, *, slopes: bool) -> None:
        """Allocate the tables."""
        self.scope, self.slopes = scope, slopes
        self.mean = T.sblock_alloc_buffer((1,), self.real, scope=scope)
        self.unknown = self.per_slot(self.real) if self.g.problem.moves else []
        self.at = Cells("int32", "count_y", "count_x", "first_y", "first_x")
        self.now = Cells(self.real, "share_y", "share", "slope_y", "move_y", "move_x", "fill")

    def fill_box(self, k: Expr) -> None:
        """Emit what all bins of a box have in common: their share of the mean, or just NaN."""
        T.buffer_store(self.mean, self._mean(k), [0])

    def _mean(self, k: Expr) -> Expr:
        return self.value("poison", k)

    def fill(self, at: Bin) -> None:
        """Emit the table of one slot."""
        if self.g.problem.moves:
            nan = tirx.const(float("nan"), self.real)
            unknown = tirx.Select(tirx.isnan(at.shift), nan, self.g.const(0))
            T.buffer_store(self.unknown[at.axis], unknown, [at.slot])
        self._fill(at)

    @abstractmethod
    def _fill(self, at: Bin) -> None: ...

    def inverse(self, y: Expr, x: Expr) -> Expr:
        """1 / n of the bin's mean, NaN for a box or offset that is not a number."""
        value = self._share_of_each(y, x)
        if self.g.problem.moves:
            value = value + (self.unknown[0][y] + self.unknown[1][x])
        return value

    @abstractmethod
    def _share_of_each(self, y: Expr, x: Expr) -> Expr: ...

    def _of_used(self, used: Expr) -> Expr:
        one = self.g.const(1) / self.g.real(te.max(used, int32(1)))
        return tirx.Select(used > 0, one, self.g.const(0)) + self.mean[0]

    @abstractmethod
    def entries(self, y: Expr, x: Expr, visit: Visit) -> None:
        """Visit the entries of a bin; what `visit` emits may stand in the code twice."""

    def size(self, axis: int) -> Expr:
        """Rows, or columns, of the map."""
        return int32((self.g.h, self.g.w)[axis])


class PixelTables(Tables):
    """All pixels of a bin, each with the share 1: where they begin and how many they are."""

    def open(self, scope: str, *, slopes: bool) -> None:
        """Allocate the tables."""
        super().open(scope, slopes=slopes)
        self.first, self.count = self.per_slot("int32"), self.per_slot("int32")

    def length(self, at: Bin) -> Expr:
        """Pixels of a bin before it is moved."""
        first, stop = (self.value(name, at.k, at.axis, at.bin) for name in ("first", "stop"))
        finite = self.value("poison", at.k) <= self.g.const(0)
        return tirx.Select(finite, te.max(stop - first, int32(0)), int32(0))

    def _fill(self, at: Bin) -> None:
        first = self.value("first", at.k, at.axis, at.bin)
        T.buffer_store(self.first[at.axis], first, [at.slot])
        T.buffer_store(self.count[at.axis], self.length(at), [at.slot])

    def _share_of_each(self, y: Expr, x: Expr) -> Expr:
        return self._of_used(self.count[0][y] * self.count[1][x])

    def load(self, y: Expr, x: Expr) -> None:
        """Keep a bin's tables in registers."""
        for axis, slot in ((0, y), (1, x)):
            self.at[f"first_{'yx'[axis]}"] = self.first[axis][slot]
            self.at[f"count_{'yx'[axis]}"] = self.count[axis][slot]

    def entries(self, y: Expr, x: Expr, visit: Visit) -> None:
        """Visit the pixels, row by row."""
        self.load(y, x)
        with T.serial(0, self.at["count_y"]) as i:
            row = int64(self.at["first_y"] + i) * self.g.w
            with T.serial(0, self.at["count_x"]) as j:
                visit(Entry(row + int64(self.at["first_x"] + j), None, None))

    def empty(self, y: Expr, x: Expr) -> Expr:
        """Whether a bin has no pixels."""
        return tirx.any(self.count[0][y] == 0, self.count[1][x] == 0)

    def poison(self) -> Expr:
        """0, or NaN for a box that is not a number."""
        return self.mean[0]


class MovedTables(PixelTables):
    """All pixels of a bin, moved: each becomes two neighbours, whose shares add up inside the bin.

    So the shares are 1 but at the ends, and need no lists: entry e is the pixel `first + e`, and
    place `low + e` in the bin of `length` pixels.
    """

    def open(self, scope: str, *, slopes: bool) -> None:
        """Allocate the tables."""
        super().open(scope, slopes=slopes)
        self.low, self.long = self.per_slot("int32"), self.per_slot("int32")
        self.fraction = self.per_slot(self.real)
        self.whole = Cells("int32", "length", "begin", "low", "high")
        self.whole_at = Cells("int32", "low_y", "low_x", "long_y", "long_x")
        self.part = Cells(self.real, "moved", "fraction_y", "fraction_x")

    def _fill(self, at: Bin) -> None:
        g, whole, axis, slot = self.g, self.whole, at.axis, at.slot
        whole["length"] = self.length(at)
        self.part["moved"] = te.max(te.min(at.shift, g.const(TOO_FAR)), g.const(-TOO_FAR))
        moved = self.part["moved"]
        whole["begin"] = self.value("first", at.k, axis, at.bin) + te.floor(moved).astype("int32")
        whole["low"] = te.max(int32(0), -whole["begin"])
        entries = tirx.Select(whole["length"] > 0, whole["length"] + 1, int32(0))
        whole["high"] = te.min(entries, self.size(axis) - whole["begin"])
        T.buffer_store(self.long[axis], whole["length"], [slot])
        T.buffer_store(self.low[axis], whole["low"], [slot])
        T.buffer_store(self.first[axis], whole["begin"] + whole["low"], [slot])
        T.buffer_store(self.count[axis], te.max(whole["high"] - whole["low"], int32(0)), [slot])
        T.buffer_store(self.fraction[axis], moved - te.floor(moved), [slot])

    def _share_of_each(self, y: Expr, x: Expr) -> Expr:
        return self._of_used(self.long[0][y] * self.long[1][x])

    def entries(self, y: Expr, x: Expr, visit: Visit) -> None:
        """Visit the pixels that are on the map, row by row."""
        g = self.g
        self.load(y, x)
        for axis, slot in ((0, y), (1, x)):
            self.whole_at[f"low_{'yx'[axis]}"] = self.low[axis][slot]
            self.whole_at[f"long_{'yx'[axis]}"] = self.long[axis][slot]
            self.part[f"fraction_{'yx'[axis]}"] = self.fraction[axis][slot]
        with T.serial(0, self.at["count_y"]) as i:
            row = int64(self.at["first_y"] + i) * g.w
            self.now["share_y"], slope_y = self._shares("y", i)
            if self.slopes:
                self.now["slope_y"] = slope_y
            with T.serial(0, self.at["count_x"]) as j:
                share_x, slope_x = self._shares("x", j)
                pixel = row + int64(self.at["first_x"] + j)
                visit(entry_of(self, pixel, share_x, slope_x))

    def _shares(self, axis: str, entry: Expr) -> Pair:
        zero, one = self.g.const(0), self.g.const(1)
        fraction = self.part[f"fraction_{axis}"]
        place = self.whole_at[f"low_{axis}"] + entry
        inner, outer = place < self.whole_at[f"long_{axis}"], place > 0
        share = tirx.Select(inner, one - fraction, zero) + tirx.Select(outer, fraction, zero)
        return share, tirx.Select(outer, one, zero) - tirx.Select(inner, one, zero)


def entry_of(tables: Tables, pixel: Expr, share_x: Expr, slope_x: Expr) -> Entry:
    """An entry of a row whose share and slope are known."""
    now = tables.now
    if tables.slopes:
        now["move_y"] = now["slope_y"] * share_x
        now["move_x"] = now["share_y"] * slope_x
    now["share"] = now["share_y"] * share_x
    moves = (now["move_y"], now["move_x"]) if tables.slopes else None
    return Entry(pixel, now["share"], moves)
