"""Tiles that lie in memory as a block wants them: copied to shared memory as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te.gpu.grid import Expr, mod
from dcn_tvm.te.gpu.mma import COPY, WAIT
from dcn_tvm.te.gpu.product import Product
from dcn_tvm.te.gpu.sums import call
from dcn_tvm.te.nest import int64

Pair = Callable[[Expr, Expr], Any]
COPIED_BYTES = 16


class Panel:
    """An operand of a product: A [rows, depth] or B [depth, columns].

    Where tensor cores follow and the source is `aligned` (every line starts at a multiple of 16
    bytes) it is copied without passing through registers; else it is read, and stored when the tile
    is free.
    """

    def __init__(
        self, product: Product, thread: Expr, operand: str, *, aligned: bool = True
    ) -> None:
        s = product.shape
        self.product, self.thread = product, thread
        self.tile, self.place, lines, width = {
            "a": (product.a, product.a_place, s.rows, s.depth),
            "b": (product.b, product.b_place, s.depth, s.columns),
        }[operand]
        self.copied = bool(s.tensor) and aligned
        bytes_each = 2 if product.dtype in ("float16", "bfloat16") else 4
        self.vector = COPIED_BYTES // bytes_each if self.copied else 1
        self.count, self.across = lines * width // self.vector, width // self.vector
        self.passes = -(-self.count // s.threads)
        if not self.copied:
            self.read = T.sblock_alloc_buffer((self.passes,), product.dtype, scope="local")

    def fetch(self, step: Expr, source: Any, index: Pair, exists: Pair | None = None) -> None:
        """Begin to read a tile: `index(line, column)` of what exists; the rest is 0."""
        stage = mod(step, int64(self.product.shape.stages))
        for i, line, column, busy in self._each():
            there = tirx.const(True, "bool") if exists is None else exists(line, column)
            if self.copied:
                with T.If(busy), T.Then():
                    to = T.address_of(self.tile[self.place(stage, line, column)])
                    origin = T.address_of(source[tuple(index(line, column))])
                    call("dcn_copy_16", to, origin, there, source=COPY)
                continue
            element = source[tuple(index(line, column))]
            value = tirx.if_then_else(tirx.all(busy, there), element, tirx.const(0, source.dtype))
            T.buffer_store(self.read, value.astype(self.product.dtype), [i])

    def store(self, stage: Expr) -> None:
        """Finish: after the next barrier the tile is there."""
        if self.copied:
            call("dcn_copied", source=WAIT)
            return
        for i, line, column, busy in self._each():
            with T.If(busy), T.Then():
                T.buffer_store(self.tile, self.read[i], [self.place(stage, line, column)])

    def _each(self) -> Any:
        """Number, line and column of what a thread copies, and whether there is as much."""
        threads = self.product.shape.threads
        with T.unroll(int64(0), int64(self.passes)) as i:
            number = i * threads + self.thread
            yield i, number // self.across, number % self.across * self.vector, number < self.count
