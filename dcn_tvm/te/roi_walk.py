"""What the nests of RoI ops share: workers, boxes, bins, and the entries of a bin.

`te.compute` cannot say a sum whose extent the data name. A worker owns a block of channels of an
image, or of a box: so plain vector stores suffice, and the order of additions is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_bins import Buffers, Cells, Place, Rule
from dcn_tvm.te.turn import Turner, cast

At = tuple[Expr, Expr, Expr]  # image, group, block
FEW = 24  # boxes are few if a lane's bins cover less than 1 / FEW of the image; measured


class Walk:
    """Emits the loops of a worker down to the pixels of a bin, which a nest then visits.

    A worker that turns a map to rows does so for nothing where its image has few boxes: then it
    reads and writes the map itself, one lane after the other, with the same arithmetic.
    """

    def __init__(self, g: Frame, rule: Rule, *, slopes: bool = False) -> None:
        self.g, self.rule, self.slopes = g, rule, slopes
        self.lanes, self.vectors = g.tiling.lanes, g.tiling.vectors
        self.buffers: Buffers = {}
        self.single: Expr | None = None  # the lane that is walked over, else all are
        # Bins that do not move share their columns: each of a box is made once.
        self.shared_columns = g.groups == 1 and not g.problem.moves

    # -- workers -----------------------------------------------------------------------------

    @contextmanager
    def worker(self, name: str, *, by_box: bool) -> Iterator[tuple[At, Expr | None]]:
        """A block of an image and its first group, or of a box, whose number is the second."""
        g = self.g
        outer = g.boxes_count if by_box else g.n * self.group_runs
        with T.parallel(int64(0), outer * g.blocks) as w, T.sblock(name):
            worker = T.axis.spatial(outer * g.blocks, w)
            block, place = worker % g.blocks, worker // g.blocks
            if by_box:
                yield (self.buffers["image"][place].astype("int64"), int64(0), block), place
            else:
                first = (place % self.group_runs) * g.together
                yield (place // self.group_runs, first, block), None

    @property
    def group_runs(self) -> int:
        """Workers that share the groups of a block."""
        return -(-self.g.groups // self.g.together)

    @contextmanager
    def each_group(self, at: At) -> Iterator[At]:
        """The groups of a worker, one after the other."""
        g = self.g
        if g.together == 1:
            yield at
            return
        with T.serial(int64(0), te.min(int64(g.together), g.groups - at[1])) as group:
            yield (at[0], at[1] + group, at[2])

    def open(self) -> None:
        """Allocate what a worker needs to come to a bin."""
        _, kw = self.g.bins
        self.rule.open((1, kw if self.shared_columns else 1), slopes=self.slopes)
        self.turner = Turner(self.g.problem.accumulate, self.lanes)
        cells = ("offset_y", "offset_x", "inverse", "share_y", "share_x", "share")
        self.real = Cells(self.g.problem.accumulate, *cells)
        self.whole = Cells("int32", "pixel")

    def own_rows(self) -> Any:
        """Rows of a worker's block: [group, pixel, lane]."""
        g = self.g
        shape = (int64(g.together), g.h * g.w, int64(g.width))
        return T.sblock_alloc_buffer(shape, g.problem.accumulate)

    def rows(self, source: Any, at: At) -> Any:
        """The rows that a worker reads; its own are turned from the map."""
        g = self.g
        if not g.owned:
            return source
        rows, dtype = self.own_rows(), g.problem.accumulate
        first = g.output_channel(at[2], int64(0)) * g.groups + at[1]
        guard = g.guard(at[2])

        def value(lane: Expr, group: Expr, pixel: Expr) -> Expr:
            index = g.index(at[0], group + (first + lane * g.groups), pixel)
            return cast(source[tuple(index)], dtype)

        def store(group: Expr, pixel: Expr, lane: Expr, value: Expr) -> None:
            T.buffer_store(rows, value, [group, pixel, lane])

        self.turn_map(
            at,
            planes=lambda: self.turner.turn(
                int64(g.width),
                g.h * g.w,
                lambda lane, pixel: value(lane, int64(0), pixel),
                lambda pixel, lane, v: store(int64(0), pixel, lane, v),
                load_if=guard,
            ),
            groups=lambda pixel, count: self.turner.turn(
                int64(g.width),
                count,
                lambda lane, group: value(lane, group, pixel),
                lambda group, lane, v: store(group, pixel, lane, v),
                load_if=guard,
            ),
        )
        return rows

    def turn_map(
        self, at: At, planes: Callable[[], None], groups: Callable[[Expr, Expr], None]
    ) -> None:
        """Turn `planes` of nchw at once, or `groups(pixel, count)` of channels_last by pixel."""
        g = self.g
        if g.problem.layout == "nchw":
            planes()
            return
        with T.serial(int64(0), g.h * g.w) as pixel:
            groups(pixel, te.min(int64(g.together), g.groups - at[1]))

    def few(self, at: At) -> Expr:
        """Whether the boxes of an image cover too little of it to turn the map for them."""
        g = self.g
        covered = self.buffers["covered"][at[0]] * g.const(FEW / g.groups)
        return covered < g.real(g.h * g.w)

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
            row = rule.pixel(y, i).astype("int64") * g.w
            if rule.weighted:
                self.real["share_y"] = rule.shares[0][y.slot, i]
            with T.serial(0, rule.count[1][x.slot]) as j:
                visit(row + rule.pixel(x, j).astype("int64"), i, j)

    # -- vectors -----------------------------------------------------------------------------

    def vector(self, emit: Callable[[Expr, Expr], None]) -> None:
        """Emit a statement for each lane of a block: `emit(vector, lane)`, vectors unrolled."""
        if self.single is not None:
            emit(int64(0), int64(0))
            return
        with T.unroll(0, self.vectors) as v, T.vectorized(0, self.lanes) as lane:
            emit(v, lane)

    def lane(self, v: Expr, lane: Expr) -> Expr:
        """Lane of the block."""
        return v * self.lanes + lane if self.single is None else self.single

    @contextmanager
    def each_lane(self, at: At, *, few: bool) -> Iterator[None]:
        """All lanes of a block at once; where boxes are few, one after the other."""
        if not few:
            yield
            return
        with T.serial(int64(0), self.limit(at[2])) as lane:
            self.single = lane
            yield
            self.single = None

    def fill_with(self, registers: Registers, value: Expr) -> None:
        """Set a block of numbers in registers."""
        self.vector(lambda v, lane: registers.store(v, lane, value))

    def registers(self, dtype: str | None = None) -> Registers:
        """A block of numbers in registers."""
        return Registers(self, dtype or self.g.problem.accumulate)

    def read(self, rows: Any, at: At, pixel: Expr, lane: Expr) -> Expr:
        """A lane of rows, or of the map where boxes are few."""
        g = self.g
        direct = self.single is not None
        index = g.map_index(at, pixel, lane) if direct else g.row_index(rows, at, pixel, lane)
        return g.real(rows[tuple(index)])

    def limit(self, block: Expr) -> Expr:
        """Lanes of a block that are channels."""
        g = self.g
        if not g.padded:
            return int64(g.width)
        return te.min(int64(g.width), g.problem.depth - (block % g.subs) * g.width)


class Registers:
    """A block of numbers, and one for the lane that is walked over."""

    def __init__(self, walk: Walk, dtype: str) -> None:
        self._walk = walk
        self._all = T.sblock_alloc_buffer((walk.vectors, walk.lanes), dtype, scope="local")
        self._one = T.sblock_alloc_buffer((1,), dtype, scope="local")

    def __getitem__(self, at: tuple[Expr, Expr]) -> Expr:
        return self._all[at] if self._walk.single is None else self._one[0]

    def store(self, v: Expr, lane: Expr, value: Expr) -> None:
        """Emit a store."""
        if self._walk.single is None:
            T.buffer_store(self._all, value, [v, lane])
        else:
            T.buffer_store(self._one, value, [0])


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


def block_of(g: Frame, channel: Expr) -> tuple[Expr, Expr]:
    """(block, lane) of an output channel."""
    depth = g.problem.depth
    within = channel % depth
    return (channel // depth) * g.subs + within // g.width, within % g.width


def unless_larger(g: Frame, largest: Expr, value: Expr, kept: Expr, new: Expr) -> Expr:
    """`kept`, or `new` where `value` is the largest: the first of equals, and NaN for good."""
    # Comparisons stand so that a NaN fails them; `Not` of one would be turned round by TVM.
    known = largest <= g.const(float("inf"))
    return tirx.Select(known, tirx.Select(value <= largest, kept, new), kept)
