"""Gradients of deformable convolution's weight and bias on a GPU.

    dw[o, c, tap] = sum over rows of dy[row, o] * column[row, tap, c]    db[o] = sum of dy[row, o]

A block makes a tile of one tap's gradient, input channels by output channels, and walks over rows,
whose columns it samples as the forward does. The rows are split over as many blocks as fill the
device; a second kernel adds the parts up in order, so there are no atomics and the result is the
same bits in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.te import nest
from dcn_tvm.te.gpu.columns import Columns
from dcn_tvm.te.gpu.conv import VECTOR_BYTES, Frame
from dcn_tvm.te.gpu.grid import Cells, Expr, ceil_div, div, each, launch, mod, place
from dcn_tvm.te.gpu.panel import Panel
from dcn_tvm.te.gpu.product import Product, Shape, pipeline
from dcn_tvm.te.gpu.shared import BYTES, Shared
from dcn_tvm.te.nest import int64

FEWEST_STEPS = 8  # that are worth a block of their own
PARTS = 128  # of the rows, in the gradient of the bias
LANES, LINES = 32, 8


def backward_weight(
    problem: DeformConv2dProblem, shape: Shape, blocks: int, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """Gradients of weight and bias, any of them; `blocks` is how many fill the device."""
    g = Frame(problem)
    grad = g.argument("grad", g.map_shape(problem.out_channels))
    results = {}
    rows = g.rows_of(grad, problem.out_channels, "grad_rows")
    if "grad_weight" in outputs:
        x = g.argument("input", g.map_shape(problem.in_channels, output_sized=False))
        offset = g.argument("offset", g.map_shape(2 * g.taps * problem.offset_groups))
        mask = (
            g.argument("mask", g.map_shape(g.taps * problem.offset_groups))
            if problem.modulated
            else None
        )
        kernel = Weight(g, shape, blocks)
        given = [
            rows,
            g.rows_of(x, problem.in_channels, "input_rows"),
            offset,
            *([] if mask is None else [mask]),
        ]
        kinds = [problem.dtype, problem.accumulate]
        results["grad_weight"], _ = nest.nest(
            kernel.shapes(), given, kernel.emit, "grad_weight", kinds
        )
    if "grad_bias" in outputs:
        results["grad_bias"] = _bias(g, rows)
    function, close = nest.prim_func([*g.arguments, *(results[name] for name in outputs)], {})
    return close(function)


def shared(problem: DeformConv2dProblem, shape: Shape) -> Shared:
    """Shared memory of a block."""
    product = _product(problem, shape)
    return Shared(shape.scope, product.arrays(), product.result_array() if shape.tensor else {}, {})


def _product(problem: DeformConv2dProblem, shape: Shape) -> Product:
    dtype = problem.dtype if shape.tensor else problem.accumulate
    return Product(shape, dtype, problem.accumulate, turned=True)


class Weight:
    """Emits the kernels of the weight's gradient."""

    def __init__(self, g: Frame, shape: Shape, blocks: int) -> None:
        self.g, self.shape = g, shape
        self.down, self.across = -(-g.inputs // shape.rows), -(-g.outputs // shape.columns)
        self.tiles = g.problem.groups * g.taps * self.down * self.across
        self.steps = ceil_div(g.rows, shape.depth)
        most = te.max(div(self.steps, int64(FEWEST_STEPS)), int64(1))
        self.splits = te.max(te.min(int64(max(1, blocks // self.tiles)), most), int64(1))

    def shapes(self) -> list[Sequence[Any]]:
        """Of the gradient, and of its parts [split, group and tap, channel, output]."""
        g, p = self.g, self.g.problem
        parts = (self.splits, int64(p.groups * g.taps), int64(g.inputs), int64(g.outputs))
        return [[int64(extent) for extent in (p.out_channels, g.inputs, g.kh, g.kw)], parts]

    def emit(self, ins: list[Any], outs: list[Any]) -> None:
        """The product of each split, then the sum over splits."""
        grad, x, offset, *rest = ins
        self.result, self.parts = outs
        self._multiply(grad, x, offset, rest[0] if rest else None)
        self._add_splits()

    def _multiply(self, grad: Any, x: Any, offset: Any, mask: Any) -> None:
        g, s = self.g, self.shape
        with launch([int64(self.tiles), self.splits], [s.threads], "multiply") as (
            tile,
            split,
            thread,
        ):
            across, rest = mod(tile, int64(self.across)), div(tile, int64(self.across))
            down, rest = mod(rest, int64(self.down)), div(rest, int64(self.down))
            tap, group = mod(rest, int64(g.taps)), div(rest, int64(g.taps))
            product, memory = _product(g.problem, s), shared(g.problem, s)
            memory.open()
            product.open(thread, memory)
            product.clear()
            columns = Columns(g, product, s.depth, s.rows, s.threads, exact=True)
            columns.open(x, offset, mask, thread)
            aligned = g.outputs * BYTES[g.problem.dtype] % VECTOR_BYTES == 0
            panel = Panel(product, thread, "b", aligned=aligned)
            cells = Cells("int64", "first", "steps", "row")
            cells["first"] = div(split * self.steps, self.splits)
            cells["steps"] = div((split + 1) * self.steps, self.splits) - cells["first"]
            within = down * s.rows + columns.lane
            channel = group * g.inputs + within

            def fetch(step: Expr) -> None:
                cells["row"] = (cells["first"] + step) * s.depth
                columns.take(cells["row"])
                with T.If(within < g.inputs), T.Then():
                    columns.locate(tap, div(channel, int64(g.group_channels)))
                columns.fetch(channel, within < g.inputs)

                def index(k: Expr, o: Expr) -> list[Expr]:
                    return g.row_index(
                        grad, int64(0), cells["row"] + k, group * g.outputs + across * s.columns + o
                    )

                def exists(k: Expr, o: Expr) -> Expr:
                    return tirx.all(cells["row"] + k < g.rows, across * s.columns + o < g.outputs)

                panel.fetch(step, grad, index, exists)

            def store(step: Expr, stage: Expr) -> None:
                columns.store(stage)
                panel.store(stage)

            pipeline(product, cells["steps"], fetch, store)
            self._write(product, [split, group * g.taps + tap], down, across)

    def _write(self, product: Product, at: list[Expr], down: Expr, across: Expr) -> None:
        g, s = self.g, self.shape

        def write(row: Expr, column: Expr, value: Expr) -> None:
            channel, output = down * s.rows + row, across * s.columns + column
            with T.If(tirx.all(channel < g.inputs, output < g.outputs)), T.Then():
                T.buffer_store(self.parts, value, [*at, channel, output])

        product.write(write)

    def _add_splits(self) -> None:
        g = self.g
        shape = self.parts.shape[1:]
        total = int64(g.problem.groups * g.taps * g.inputs * g.outputs)
        with each(total, "add_splits") as number:
            group_tap, channel, output = place(shape, number)
            sum_ = Cells(g.problem.accumulate, "sum")
            sum_["sum"] = g.const(0)
            with T.serial(int64(0), self.splits) as split:
                sum_["sum"] = sum_["sum"] + self.parts[split, group_tap, channel, output]
            group, tap = div(group_tap, int64(g.taps)), mod(group_tap, int64(g.taps))
            at = [group * g.outputs + output, channel, div(tap, int64(g.kw)), mod(tap, int64(g.kw))]
            T.buffer_store(self.result, sum_["sum"].astype(g.problem.dtype), at)


def _bias(g: Frame, grad: te.Tensor) -> te.Tensor:
    """Sums over rows in two steps, both in a fixed order."""
    channels = g.problem.out_channels

    def body(ins: list[Any], outs: list[Any]) -> None:
        (rows,), (result, parts) = ins, outs
        with launch([int64(PARTS), int64(-(-channels // LANES))], [LANES, LINES], "sum_rows") as (
            part,
            block,
            x,
            y,
        ):
            sums = T.sblock_alloc_buffer((LINES, LANES), g.problem.accumulate, scope="shared")
            sum_ = Cells(g.problem.accumulate, "sum")
            sum_["sum"] = g.const(0)
            channel, first = block * LANES + x, part * LINES + y
            with T.If(channel < channels), T.Then():
                with T.serial(
                    int64(0), div(g.rows - first + PARTS * LINES - 1, int64(PARTS * LINES))
                ) as i:
                    at = g.row_index(rows, int64(0), first + i * (PARTS * LINES), channel)
                    sum_["sum"] = sum_["sum"] + g.real(rows[tuple(at)])
            T.buffer_store(sums, sum_["sum"], [y, x])
            T.evaluate(T.tvm_storage_sync("shared"))
            with T.If(tirx.all(y == 0, channel < channels)), T.Then():
                sum_["sum"] = g.const(0)
                with T.serial(int64(0), int64(LINES)) as line:
                    sum_["sum"] = sum_["sum"] + sums[line, x]
                T.buffer_store(parts, sum_["sum"], [part, channel])
        with each(int64(channels), "add_parts") as channel:
            sum_ = Cells(g.problem.accumulate, "sum")
            sum_["sum"] = g.const(0)
            with T.serial(int64(0), int64(PARTS)) as part:
                sum_["sum"] = sum_["sum"] + parts[part, channel]
            T.buffer_store(result, sum_["sum"].astype(g.problem.dtype), [channel])

    shapes = [(int64(channels),), (int64(PARTS), int64(channels))]
    kinds = [g.problem.dtype, g.problem.accumulate]
    return nest.nest(shapes, [grad], body, "grad_bias", kinds)[0]
