"""Gradients of deformable convolution's input, offset and mask on a GPU.

    dcolumn = w^T dy     dX += share * dcolumn     dp = dcolumn . dX/dp     dm = dcolumn . X(p)

A block has a tile of rows and one tap, and walks over all channels: it multiplies a tile of
`dcolumn`, which stays in shared memory, scatters it to the input's gradient and adds up its
products with the input's pixels. As no other block has these rows and this tap, the gradients of
offset and mask need no atomics. How the scattered sums meet is `Scatter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.te import nest
from dcn_tvm.te.gpu.channels import Channels
from dcn_tvm.te.gpu.conv import VECTOR_BYTES, Frame, packed
from dcn_tvm.te.gpu.corners import Corners
from dcn_tvm.te.gpu.grid import Cells, Expr, ceil_div, launch, mod
from dcn_tvm.te.gpu.panel import Panel
from dcn_tvm.te.gpu.product import Product, Shape, pipeline
from dcn_tvm.te.gpu.scatter import Scatter
from dcn_tvm.te.gpu.shared import BYTES, Shared
from dcn_tvm.te.nest import int64

KINDS = {"grad_offset": ("y", "x"), "grad_mask": ("mask",)}  # sums over channels of each output


def backward_data(
    problem: DeformConv2dProblem, shape: Shape, scatter: str, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """Gradients of any of input, offset and mask; `scatter` is a manner of `Scatter`."""
    g = Frame(problem)
    grad = g.argument("grad", g.map_shape(problem.out_channels))
    x = g.argument("input", g.map_shape(problem.in_channels, output_sized=False))
    offset = g.argument("offset", g.map_shape(2 * g.taps * problem.offset_groups))
    weight = g.argument("weight", (problem.out_channels, g.inputs, g.kh, g.kw))
    mask = (
        g.argument("mask", g.map_shape(g.taps * problem.offset_groups))
        if problem.modulated
        else None
    )
    kernel = Data(g, shape, Scatter(g, scatter) if "grad_input" in outputs else None, outputs)
    given = {
        "grad": g.rows_of(grad, problem.out_channels, "grad_rows"),
        "weight": kernel.pack(weight),
        "offset": offset,
        **({} if mask is None else {"mask": mask}),
        **({"input": g.rows_of(x, problem.in_channels, "input_rows")} if kernel.kinds else {}),
        **(kernel.scatter.needs(grad, weight, mask) if kernel.scatter else {}),
    }
    results = kernel.results(given)
    function, close = nest.prim_func([*g.arguments, *(results[name] for name in outputs)], {})
    return close(function)


def shared(problem: DeformConv2dProblem, shape: Shape, outputs: Sequence[str]) -> Shared:
    """Shared memory of a block."""
    g, product = Frame(problem), _product(problem, shape)
    kinds = [kind for name in outputs for kind in KINDS.get(name, ())]
    corners = Corners(
        *(g, shape, Channels(g, shape.columns).groups, kinds), scatters="grad_input" in outputs
    )
    lanes = shape.columns // g.vector("float32")
    dots = {"dots": (len(kinds) * shape.rows * lanes, problem.accumulate)} if kinds else {}
    kept = {**dots, **corners.arrays()}
    return Shared(shape.scope, product.arrays(), product.result_array(), kept)


def _product(problem: DeformConv2dProblem, shape: Shape) -> Product:
    dtype = problem.dtype if shape.tensor else problem.accumulate
    return Product(shape, dtype, problem.accumulate)


class Data:
    """Emits the kernels."""

    def __init__(
        self, g: Frame, shape: Shape, scatter: Scatter | None, outputs: Sequence[str]
    ) -> None:
        self.g, self.shape, self.scatter = g, shape, scatter
        self.wanted = outputs
        self.outputs = [name for name in outputs if name in KINDS]
        self.kinds = [kind for name in self.outputs for kind in KINDS[name]]
        self.channels = Channels(g, shape.columns)
        self.chunks = -(-g.outputs // shape.depth)
        self.vector = g.vector("float32")
        self.lanes = shape.columns // self.vector  # threads of a row
        self.passes = max(1, shape.rows * self.lanes // shape.threads)

    def pack(self, weight: te.Tensor) -> te.Tensor:
        """[tap, tile, output, channel]: whole chunks by whole tiles, padded with zeros."""
        g, s, channels = self.g, self.shape, self.channels

        def element(at: list[Expr]) -> tuple[Expr, Expr, Expr, Expr]:
            tap, tile, output, column = at
            start, count = channels.start(tile), channels.count(tile)
            group = start // g.inputs
            exists = tirx.all(output < g.outputs, column < count)
            return group * g.outputs + output, start - group * g.inputs + column, tap, exists

        sizes = (g.taps, channels.tiles, self.chunks * s.depth, s.columns)
        return packed(g, weight, sizes, element, "packed")

    def results(self, given: dict[str, te.Tensor]) -> dict[str, te.Tensor]:
        """The gradients by name."""
        g, p = self.g, self.g.problem
        shapes, kinds = [], []
        if self.scatter:
            shapes.append(self.scatter.shape())
            kinds.append(self.scatter.dtype)
        for name in self.outputs:
            shapes.append(g.map_shape(len(KINDS[name]) * g.taps * p.offset_groups))
            kinds.append(p.dtype)

        def body(ins: list[Any], outs: list[Any]) -> None:
            self._emit(dict(zip(given, ins, strict=True)), list(outs))

        made = nest.nest(shapes, list(given.values()), body, "data", kinds)
        found = {}
        if self.scatter:
            found["grad_input"] = self.scatter.finish(made.pop(0), given)
        return found | dict(zip(self.outputs, made, strict=True))

    def _emit(self, given: dict[str, Any], outs: list[Any]) -> None:
        g, s = self.g, self.shape
        if self.scatter:
            self.scatter.start(outs.pop(0), given)
        self.stored = dict(zip(self.outputs, outs, strict=True))
        self.given = given
        with launch([ceil_div(g.rows, s.rows), int64(g.taps)], [s.threads], "scatter") as (
            block,
            tap,
            thread,
        ):
            self.first, self.tap, self.thread = block * s.rows, tap, thread
            self._open()
            self.corners.take(self.first)  # the product's barriers come before they are used
            with T.serial(int64(0), int64(self.channels.tiles)) as tile:
                self.cells["start"], self.cells["count"] = (
                    self.channels.start(tile),
                    self.channels.count(tile),
                )
                self._multiply(tile)
                self.corners.locate(self.first, tap, self.cells["start"] // g.group_channels)
                self.memory.barrier()
                self._use()
                self.memory.barrier()
                if self.kinds:
                    self._add_lanes()
                    self.memory.barrier()

    def _open(self) -> None:
        g, s = self.g, self.shape
        self.product, self.memory = _product(g.problem, s), shared(g.problem, s, self.wanted)
        self.memory.open()
        self.product.open(self.thread, self.memory)
        aligned = g.outputs * BYTES[g.problem.dtype] % VECTOR_BYTES == 0
        self.left = Panel(self.product, self.thread, "a", aligned=aligned)
        self.right = Panel(self.product, self.thread, "b")
        self.cells = Cells("int64", "start", "count")
        self.place = Cells("int64", "pixel", "image")
        self.line, self.tile = self.product.line, self.memory["result"]
        self.corners = Corners(
            g, s, self.channels.groups, self.kinds, scatters=self.scatter is not None
        )
        self.corners.open(self.memory, self.given["offset"], self.given.get("mask"), self.thread)
        if self.kinds:
            sums = len(self.kinds) * self.channels.groups * s.rows
            self.dots = self.memory["dots"]
            self.sums = T.sblock_alloc_buffer(
                (-(-sums // s.threads),), g.problem.accumulate, scope="local"
            )
            # also so that TVM leaves the array outside the loop over tiles
            with T.unroll(int64(0), int64(-(-sums // s.threads))) as item:
                T.buffer_store(self.sums, g.const(0), [item])

    def _multiply(self, tile: Expr) -> None:
        """The tile of dcolumn, into shared memory."""
        g, s, grad, weight = self.g, self.shape, self.given["grad"], self.given["weight"]
        group = self.cells["start"] // g.inputs
        self.product.clear()

        def fetch(step: Expr) -> None:
            def left(row: Expr, k: Expr) -> list[Expr]:
                return g.row_index(
                    grad, int64(0), self.first + row, group * g.outputs + step * s.depth + k
                )

            def exists(row: Expr, k: Expr) -> Expr:
                return tirx.all(self.first + row < g.rows, step * s.depth + k < g.outputs)

            self.left.fetch(step, grad, left, exists)
            self.right.fetch(
                step, weight, lambda k, column: [self.tap, tile, step * s.depth + k, column]
            )

        def store(step: Expr, stage: Expr) -> None:
            self.left.store(stage)
            self.right.store(stage)

        pipeline(self.product, int64(self.chunks), fetch, store)
        self.product.spill()
        self.memory.barrier()

    def _use(self) -> None:
        """Scatter the tile, multiply it with pixels: a thread has a few channels of some rows."""
        g, s, v = self.g, self.shape, self.vector
        lane = mod(self.thread, int64(self.lanes))
        values = T.sblock_alloc_buffer((v,), g.problem.accumulate, scope="local")
        totals = T.sblock_alloc_buffer(
            (max(1, len(self.kinds)),), g.problem.accumulate, scope="local"
        )
        read = T.sblock_alloc_buffer((4 * v,), g.problem.dtype, scope="local")
        with T.serial(int64(0), int64(self.passes)) as i:
            row = self.thread // self.lanes + i * (s.threads // self.lanes)
            there = tirx.all(row < s.rows, self.first + row < g.rows)
            with T.If(there), T.Then():
                with T.unroll(int64(0), int64(len(self.kinds))) as kind:
                    T.buffer_store(totals, g.const(0), [kind])
                with T.If(lane * v < self.cells["count"]), T.Then():
                    with T.unroll(int64(0), int64(v)) as one:
                        T.buffer_store(values, self.tile[row * self.line + lane * v + one], [one])
                    entry = self.corners.entry(row, lane * v)
                    channel = self.cells["start"] + lane * v
                    for corner in range(4):
                        self._use_corner(entry, row, channel, corner, values, read, totals)
                for kind in range(len(self.kinds)):
                    T.buffer_store(
                        self.dots, totals[kind], [(kind * s.rows + row) * self.lanes + lane]
                    )

    def _use_corner(
        self,
        entry: Expr,
        row: Expr,
        channel: Expr,
        corner: int,
        values: Any,
        read: Any,
        totals: Any,
    ) -> None:
        g, v, corners = self.g, self.vector, self.corners
        # in registers, as TVM allows no shared memory in a condition
        self.place["pixel"] = corners.pixel(corner, entry).astype("int64")
        self.place["image"] = corners.image(row).astype("int64")
        pixel, image = self.place["pixel"], self.place["image"]
        if self.scatter and self.scatter.keeps:
            if corner == 0:
                self.scatter.keep(self.first + row, self.tap, channel, values, v)
        elif self.scatter:
            with T.If(pixel >= 0), T.Then():
                share = corners.share(corner, entry)
                self.scatter.add(image, pixel, channel, [values[one] * share for one in range(v)])
        if not self.kinds:
            return
        x = self.given["input"]
        with T.If(pixel >= 0), T.Then():
            with T.vectorized(int64(0), int64(v)) as one:
                T.buffer_store(
                    read, x[tuple(g.row_index(x, image, pixel, channel + one))], [corner * v + one]
                )
            for place, kind in enumerate(self.kinds):
                factor = corners.slope(kind, corner, entry)
                dot: Expr = g.const(0)
                for one in range(v):
                    dot = dot + values[one] * g.real(read[corner * v + one])
                T.buffer_store(totals, totals[place] + factor * dot, [place])

    def _add_lanes(self) -> None:
        """Add up the channels of each offset group in order; store sums that are complete."""
        g, s, channels = self.g, self.shape, self.channels
        items = len(self.kinds) * channels.groups * s.rows
        start, count = self.cells["start"], self.cells["count"]
        of_group = (
            -(-channels.width // self.vector)
            if channels.groups == 1
            else g.group_channels // self.vector
        )
        sum_ = Cells(g.problem.accumulate, "sum")
        with T.unroll(int64(0), int64(-(-items // s.threads))) as i:
            item = i * s.threads + self.thread
            row, rest = item % s.rows, item // s.rows
            group, kind = rest % channels.groups, rest // channels.groups
            begun = mod(start, int64(g.group_channels)) != 0
            exists = tirx.all(
                item < items, self.first + row < g.rows, group * g.group_channels < count
            )
            with T.If(exists), T.Then():
                sum_["sum"] = tirx.if_then_else(begun, self.sums[i], g.const(0))
                with T.serial(int64(0), int64(of_group)) as lane:
                    place = (kind * s.rows + row) * self.lanes + group * of_group + lane
                    sum_["sum"] = sum_["sum"] + self.dots[place]
                T.buffer_store(self.sums, sum_["sum"], [i])
                with T.If(mod(start + count, int64(g.group_channels)) == 0), T.Then():
                    self._store(row, start // g.group_channels + group, kind, sum_["sum"])

    def _store(self, row: Expr, group: Expr, kind: Expr, value: Expr) -> None:
        g, here = self.g, self.first + row
        image = self.corners.image(row).astype("int64")
        first = 0
        for name in self.outputs:
            number = len(KINDS[name])
            own = tirx.all(kind >= first, kind < first + number)
            with T.If(own), T.Then():
                channel = (group * g.taps + self.tap) * number + kind - first
                at = g.index(image, channel, here - image * g.pixels)
                T.buffer_store(self.stored[name], value.astype(g.problem.dtype), at)
            first += number
