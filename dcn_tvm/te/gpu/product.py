"""The product of a block: two tiles staged in shared memory, twice, and a result in registers.

While the warps multiply one pair of tiles, the next is on its way: its reads are issued before the
product and its stores come after. One barrier in each step keeps the two pairs apart.

The product is made by tensor cores (`Warps`) or, on every other target and in float64, by a grid of
threads that each own `down` x `across` numbers (`Threads`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te.gpu.grid import Expr, div, mod
from dcn_tvm.te.gpu.mma import PUT, Squares
from dcn_tvm.te.gpu.shared import BYTES, Shared
from dcn_tvm.te.gpu.sums import call
from dcn_tvm.te.nest import int64

SKEW = 16  # bytes between the rows of a tile, so that a column does not lie in one bank
Use = Callable[[Expr, Expr, Expr], None]


@dataclass(frozen=True)
class Shape:
    """Sizes of a block's product.

    Attributes:
        rows: of the result.
        columns: of the result.
        depth: of one step.
        threads: of the block.
        tensor: "f16", "bf16", "tf32", or "" for products of single numbers.
        warps: along the rows, of tensor cores.
        down: numbers along the rows that a thread owns, without tensor cores.
        across: likewise along the columns.
        stages: pairs of tiles; 2, or 1 where shared memory is scarce.
        scope: of shared memory: "shared", or "shared.dyn" where a block may have more than 48 KiB.
        by_rows: neighbouring threads own neighbouring rows, else columns.
    """

    rows: int
    columns: int
    depth: int
    threads: int
    tensor: str = ""
    warps: int = 1
    down: int = 4
    across: int = 4
    stages: int = 2
    by_rows: bool = False
    scope: str = "shared"


class Product:
    """Tiles and result of a block; `turned` says that A is stored [depth, rows]."""

    def __init__(self, shape: Shape, dtype: str, accumulate: str, *, turned: bool = False) -> None:
        self.shape, self.dtype, self.accumulate, self.turned = shape, dtype, accumulate, turned
        skew = SKEW // BYTES[dtype]
        first, second = (shape.depth, shape.rows) if turned else (shape.rows, shape.depth)
        self.a_row = second + (skew if shape.tensor or turned else 1)
        self.b_row = shape.columns + skew
        self.line = shape.columns + 4  # elements of a row of the spilled result
        self.a_size, self.b_size = first * self.a_row, shape.depth * self.b_row

    def arrays(self) -> dict[str, tuple[int, str]]:
        """What the operands need of shared memory."""
        stages = self.shape.stages
        return {"a": (stages * self.a_size, self.dtype), "b": (stages * self.b_size, self.dtype)}

    def result_array(self) -> dict[str, tuple[int, str]]:
        """What the result needs there, once it is spilled."""
        return {"result": (self.shape.rows * self.line, self.accumulate)}

    def open(self, thread: Expr, shared: Shared) -> None:
        """Take the tiles from shared memory, and registers for the result."""
        s = self.shape
        self.thread, self.shared = thread, shared
        self.a, self.b = shared["a"], shared["b"]
        self.registers = s.rows * s.columns // s.threads
        self.result = T.sblock_alloc_buffer((self.registers,), self.accumulate, scope="local")
        if s.tensor:
            across = s.threads // 32 // s.warps
            self.squares = Squares(
                s.tensor,
                s.warps,
                across,
                s.rows // s.warps,
                s.columns // across,
                s.depth,
                self.a_row,
                self.b_row,
                self.turned,
            )

    def clear(self) -> None:
        """Set the result to 0."""
        with T.unroll(int64(0), int64(self.registers)) as i:
            T.buffer_store(self.result, tirx.const(0, self.accumulate), [i])

    def a_place(self, stage: Expr, row: Expr, k: Expr) -> Expr:
        """Where A's tile holds an element."""
        first, second = (k, row) if self.turned else (row, k)
        return stage * self.a_size + first * self.a_row + second

    def b_place(self, stage: Expr, k: Expr, column: Expr) -> Expr:
        """Where B's tile holds an element."""
        return stage * self.b_size + k * self.b_row + column

    def put(self, tile: Any, place: Expr, values: Any) -> None:
        """Store 16 bytes of registers.

        In one instruction, whatever TVM knows of alignment.
        """
        call("dcn_put_16", T.address_of(tile[place]), T.address_of(values[0]), source=PUT)

    def multiply(self, stage: Expr) -> None:
        """Add the product of a pair of tiles to the result."""
        if self.shape.tensor:
            name, source = self.squares.multiply()
            a, b = (
                buffer.access_ptr("r", offset=stage * size, extent=size)
                for buffer, size in ((self.a, self.a_size), (self.b, self.b_size))
            )
            call(name, T.address_of(self.result[0]), a, b, source=source)
            return
        s = self.shape
        left = T.sblock_alloc_buffer((s.down,), self.accumulate, scope="local")
        right = T.sblock_alloc_buffer((s.across,), self.accumulate, scope="local")
        with T.serial(int64(0), int64(s.depth)) as k:
            with T.unroll(int64(0), int64(s.down)) as i:
                value = self.a[self.a_place(stage, self._row(i), k)]
                T.buffer_store(left, value.astype(self.accumulate), [i])
            with T.unroll(int64(0), int64(s.across)) as j:
                value = self.b[self.b_place(stage, k, self._column(j))]
                T.buffer_store(right, value.astype(self.accumulate), [j])
            with T.unroll(int64(0), int64(s.down)) as i, T.unroll(int64(0), int64(s.across)) as j:
                place = i * s.across + j
                T.buffer_store(self.result, self.result[place] + left[i] * right[j], [place])

    def _row(self, i: Expr) -> Expr:
        s = self.shape
        height = s.rows // s.down
        own = self.thread % height if s.by_rows else self.thread // (s.columns // s.across)
        return own + i * height

    def _column(self, j: Expr) -> Expr:
        s = self.shape
        width = s.columns // s.across
        own = self.thread // (s.rows // s.down) if s.by_rows else self.thread % width
        return own + j * width

    def each(self, use: Use) -> None:
        """Emit `use(row, column, value)` for a thread's own numbers, without tensor cores."""
        s = self.shape
        with T.unroll(int64(0), int64(s.down)) as i, T.unroll(int64(0), int64(s.across)) as j:
            use(self._row(i), self._column(j), self.result[i * s.across + j])

    def spill(self) -> Any:
        """Write the result to shared memory, over the operands; a barrier must follow."""
        tile, s = self.shared["result"], self.shape
        if s.tensor:
            name, source = self.squares.spill(self.line)
            call(name, tile.access_ptr("w"), T.address_of(self.result[0]), source=source)
        else:
            self.each(
                lambda row, column, value: T.buffer_store(tile, value, [row * self.line + column])
            )
        return tile

    def write(self, use: Use) -> None:
        """Emit `use(row, column, value)` for all numbers, neighbours by neighbouring threads."""
        s = self.shape
        if not s.tensor:
            self.each(use)
            return
        staged = self.spill()
        self.shared.barrier()
        across = int64(s.rows if s.by_rows else s.columns)
        with T.serial(int64(0), int64(s.rows * s.columns // s.threads)) as i:
            number = i * s.threads + self.thread
            row, column = mod(number, across), div(number, across)
            if not s.by_rows:
                row, column = column, row
            use(row, column, staged[row * self.line + column])


def pipeline(
    product: Product,
    steps: Expr,
    fetch: Callable[[Expr], None],
    store: Callable[[Expr, Expr], None],
) -> None:
    """Multiply `steps` pairs of tiles.

    Args:
        product: what is multiplied.
        steps: how many, at least 0.
        fetch: emits the reads of a step.
        store: emits what puts a step's numbers into a stage of the tiles.
    """
    stages = product.shape.stages
    with T.If(steps > 0), T.Then():
        fetch(int64(0))
    with T.serial(int64(0), steps) as step:
        stage = mod(step, int64(stages))
        if stages == 1:
            product.shared.barrier()
        store(step, stage)
        product.shared.barrier()
        with T.If(step + 1 < steps), T.Then():
            fetch(step + 1)
        product.multiply(stage)
    product.shared.barrier()  # the tiles may be used for something else
