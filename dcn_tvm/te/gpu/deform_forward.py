"""Deformable convolution's forward on a GPU: sampling and the product with the weight together.

A block makes a tile of the output: rows by output channels of one group. It walks over taps and
channels, samples a chunk of columns into shared memory and multiplies. Where a map has too few
tiles to fill the device, the taps are split over several blocks, whose partial sums a second kernel
adds up in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.te import nest
from dcn_tvm.te.gpu.columns import Columns
from dcn_tvm.te.gpu.conv import VECTOR_BYTES, Frame, packed
from dcn_tvm.te.gpu.grid import Cells, Expr, ceil_div, div, launch, mod
from dcn_tvm.te.gpu.panel import Panel
from dcn_tvm.te.gpu.product import Product, Shape, pipeline
from dcn_tvm.te.gpu.shared import BYTES, Shared
from dcn_tvm.te.nest import int64

SQUARE = 32
Write = Callable[[Expr, Expr, Expr], None]


def forward(problem: DeformConv2dProblem, shape: Shape, blocks: int) -> tirx.PrimFunc:
    """The output; `blocks` is how many fill the device."""
    g = Frame(problem)
    x = g.argument("input", g.map_shape(problem.in_channels, output_sized=False))
    offset = g.argument("offset", g.map_shape(2 * g.taps * problem.offset_groups))
    weight = g.argument("weight", (problem.out_channels, g.inputs, g.kh, g.kw))
    bias = g.argument("bias", (problem.out_channels,)) if problem.bias else None
    mask = (
        g.argument("mask", g.map_shape(g.taps * problem.offset_groups))
        if problem.modulated
        else None
    )
    rows = g.rows_of(x, problem.in_channels, "input_rows")
    kernel = Forward(g, shape, blocks)
    given = [rows, offset, kernel.pack(weight), *(t for t in (bias, mask) if t is not None)]
    shapes = [g.map_shape(problem.out_channels), kernel.partial_shape()]
    output, _ = nest.nest(shapes, given, kernel.emit, "output", [problem.dtype, problem.accumulate])
    function, close = nest.prim_func([*g.arguments, output], {})
    return close(function)


def shared(problem: DeformConv2dProblem, shape: Shape) -> Shared:
    """Shared memory of a block."""
    product = _product(problem, shape)
    return Shared(shape.scope, product.arrays(), product.result_array() if shape.tensor else {}, {})


def _product(problem: DeformConv2dProblem, shape: Shape) -> Product:
    dtype = problem.dtype if shape.tensor else problem.accumulate
    return Product(shape, dtype, problem.accumulate)


class Forward:
    """Emits the kernels."""

    def __init__(self, g: Frame, shape: Shape, blocks: int) -> None:
        self.g, self.shape = g, shape
        self.chunks = -(-g.inputs // shape.depth)
        self.panels = -(-g.outputs // shape.columns)
        self.tiles = ceil_div(g.rows, shape.rows)
        across = self.panels * g.problem.groups
        wanted = div(int64(blocks), te.max(self.tiles * across, int64(1)))
        self.splits = te.max(te.min(wanted, int64(g.taps)), int64(1))
        self.split = te.min(self.splits - 1, int64(1))  # 1 if there are several

    def pack(self, weight: te.Tensor) -> te.Tensor:
        """[group, tap, channel, output]: whole chunks by whole panels, padded with zeros."""
        g, s = self.g, self.shape

        def element(at: list[Expr]) -> tuple[Expr, Expr, Expr, Expr]:
            group, tap, channel, output = at
            exists = tirx.all(channel < g.inputs, output < g.outputs)
            return group * g.outputs + output, channel, tap, exists

        sizes = (g.problem.groups, g.taps, self.chunks * s.depth, self.panels * s.columns)
        return packed(g, weight, sizes, element, "packed")

    def partial_shape(self) -> tuple[Expr, ...]:
        """[split, row, output]; nothing if there is one split."""
        return (self.splits * self.split, self.g.rows, int64(self.g.problem.out_channels))

    def emit(self, ins: list[Any], outs: list[Any]) -> None:
        """The product, then the sum over splits."""
        rows, offset, weights, *rest = ins
        bias = rest.pop(0) if self.g.problem.bias else None
        mask = rest.pop(0) if rest else None
        self.output, self.partial = outs
        self.bias = bias
        self._multiply(rows, offset, mask, weights)
        self._add_splits()

    def _multiply(self, rows: Any, offset: Any, mask: Any, weights: Any) -> None:
        g, s = self.g, self.shape
        across = int64(self.panels * g.problem.groups)
        # WebGPU has no third dimension of the grid
        with launch([self.tiles, across * self.splits], [s.threads], "convolve") as (
            tile,
            number,
            thread,
        ):
            split, part = div(number, across), mod(number, across)
            group, panel = div(part, int64(self.panels)), mod(part, int64(self.panels))
            product, memory = _product(g.problem, s), shared(g.problem, s)
            memory.open()
            product.open(thread, memory)
            product.clear()
            columns = Columns(g, product, s.rows, s.depth, s.threads)
            columns.open(rows, offset, mask, thread)
            columns.take(tile * s.rows)
            panels = Panel(product, thread, "b")
            cells = Cells("int64", "first", "steps", "tap", "chunk")
            cells["first"] = div(split * g.taps, self.splits)
            cells["steps"] = (div((split + 1) * g.taps, self.splits) - cells["first"]) * self.chunks

            def fetch(step: Expr) -> None:
                cells["tap"] = cells["first"] + div(step, int64(self.chunks))
                cells["chunk"] = mod(step, int64(self.chunks))
                tap, chunk = cells["tap"], cells["chunk"]
                within = chunk * s.depth + columns.lane
                channel = group * g.inputs + within
                owner = div(channel, int64(g.group_channels))
                kept = columns.local["group"]
                moved = owner.astype("int32") != kept[0]
                with (
                    T.If(
                        tirx.any(chunk == 0, moved) if g.problem.offset_groups > 1 else chunk == 0
                    ),
                    T.Then(),
                ):
                    with T.If(within < g.inputs), T.Then():
                        columns.locate(tap, owner)
                    T.buffer_store(kept, owner.astype("int32"), [0])
                columns.fetch(channel, within < g.inputs)
                panels.fetch(
                    step,
                    weights,
                    lambda k, o: [group, tap, chunk * s.depth + k, panel * s.columns + o],
                )

            def store(step: Expr, stage: Expr) -> None:
                columns.store(stage)
                panels.store(stage)

            pipeline(product, cells["steps"], fetch, store)
            self._write(product, tile, group, panel, split)

    def _write(self, product: Product, tile: Expr, group: Expr, panel: Expr, split: Expr) -> None:
        """Store the block's tile: the output, or its part of the sums."""
        g, s = self.g, self.shape

        def write(row: Expr, column: Expr, value: Expr) -> None:
            here, within = tile * s.rows + row, panel * s.columns + column
            channel = group * g.outputs + within
            with T.If(tirx.all(here < g.rows, within < g.outputs)), T.Then():
                with T.If(self.split == 0):
                    with T.Then():
                        self._store(here, channel, value)
                    with T.Else():
                        T.buffer_store(self.partial, value, [split, here, channel])

        if not s.tensor or g.problem.layout == "nchw":
            product.write(write)
            return
        product.spill()
        product.shared.barrier()
        self._write_vectors(product, tile, group, panel, split)

    def _write_vectors(
        self,
        product: Product,
        tile: Expr,
        group: Expr,
        panel: Expr,
        split: Expr,
    ) -> None:
        """Store the tile where output channels are neighbours, several at once."""
        g, s, staged, line = self.g, self.shape, product.shared["result"], product.line
        width = math.gcd(VECTOR_BYTES // BYTES[g.problem.dtype], g.outputs)
        values = T.sblock_alloc_buffer((width,), g.problem.dtype, scope="local")
        across = s.columns // width
        with T.serial(int64(0), int64(s.rows * across // s.threads)) as i:
            number = i * s.threads + product.thread
            row, column = div(number, int64(across)), mod(number, int64(across)) * width
            here, within = tile * s.rows + row, panel * s.columns + column
            channel = group * g.outputs + within
            with T.If(tirx.all(here < g.rows, within < g.outputs)), T.Then():
                with T.If(self.split == 0):
                    with T.Then():
                        with T.unroll(int64(0), int64(width)) as lane:
                            value = self._finished(
                                channel + lane, staged[row * line + column + lane]
                            )
                            T.buffer_store(values, value, [lane])
                        image = div(here, g.pixels)
                        with T.vectorized(int64(0), int64(width)) as lane:
                            at = g.index(image, channel + lane, here - image * g.pixels)
                            T.buffer_store(self.output, values[lane], at)
                    with T.Else(), T.unroll(int64(0), int64(width)) as lane:
                        T.buffer_store(
                            self.partial,
                            staged[row * line + column + lane],
                            [split, here, channel + lane],
                        )

    def _finished(self, channel: Expr, value: Expr) -> Expr:
        """A sum with its bias, in the output's type."""
        g = self.g
        if self.bias is not None:
            value = value + g.real(self.bias[channel])
        return value.astype(g.problem.dtype)

    def _store(self, row: Expr, channel: Expr, value: Expr) -> None:
        g = self.g
        at = g.index(div(row, g.pixels), channel, mod(row, g.pixels))
        T.buffer_store(self.output, self._finished(channel, value), at)

    def _add_splits(self) -> None:
        """Add up the parts in order, and turn rows for an output in nchw."""
        g, channels = self.g, self.g.problem.out_channels
        tiles = ceil_div(g.rows, SQUARE) * self.split
        with launch([tiles, int64(-(-channels // SQUARE))], [SQUARE, 8], "add_splits") as (
            down,
            across,
            x,
            y,
        ):
            square = T.sblock_alloc_buffer(
                (SQUARE, SQUARE + 1), g.problem.accumulate, scope="shared"
            )
            total = T.sblock_alloc_buffer((1,), g.problem.accumulate, scope="local")
            with T.unroll(int64(0), int64(SQUARE // 8)) as i:
                row, channel = down * SQUARE + y + i * 8, across * SQUARE + x
                with T.If(tirx.all(row < g.rows, channel < channels)), T.Then():
                    T.buffer_store(total, g.const(0), [0])
                    with T.serial(int64(0), self.splits) as split:
                        T.buffer_store(total, total[0] + self.partial[split, row, channel], [0])
                    T.buffer_store(square, total[0], [y + i * 8, x])
            T.evaluate(T.tvm_storage_sync("shared"))
            with T.unroll(int64(0), int64(SQUARE // 8)) as i:
                place = (x, y + i * 8) if g.problem.layout == "nchw" else (y + i * 8, x)
                row, channel = down * SQUARE + place[0], across * SQUARE + place[1]
                with T.If(tirx.all(row < g.rows, channel < channels)), T.Then():
                    self._store(row, channel, square[place])
