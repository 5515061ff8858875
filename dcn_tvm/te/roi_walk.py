"""The nests that pool boxes, and that scatter gradients back to the pixels of their bins.

`te.compute` cannot say a sum whose extent the data name. A worker owns a block of channels of an
image, or of a box: so plain vector stores suffice, and the order of additions is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_bins import Buffers, Cells, Place, Rule
from dcn_tvm.te.turn import Load, Turner, cast

At = tuple[Expr, Expr, Expr]  # image, group, block
Visit = Callable[[Expr, Expr, Expr, Expr], None]


class Walk:
    """What the nests share: workers, boxes, bins, and the entries of a bin."""

    def __init__(self, g: Frame, rule: Rule, *, slopes: bool = False) -> None:
        self.g, self.rule, self.slopes = g, rule, slopes
        self.lanes, self.vectors = g.tiling.lanes, g.tiling.vectors
        # Bins that do not move share their columns: each of a box is made once.
        self.shared_columns = g.groups == 1 and not g.problem.moves

    # -- workers -----------------------------------------------------------------------------

    @contextmanager
    def worker(self, name: str, *, by_box: bool) -> Iterator[tuple[At, Expr | None]]:
        """A block of an image and group, or of a box, whose number is the second value."""
        g = self.g
        outer = g.boxes_count if by_box else g.n * g.groups
        with T.parallel(int64(0), outer * g.blocks) as w, T.sblock(name):
            worker = T.axis.spatial(outer * g.blocks, w)
            block, place = worker % g.blocks, worker // g.blocks
            if by_box:
                yield (self.buffers["image"][place].astype("int64"), int64(0), block), place
            else:
                yield (place // g.groups, place % g.groups, block), None

    def open(self) -> None:
        """Allocate what a worker needs to come to a bin."""
        _, kw = self.g.bins
        self.rule.open((1, kw if self.shared_columns else 1), slopes=self.slopes)
        self.turner = Turner(self.g.problem.accumulate, self.lanes)
        cells = ("offset_y", "offset_x", "inverse", "share_y", "share_x", "share")
        self.real = Cells(self.g.problem.accumulate, *cells)
        self.whole = Cells("int32", "y", "x", "pixel")

    def own_rows(self) -> Any:
        """Rows of a worker's block."""
        g = self.g
        return T.sblock_alloc_buffer((g.h * g.w, int64(g.width)), g.problem.accumulate)

    def rows(self, source: Any, at: At) -> Any:
        """The rows that a worker reads: of a map in nchw its own, turned from its planes."""
        g = self.g
        if g.problem.layout == "nhwc":
            return source
        rows = self.own_rows()
        first = g.output_channel(at[2], int64(0))

        def load(lane: Expr, pixel: Expr) -> Expr:
            channel = (first + lane) * g.groups + at[1]
            return cast(source[tuple(g.index(at[0], channel, pixel))], g.problem.accumulate)

        def store(pixel: Expr, lane: Expr, value: Expr) -> None:
            T.buffer_store(rows, value, [pixel, lane])

        self.turner.turn(int64(g.width), g.h * g.w, load, store, load_if=g.guard(at[2]))
        return rows

    def boxes(self, at: At, only: Expr | None, visit: Callable[[Expr], None]) -> None:
        """Visit the boxes of a worker: one, or all of its image."""
        if only is not None:
            visit(only)
            return
        with T.serial(int64(0), self.g.boxes_count) as k:
            with T.If(self.buffers["image"][k] == at[0].astype("int32")), T.Then():
                visit(k)

    def bins(self, at: At, k: Expr, visit: Callable[[Place, Place], None]) -> None:
        """Visit the bins of a box whose channels the worker has, with their entries filled."""
        g, rule = self.g, self.rule
        (rows, columns), (group_rows, group_columns) = g.bins, g.problem.groups
        if self.shared_columns:
            with T.serial(int64(0), int64(columns)) as j:
                rule.fill(self.buffers, Place(k, 1, j, j, None))
        i_first, i_stop = bins_of(at[1] // group_columns, rows, group_rows)
        j_first, j_stop = bins_of(at[1] % group_columns, columns, group_columns)
        with T.serial(i_first, i_stop) as i:
            if self.shared_columns:
                y = Place(k, 0, i, int64(0), None)
                rule.fill(self.buffers, y)
            with T.serial(j_first, j_stop) as j:
                if self.shared_columns:
                    x = Place(k, 1, j, j, None)
                else:
                    y, x = self._moved(at, k, i, j)
                    rule.fill(self.buffers, y)
                    rule.fill(self.buffers, x)
                visit(y, x)

    def _moved(self, at: At, k: Expr, i: Expr, j: Expr) -> tuple[Place, Place]:
        g, zero = self.g, int64(0)
        if not g.problem.moves:
            return Place(k, 0, i, zero, None), Place(k, 1, j, zero, None)
        (rows, columns), (part_rows, part_columns) = g.bins, g.problem.parts
        part = (i * part_rows // rows, j * part_columns // columns)
        for axis, name in enumerate(("offset_y", "offset_x")):
            channel = (at[2] // g.subs) * 2 + (1 - axis)
            self.real[name] = g.real(self.buffers["offset"][(k, channel, *part)])
        return (
            Place(k, 0, i, zero, self.scaled(k, 0, self.real["offset_y"])),
            Place(k, 1, j, zero, self.scaled(k, 1, self.real["offset_x"])),
        )

    def scaled(self, k: Expr, axis: int, value: Expr) -> Expr:
        """An offset in pixels, or the gradient of one of them with respect to the offset."""
        return value * self.g.gamma * self.buffers["size"][k, axis]

    def inverse(self, y: Place, x: Place) -> None:
        """Set 1 / n of the bin's mean, NaN for a box or offset that is not a number."""
        g = self.g
        value = self.rule.share_of_each(self.buffers, y, x) + self.buffers["poison"][y.k]
        if g.problem.moves:
            nan = tirx.const(float("nan"), g.problem.accumulate)
            unknown = tirx.any(*(tirx.isnan(self.real[n]) for n in ("offset_y", "offset_x")))
            value = tirx.Select(unknown, nan, value)
        self.real["inverse"] = value

    def entries(self, y: Place, x: Place, visit: Callable[[Expr, Expr, Expr], None]) -> None:
        """Visit the pixels of a bin: linear pixel, and which entries of the two axes it is."""
        rule, g = self.rule, self.g
        with T.serial(0, rule.count[0][y.slot]) as i:
            row = self._pixel(y, i).astype("int64") * g.w
            if rule.weighted:
                self.real["share_y"] = rule.shares[0][y.slot, i]
            with T.serial(0, rule.count[1][x.slot]) as j:
                visit(row + self._pixel(x, j).astype("int64"), i, j)

    def _pixel(self, at: Place, entry: Expr) -> Expr:
        if self.rule.weighted:
            return self.rule.pixels[at.axis][at.slot, entry]
        return self.rule.first[at.axis][at.slot] + entry  # type: ignore[attr-defined]

    # -- vectors -----------------------------------------------------------------------------

    def vector(self, emit: Callable[[Expr, Expr], None]) -> None:
        """Emit a statement for each lane of a block: `emit(vector, lane)`, vectors unrolled."""
        with T.unroll(0, self.vectors) as v, T.vectorized(0, self.lanes) as lane:
            emit(v, lane)

    def fill_with(self, buffer: Any, value: Expr) -> None:
        """Set a block of numbers in registers."""
        self.vector(lambda v, lane: T.buffer_store(buffer, value, [v, lane]))

    def registers(self, dtype: str | None = None) -> Any:
        """A block of numbers in registers."""
        shape = (self.vectors, self.lanes)
        return T.sblock_alloc_buffer(shape, dtype or self.g.problem.accumulate, scope="local")

    def limit(self, block: Expr) -> Expr:
        """Lanes of a block that are channels."""
        g = self.g
        if not g.padded:
            return int64(g.width)
        return te.min(int64(g.width), g.problem.depth - (block % g.subs) * g.width)


def bins_of(group: Expr, bins: int, groups: int) -> tuple[Expr, Expr]:
    """The bins i with floor(i groups / bins) = group: from the first to before the second."""
    if groups == 1:
        return int64(0), int64(bins)
    if groups == bins:
        return group, group + 1
    return (group * bins + groups - 1) // groups, ((group + 1) * bins + groups - 1) // groups


def whole(buffer: Any) -> Any:
    """The region of all of a buffer."""
    return buffer[tuple(slice(0, extent) for extent in buffer.shape)]


class Forward(Walk):
    """Pools the entries of each bin: their weighted mean, or with `maximum` the largest."""

    def __init__(self, g: Frame, rule: Rule, *, maximum: bool = False) -> None:
        super().__init__(g, rule)
        self.maximum = maximum
        # Bins of a position-sensitive map belong to different workers: contiguous channels of an
        # output in nchw would be written by all of them at once. So they write [bin, box, lane].
        self.collected = g.problem.layout == "nchw" and g.groups > 1
        self.tiled = g.problem.layout == "nchw" and not self.collected

    def emit(self, rows: te.Tensor, stages: dict[str, te.Tensor]) -> te.Tensor:
        """The output."""
        g = self.g
        names = list(stages)

        def body(ins: list[Any], outs: list[Any]) -> None:
            self.buffers: Buffers = dict(zip(names, ins[1:], strict=True))
            with self.worker("pool", by_box=g.tiling.by_box) as (at, only):
                T.reads(*(whole(b) for b in ins))
                T.writes(whole(outs[0]))
                self.open()
                self.sums = self.registers()
                self.tile = None
                if self.tiled or (g.padded and not self.collected):
                    bins = g.bins[0] * g.bins[1] if self.tiled else 1
                    self.tile = T.sblock_alloc_buffer((bins, g.width), g.problem.accumulate)
                rows = self.rows(ins[0], at)
                self.boxes(at, only, lambda k: self._box(rows, outs[0], at, k))

        if not self.collected:
            shape, dtype = g.output_shape(), g.problem.dtype
            return nest.nest([shape], [rows, *stages.values()], body, "output", [dtype])[0]
        sizes = (int64(g.blocks), int64(g.bins[0] * g.bins[1]), g.boxes_count, int64(g.width))
        kind = [g.problem.accumulate]
        pooled = nest.nest([sizes], [rows, *stages.values()], body, "pooled", kind)[0]

        def turn(ins: list[Any], outs: list[Any]) -> None:
            with T.parallel(int64(0), g.boxes_count) as w, T.sblock("output"):
                k = T.axis.spatial(g.boxes_count, w)
                T.reads(whole(ins[0]))
                T.writes(whole(outs[0]))
                self.turner = Turner(g.problem.accumulate, self.lanes)
                with T.serial(int64(0), int64(g.blocks)) as block:
                    self._turn_out(outs[0], k, block, lambda i, lane: ins[0][block, i, k, lane])

        return nest.nest([g.output_shape()], [pooled], turn, "output", [g.problem.dtype])[0]

    def _turn_out(self, output: Any, k: Expr, block: Expr, load: Load) -> None:
        """A block's bins, `load(bin, lane)`, to the planes of its channels."""
        g = self.g
        first = g.output_channel(block, int64(0))

        def store(lane: Expr, place: Expr, value: Expr) -> None:
            index = g.index(k, first + lane, place)
            T.buffer_store(output, cast(value, g.problem.dtype), index)

        bins, width = int64(g.bins[0] * g.bins[1]), int64(g.width)
        self.turner.turn(bins, width, load, store, store_if=g.guard(block))

    def _box(self, rows: Any, output: Any, at: At, k: Expr) -> None:

        def visit(y: Place, x: Place) -> None:
            self.inverse(y, x)
            if self.maximum:
                self._largest(rows, at, y, x)
            else:
                self._sum(rows, at, y, x)
            self._store(output, at, y, x)

        self.bins(at, k, visit)
        if self.tiled:
            self._turn_out(output, k, at[2], lambda place, lane: self.tile[place, lane])

    def _sum(self, rows: Any, at: At, y: Place, x: Place) -> None:
        g, sums = self.g, self.sums
        self.fill_with(sums, g.const(0))

        def visit(pixel: Expr, i: Expr, j: Expr) -> None:
            if self.rule.weighted:
                self.real["share"] = self.real["share_y"] * self.rule.shares[1][x.slot, j]

            def add(v: Expr, lane: Expr) -> None:
                value = g.real(rows[tuple(g.row_index(rows, at, pixel, v * self.lanes + lane))])
                if self.rule.weighted:
                    value = value * self.real["share"]
                T.buffer_store(sums, sums[v, lane] + value, [v, lane])

            self.vector(add)

        self.entries(y, x, visit)
        self.vector(
            lambda v, lane: T.buffer_store(sums, sums[v, lane] * self.real["inverse"], [v, lane])
        )

    def _largest(self, rows: Any, at: At, y: Place, x: Place) -> None:
        g, sums = self.g, self.sums
        self.fill_with(sums, g.const(float("-inf")))

        def visit(pixel: Expr, i: Expr, j: Expr) -> None:
            def compare(v: Expr, lane: Expr) -> None:
                value = g.real(rows[tuple(g.row_index(rows, at, pixel, v * self.lanes + lane))])
                kept = sums[v, lane]
                T.buffer_store(sums, unless_larger(g, kept, value, kept, value), [v, lane])

            self.vector(compare)

        self.entries(y, x, visit)
        empty = tirx.any(self.rule.count[0][y.slot] == 0, self.rule.count[1][x.slot] == 0)
        poison = self.buffers["poison"][y.k]
        self.vector(
            lambda v, lane: T.buffer_store(
                sums, tirx.Select(empty, poison, sums[v, lane]), [v, lane]
            )
        )

    def _store(self, output: Any, at: At, y: Place, x: Place) -> None:
        g, place = self.g, y.bin * self.g.bins[1] + x.bin
        target, first = output, at[2] * g.width
        if self.tile is not None:
            target = self.tile

        def where(lane: Expr) -> list[Expr]:
            if self.tiled:
                return [place, lane]
            if self.tile is not None:
                return [int64(0), lane]
            if self.collected:
                return [at[2], place, y.k, lane]
            return g.index(y.k, first + lane, place)

        def store(v: Expr, lane: Expr) -> None:
            value = self.sums[v, lane].astype(str(target.dtype))
            T.buffer_store(target, value, where(v * self.lanes + lane))

        self.vector(store)
        if self.tile is not None and not self.tiled:
            with T.serial(int64(0), self.limit(at[2])) as lane:
                index = g.index(y.k, g.output_channel(at[2], lane), place)
                T.buffer_store(output, self.tile[0, lane].astype(g.problem.dtype), index)


def unless_larger(g: Frame, largest: Expr, value: Expr, kept: Expr, new: Expr) -> Expr:
    """`kept`, or `new` where `value` is the largest: the first of equals, and NaN for good."""
    # Comparisons stand so that a NaN fails them; `Not` of one would be turned round by TVM.
    known = largest <= g.const(float("inf"))
    return tirx.Select(known, tirx.Select(value <= largest, kept, new), kept)


def block_of(g: Frame, channel: Expr) -> tuple[Expr, Expr]:
    """(block, lane) of an output channel."""
    depth = g.problem.depth
    within = channel % depth
    return (channel // depth) * g.subs + within // g.width, within % g.width
