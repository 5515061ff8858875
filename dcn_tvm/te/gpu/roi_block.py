"""How the threads of a block share out bins and channels of a box.

A block takes a run of bins of one box and one class, and a run of channels. Its tables of bins
(roi_bins.py) are filled first, a thread for each. Then a thread takes bins and *units*, which are a
few channels: what it knows of a bin serves all of them. Next to one another in memory are bins of a
channel in nchw, channels of a bin in nhwc, so neighbouring threads take those.

Channels of a unit are neighbours, one vector, where that is so in memory; else they are a whole
number of units apart, so that neighbouring threads' channels are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.te.gpu.grid import Cells, ceil_div, int32, launch
from dcn_tvm.te.gpu.roi_bins import Bin
from dcn_tvm.te.gpu.roi_boxes import Values
from dcn_tvm.te.gpu.roi_samples import tables_of
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_bins import Rule

WARP = 32
VECTOR_BYTES = 16  # the widest load of a thread


@dataclass(frozen=True)
class Blocking:
    """How a block of threads is laid out.

    Attributes:
        channels: of a unit.
        lanes: threads side by side along units.
        bins: threads side by side along bins.
        turns: bins of a thread, one after the other.
        passes: units of a thread, one after the other; 0 is all of them.
        adjacent: whether the channels of a unit are neighbours in memory.
        lanes_first: whether neighbouring threads have neighbouring units, else bins.
        bytes_of_lists: shared memory for the lists of entries.
    """

    channels: int
    lanes: int
    bins: int
    turns: int
    passes: int
    adjacent: bool
    lanes_first: bool
    bytes_of_lists: int

    @property
    def threads(self) -> int:
        """Threads of a block: whole warps."""
        return -(-self.lanes * self.bins // WARP) * WARP

    @property
    def run(self) -> int:
        """Bins of a block."""
        return self.bins * self.turns


def over(value: Expr, parts: int) -> Expr:
    """`value // parts` of what is not negative, which the compiler need not find out."""
    return tirx.truncdiv(value, tirx.const(parts, value.ty.dtype))


def rest(value: Expr, parts: int) -> Expr:
    """`value % parts`, likewise."""
    return tirx.truncmod(value, tirx.const(parts, value.ty.dtype))


def units_of(problem: RoIProblem, channels: int) -> int:
    """Units of a class."""
    return -(-problem.depth // channels)


class Block:
    """Emits a kernel in which blocks take boxes: tables first, then bins and units of each thread.

    Names of cells: `k` is the box, `image` its image, `cls` the class, `base` the block's first
    bin; `bin` is a thread's bin and `y`, `x` its slots in the tables; `unit` is its unit.
    """

    def __init__(self, g: Frame, rule: Rule, blocking: Blocking) -> None:
        self.g, self.rule, self.blocking = g, rule, blocking
        problem = g.problem
        self.units = units_of(problem, blocking.channels)
        self.steps = -(-self.units // blocking.lanes)
        self.passes = min(blocking.passes or self.steps, self.steps)
        self.chunks = -(-self.steps // self.passes)
        self.bins = problem.output_size[0] * problem.output_size[1]
        self.runs = -(-self.bins // blocking.run)

    # -- one kernel --------------------------------------------------------------------------

    def kernel(
        self,
        name: str,
        values: Values,
        image: te.Tensor,
        offset: Any | None,
        body: Callable[[], None],
        *,
        slopes: bool = False,
    ) -> None:
        """Emit the kernel; `body` comes after the tables are filled."""
        g, blocking = self.g, self.blocking
        moves = g.problem.moves
        slots = (blocking.run, blocking.run) if moves else g.bins
        self.tables = tables_of(g, self.rule, values, slots, blocking.bytes_of_lists)
        per_box = g.problem.classes * self.runs * self.chunks
        with launch([g.boxes_count * per_box], [blocking.threads], name) as (block, thread):
            names = ("k", "image", "cls", "base", "chunk", "thread", "lane", "bin", "unit")
            self.at = Cells("int32", *names, "y", "x", "i", "j")
            self.moved = Cells(g.problem.accumulate, "y", "x")
            self.tables.open("shared", slopes=slopes)
            self.at["k"] = int32(over(block, per_box))
            within = int32(rest(block, per_box))
            self.at["chunk"] = rest(within, self.chunks)
            self.at["base"] = rest(over(within, self.chunks), self.runs) * blocking.run
            self.at["cls"] = over(within, self.chunks * self.runs)
            self.at["thread"] = int32(thread)
            self.at["image"] = values(image, self.k)
            self._fill(offset)
            T.evaluate(T.tvm_storage_sync("shared"))
            body()

    def _fill(self, offset: Any | None) -> None:
        """The tables: rows by the first threads and columns by the last, which are other warps."""
        g, threads = self.g, self.blocking.threads
        k, thread = self.k, self.at["thread"]
        with T.If(thread == threads // 2), T.Then():
            self.tables.fill_box(k)
        for axis, first in enumerate((thread, threads - 1 - thread)):
            slots = self.tables.slots[axis]
            with T.serial(0, ceil_div(slots - first, threads)) as turn:
                slot = first + turn * threads
                if g.problem.moves:
                    self._fill_moved(offset, axis, slot)
                else:
                    self.tables.fill(Bin(k, axis, int64(slot), slot, None))

    def _fill_moved(self, offset: Any, axis: int, slot: Expr) -> None:
        number = self.at["base"] + slot
        with T.If(number < self.bins), T.Then():
            i, j = over(number, self.g.bins[1]), rest(number, self.g.bins[1])
            self.shift(offset, self.tables.values, axis, i, j)
            shift = self.moved["yx"[axis]]
            self.tables.fill(Bin(self.k, axis, int64((i, j)[axis]), slot, shift))

    def shift(self, offset: Any, values: Values, axis: int, i: Expr, j: Expr) -> None:
        """Set how far bin (i, j) of the block's box and class is moved along an axis."""
        g = self.g
        (rows, columns), (part_rows, part_columns) = g.bins, g.problem.parts
        part = int64(over(i * part_rows, rows)), int64(over(j * part_columns, columns))
        k, channel = self.k, int64(self.at["cls"]) * 2 + (1 - axis)
        value = values.product(g.real(offset[(k, channel, *part)]), g.gamma)
        size = values(self.rule.stages["size"], k, axis)
        self.moved["yx"[axis]] = values.product(value, size)

    @property
    def k(self) -> Expr:
        """The block's box."""
        return int64(self.at["k"])

    # -- bins and units ----------------------------------------------------------------------

    def each_bin(self, visit: Callable[[Expr], None]) -> None:
        """Visit the bins of this thread: which one it is in the block's run."""
        g, b = self.g, self.blocking
        thread, at = self.at["thread"], self.at
        if b.lanes_first:
            at["lane"], column = rest(thread, b.lanes), over(thread, b.lanes)
        else:
            at["lane"], column = over(thread, b.bins), rest(thread, b.bins)
        active = [thread < b.lanes * b.bins] if b.threads > b.lanes * b.bins else []
        with T.serial(0, b.turns) as turn:
            local = turn * b.bins + column
            at["bin"] = at["base"] + local
            with T.If(tirx.all(*active, at["bin"] < self.bins)), T.Then():
                at["i"], at["j"] = over(at["bin"], g.bins[1]), rest(at["bin"], g.bins[1])
                moves = g.problem.moves
                at["y"], at["x"] = (local, local) if moves else (at["i"], at["j"])
                visit(local)

    def each_unit(self, visit: Callable[[], None]) -> None:
        """Visit the units of this thread."""
        at, lanes = self.at, self.blocking.lanes
        with T.serial(0, self.passes) as turn:
            at["unit"] = (at["chunk"] * self.passes + turn) * lanes + at["lane"]
            if self.chunks * self.passes * lanes == self.units:
                visit()
            else:
                with T.If(at["unit"] < self.units), T.Then():
                    visit()

    def channel(self, j: Expr) -> Expr:
        """Output channel j of a unit, within the class; 64 bits, or lanes would be no vector."""
        if self.blocking.adjacent:
            return int64(self.at["unit"]) * self.blocking.channels + j
        return int64(self.at["unit"]) + j * self.units

    def exists(self, j: int) -> Expr | None:
        """Whether a unit has a channel j; None if all have."""
        if (j + 1) * self.units <= self.g.problem.depth:
            return None
        return self.at["unit"] + j * self.units < self.g.problem.depth

    def output_index(self, j: Expr) -> list[Expr]:
        """Where an output has channel j of the unit."""
        g = self.g
        channel = int64(self.at["cls"]) * g.problem.depth + self.channel(j)
        return g.index(self.k, channel, int64(self.at["bin"]))

    def map_index(self, j: Expr, pixel: Expr) -> list[Expr]:
        """Where the map has channel j of the unit and the bin's group."""
        g = self.g
        channel = int64(self.at["cls"]) * g.problem.depth + self.channel(j)
        if g.groups > 1:
            (rows, columns), (group_rows, group_columns) = g.bins, g.problem.groups
            row = over(self.at["i"] * group_rows, rows)
            group = row * group_columns + over(self.at["j"] * group_columns, columns)
            channel = channel * g.groups + int64(group)
        return g.index(int64(self.at["image"]), channel, pixel)

    # -- channels of a unit ------------------------------------------------------------------

    def registers(self, dtype: str) -> Any:
        """A number for each channel of a unit."""
        return T.sblock_alloc_buffer((self.blocking.channels,), dtype, scope="local")

    def each_channel(self, emit: Callable[[int], None]) -> None:
        """Emit a statement for each channel, in the code one after the other."""
        for j in range(self.blocking.channels):
            emit(j)

    def load(self, source: Any, index: Callable[[Expr], list[Expr]], to: Any) -> None:
        """Read a unit, as vectors where its channels are neighbours; 0 where it has no channel."""
        dtype = str(source.dtype)
        if not self.blocking.adjacent:
            for j in range(self.blocking.channels):
                value, exists = source[tuple(index(int64(j)))], self.exists(j)
                if exists is not None:
                    value = tirx.if_then_else(exists, value, tirx.const(0, dtype))
                T.buffer_store(to, value, [j])
            return
        for first, width in self._vectors(dtype):
            with T.vectorized(int64(0), int64(width)) as lane:
                T.buffer_store(to, source[tuple(index(first + lane))], [first + lane])

    def store(self, target: Any, index: Callable[[Expr], list[Expr]], values: Any) -> None:
        """Write a unit, as vectors where its channels are neighbours."""
        if self.blocking.adjacent:
            for first, width in self._vectors(str(target.dtype)):
                with T.vectorized(int64(0), int64(width)) as lane:
                    T.buffer_store(target, values[first + lane], index(first + lane))
            return
        for j in range(self.blocking.channels):
            exists = self.exists(j)
            if exists is None:
                T.buffer_store(target, values[j], index(int64(j)))
                continue
            with T.If(exists), T.Then():
                T.buffer_store(target, values[j], index(int64(j)))

    def _vectors(self, dtype: str) -> list[tuple[int, int]]:
        """(first channel, channels) of the vectors of a unit."""
        bits = int("".join(c for c in dtype if c.isdigit()))
        width = min(self.blocking.channels, VECTOR_BYTES * 8 // bits)
        return [(first, width) for first in range(0, self.blocking.channels, width)]
