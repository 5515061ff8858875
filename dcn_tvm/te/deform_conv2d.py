"""Deformable convolution and its gradients (paper, eq. 2 and appendix A; v2 adds the mask).

    forward           y = sum_tc w * m * X(p) + b
    backward_data     dX += m * k(p, .) (w^T dy);  dp = m (w^T dy) . dX/dp;  dm = (w^T dy) . X(p)
    backward_weight   dw = sum_rows dy * m * X(p);   db = sum_rows dy

The gradients of input, offset and mask need the same product w^T dy, as costly as the forward: they
are one kernel that stores any subset. The same holds for weight and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.te import deform_scatter, nest, sampling
from dcn_tvm.te.deform_tiles import Graph, Tiling
from dcn_tvm.te.nest import int64

Expr = Any
Close = Callable[[Any], Any]

DOTS = {"grad_offset": ("y", "x"), "grad_mask": ("mask",)}  # sums over channels of each output


def forward(problem: DeformConv2dProblem, tiling: Tiling) -> tuple[Any, Close, Graph]:
    """Output = sum over taps and channels of weight * mask * bilinear sample, plus bias."""
    g, p = Graph(problem, tiling), problem
    x = g.argument("input", g.map_shape(p.in_channels, output_sized=False))
    offset = g.argument("offset", g.map_shape(2 * g.taps * p.offset_groups))
    weight = g.argument("weight", (p.out_channels, p.in_channels // p.groups, g.kh, g.kw))
    bias = g.argument("bias", (p.out_channels,)) if p.bias else None
    mask = g.argument("mask", g.map_shape(g.taps * p.offset_groups)) if p.modulated else None

    x_rows = g.rows_of(x, "input_rows", g.channels, p.dtype)
    where = Where(g, offset, mask)
    samples = g.samples(x_rows, where.pixel(), where.share())
    sums = _grouped_gemm(g, samples, _pack_by_output(g, weight))
    output = _store_rows(g, sums, bias)
    return *nest.prim_func([*g.arguments, output], g.derived), g


class Where:
    """Where the samples of a tile are, as the stages that its consumers read."""

    def __init__(self, g: Graph, offset: te.Tensor, mask: te.Tensor | None) -> None:
        self.g = g
        size_rules = {"weight": sampling.weight, "slope": sampling.slope}
        self.positions = g.positions(offset)
        self.modulation = g.mask_tile(mask)
        self._rules = {
            name: lambda p, size, side, rule=rule: rule(p, size, side, g.problem.boundary)
            for name, rule in size_rules.items()
        }
        self._factors: dict[str, te.Tensor] = {}

    def _factor(self, name: str) -> te.Tensor:
        if name not in self._factors:
            dtype = self.g.problem.accumulate
            self._factors[name] = self.g.neighbours(name, dtype, self.positions, self._rules[name])
        return self._factors[name]

    def pixel(self, *, exact_rows: bool = False, slopes: bool = False) -> te.Tensor:
        """Linear index of each corner's pixel; -1 if the sample is 0 and nothing may be read.

        `exact_rows`: the padding rows of the last tile sample nothing, for sums over rows.
        `slopes`: the pixels are also read for slopes, which reach as far as -1 itself.
        """
        g = self.g
        index = g.neighbours("index", "int32", self.positions, sampling.index)

        def rule(at: tuple[Expr, ...], corner: Expr, q: Expr) -> Expr:
            y, x = (g.real(self.positions[(*at, axis, q)]) for axis in range(2))
            skip = sampling.skipped(y, x, g.h, g.w, g.problem.boundary, slopes=slopes)
            if exact_rows:
                row = g.locate(at)[1] * int64(g.tiling.rows) + q
                skip = tirx.any(skip, row >= g.pixels)
            line = index[(*at, 0, corner // 2, q)] * g.w.astype("int32")
            linear = line + index[(*at, 1, corner % 2, q)]
            return tirx.Select(skip, tirx.const(-1, "int32"), linear)

        return g.corners("pixel", "int32", rule)

    def share(self, *, scattered: bool = False) -> te.Tensor:
        """Bilinear weight of each corner, times the mask.

        `scattered`: for adding to the corners' pixels. A NaN position names no pixel, so nothing
        is added anywhere for it.
        """
        return self._product("share", "weight", "weight", masked=True, finite=scattered)

    def slopes(self, kind: str) -> te.Tensor:
        """What a corner's value counts for in the gradient of y, x or mask."""
        factors = {"y": ("slope", "weight"), "x": ("weight", "slope"), "mask": ("weight", "weight")}
        return self._product(f"slope_{kind}", *factors[kind], masked=kind != "mask")

    def _product(
        self, name: str, row: str, column: str, *, masked: bool, finite: bool = False
    ) -> te.Tensor:
        g, rows, columns = self.g, self._factor(row), self._factor(column)
        modulation = self.modulation if masked else None

        def rule(at: tuple[Expr, ...], corner: Expr, q: Expr) -> Expr:
            value = rows[(*at, 0, corner // 2, q)] * columns[(*at, 1, corner % 2, q)]
            if finite:  # a weight is at least 0, or NaN
                value = tirx.Select(value >= g.const(0), value, g.const(0))
            if modulation is None:
                return value
            group, tap = at[-2:]
            return value * modulation[(*at[:-2], group * g.taps + tap, q)]

        return g.corners(name, g.problem.accumulate, rule)


def _pack_by_output(g: Graph, weight: te.Tensor) -> te.Tensor:
    """[group, panel, tap, channel, column]: the GEMM's right operand in panels of whole vectors."""
    p, columns = g.problem, g.tiling.columns
    outputs = p.out_channels // p.groups

    def value(group: Expr, panel: Expr, t: Expr, c: Expr, column: Expr) -> Expr:
        o = panel * columns + column
        inside = g.real(weight[group * outputs + o, c, t // g.kw, t % g.kw])
        return inside if outputs % columns == 0 else _inside(o < outputs, inside)

    shape = (p.groups, -(-outputs // columns), g.taps, p.in_channels // p.groups, columns)
    return te.compute(shape, value, name="packed")


def _inside(condition: Expr, value: Expr) -> Expr:
    return tirx.if_then_else(condition, value, tirx.const(0, value.ty.dtype))


def _grouped_gemm(g: Graph, samples: te.Tensor, packed: te.Tensor) -> te.Tensor:
    """Row sums in two levels, taps of a chunk then chunks, so that a chunk stays in the cache."""
    p, taps, columns = g.problem, g.tiling.taps, g.tiling.columns
    channels, rows = p.in_channels // p.groups, g.tiling.rows
    width = packed.shape[1].value * columns
    t, c = te.reduce_axis((0, taps), "t"), te.reduce_axis((0, channels), "c")

    def part(item: Expr, chunk: Expr, group: Expr, q: Expr, o: Expr) -> Expr:
        tap = chunk * taps + t
        left = samples[item, q, tap, group * channels + c]
        return te.sum(left * packed[group, o // columns, tap, c, o % columns], axis=[t, c])

    partial = te.compute((g.items, g.taps // taps, p.groups, rows, width), part, name="partial")
    chunk = te.reduce_axis((0, g.taps // taps), "chunk")
    return te.compute(
        (g.items, p.groups, rows, width),
        lambda item, group, q, o: te.sum(partial[item, chunk, group, q, o], axis=[chunk]),
        name="sums",
    )


def _store_rows(g: Graph, sums: te.Tensor, bias: te.Tensor | None) -> te.Tensor:
    """Add the bias and store the tile's rows that exist, in the output's type and layout."""
    p, rows = g.problem, g.tiling.rows
    per_group = p.out_channels // p.groups

    def body(ins: list[Any], outs: list[Any]) -> None:
        (source, *rest), (output,) = ins, outs

        def store(item: Expr, q: Expr, o: Expr, group: int) -> None:
            image, tile = g.locate((item,))
            channel = o + group * per_group
            value = source[item, group, q, o]
            if rest:
                value = value + g.real(rest[0][channel])
            where = g.index(image, channel, tile * rows + q)
            T.buffer_store(output, value.astype(p.dtype), where)

        with T.parallel(int64(0), g.items) as loop, T.sblock("store"):
            item = T.axis.spatial(g.items, loop)
            image, tile = g.locate((item,))
            T.reads(source[item, 0 : p.groups, 0:rows, 0 : sums.shape[3]])
            T.writes(output[(image, *(slice(0, extent) for extent in output.shape[1:]))])
            count = te.min(int64(rows), g.pixels - tile * rows)
            for group in range(p.groups):
                if p.layout == "nchw":
                    with T.serial(int64(0), int64(per_group)) as o, T.serial(int64(0), count) as q:
                        store(item, q, o, group)
                    continue
                with T.serial(int64(0), count) as q:
                    for start, number, width in nest.vectors(per_group, g.tiling.lanes):
                        with T.serial(int64(0), int64(number)) as block:
                            with T.vectorized(int64(0), int64(width)) as lane:
                                store(item, q, start + block * width + lane, group)

    inputs = [sums] if bias is None else [sums, bias]
    return nest.nest([g.map_shape(p.out_channels)], inputs, body, "output", [p.dtype])[0]


def backward_data(
    problem: DeformConv2dProblem, tiling: Tiling, outputs: Sequence[str]
) -> tuple[Any, Close, Graph]:
    """Gradients with respect to any of input, offset and mask.

    A worker owns a slice of channels of one image and walks its tiles in order, so the scatter
    needs no atomics and its sums do not depend on threads or on how a batch is cut.
    """
    g, p = Graph(problem, tiling, "images"), problem
    grad = g.argument("grad", g.map_shape(p.out_channels))
    x = g.argument("input", g.map_shape(p.in_channels, output_sized=False))
    offset = g.argument("offset", g.map_shape(2 * g.taps * p.offset_groups))
    weight = g.argument("weight", (p.out_channels, p.in_channels // p.groups, g.kh, g.kw))
    mask = g.argument("mask", g.map_shape(g.taps * p.offset_groups)) if p.modulated else None

    products = _grad_samples(g, grad, _pack_by_channel(g, weight))
    where = Where(g, offset, mask)
    dots = {name: DOTS[name] for name in outputs if name in DOTS}
    slopes = [where.slopes(kind) for kinds in dots.values() for kind in kinds]
    x_rows = g.rows_of(x, "input_rows", g.channels, p.dtype) if dots else None
    share = where.share(scattered=True) if "grad_input" in outputs else None
    corners = (where.pixel(slopes=True), share, slopes)
    results = deform_scatter.emit(g, dots, products, corners, x_rows)
    arguments = [*g.arguments, *(results[name] for name in outputs)]
    return *nest.prim_func(arguments, g.derived, finishing=outputs), g


def _pack_by_channel(g: Graph, weight: te.Tensor) -> te.Tensor:
    """[slice, part, tap, panel, output, column]: columns are the slice's channels, padded.

    A slice that spans several convolution groups has one part for each.
    """
    p, columns = g.problem, g.tiling.columns
    parts, width = g.parts
    group_channels, outputs = p.in_channels // p.groups, p.out_channels // p.groups

    def value(s: Expr, part: Expr, t: Expr, panel: Expr, o: Expr, column: Expr) -> Expr:
        local = panel * columns + column
        channel = (s * parts + part) * width + local
        group = channel // group_channels if p.groups > 1 else 0
        within = channel % group_channels if p.groups > 1 else channel
        inside = g.real(weight[group * outputs + o, within, t // g.kw, t % g.kw])
        if width % columns == 0 and g.channels == p.in_channels:
            return inside
        return _inside(tirx.all(local < width, channel < p.in_channels), inside)

    shape = (g.slices, parts, g.taps, -(-width // columns), outputs, columns)
    return te.compute(shape, value, name="packed")


def _grad_samples(g: Graph, grad: te.Tensor, packed: te.Tensor) -> te.Tensor:
    """[.., tap, part, row, channel]: the gradient with respect to every sample, w^T dy."""
    p, columns = g.problem, g.tiling.columns
    parts, width = g.parts
    outputs, group_channels = p.out_channels // p.groups, p.in_channels // p.groups

    def tile(item: Expr, t: Expr, q: Expr, o: Expr) -> Expr:
        image, number = g.locate((item, t))
        return g.by_tile(number, q, lambda row: g.at(grad, image, o, row))

    rows = te.compute((*g.outer, g.tiling.rows, p.out_channels), tile, name="grad_tile")
    o = te.reduce_axis((0, outputs), "o")

    def product(item: Expr, t: Expr, tap: Expr, part: Expr, q: Expr, c: Expr) -> Expr:
        s = g.slice_of((item,))
        group = ((s * parts + part) * width) // group_channels if p.groups > 1 else 0
        right = packed[s, part, tap, c // columns, o, c % columns]
        return te.sum(rows[item, t, q, group * outputs + o] * right, axis=[o])

    shape = (g.taps, parts, g.tiling.rows, packed.shape[3].value * columns)
    return te.compute((*g.outer, *shape), product, name="products")


def backward_weight(
    problem: DeformConv2dProblem, tiling: Tiling, outputs: Sequence[str]
) -> tuple[Any, Close, Graph]:
    """Gradients with respect to weight and bias: sums over all rows, in a fixed order.

    A worker owns a slice of input channels with all taps and outputs, so nothing is shared.
    """
    g, p = Graph(problem, tiling, "slices"), problem
    grad = g.argument("grad", g.map_shape(p.out_channels))
    grad_rows = g.rows_of(grad, "grad_rows", p.out_channels, p.accumulate)
    results = {}
    if "grad_weight" in outputs:
        x = g.argument("input", g.map_shape(p.in_channels, output_sized=False))
        offset = g.argument("offset", g.map_shape(2 * g.taps * p.offset_groups))
        mask = g.argument("mask", g.map_shape(g.taps * p.offset_groups)) if p.modulated else None
        x_rows = g.rows_of(x, "input_rows", g.channels, p.dtype)
        where = Where(g, offset, mask)
        samples = g.samples(x_rows, where.pixel(exact_rows=True), where.share())
        results["grad_weight"] = _grad_weight(g, samples, grad_rows)
    if "grad_bias" in outputs:
        results["grad_bias"] = _grad_bias(g, grad_rows)
    return *nest.prim_func([*g.arguments, *(results[name] for name in outputs)], g.derived), g


def _grad_weight(g: Graph, samples: te.Tensor, grad_rows: te.Tensor) -> te.Tensor:
    p, columns = g.problem, g.tiling.columns
    parts, width = g.parts
    outputs, group_channels = p.out_channels // p.groups, p.in_channels // p.groups
    wide = -(-outputs // columns) * columns
    q = te.reduce_axis((0, g.tiling.rows), "q")

    def grad_value(s: Expr, n: Expr, tile: Expr, r: Expr, part: Expr, o: Expr) -> Expr:
        group = ((s * parts + part) * width) // group_channels if p.groups > 1 else 0
        value = _row_value(g, grad_rows, n, g.row(tile, r), group * outputs + o)
        return value if outputs == wide else _inside(o < outputs, value)

    grads = te.compute((*g.outer, g.tiling.rows, parts, wide), grad_value, name="grad_tile")

    def tile_sum(s: Expr, n: Expr, tile: Expr, t: Expr, part: Expr, c: Expr, o: Expr) -> Expr:
        left = samples[s, n, tile, q, t, part * width + c]
        return te.sum(left * grads[s, n, tile, q, part, o], axis=[q])

    shape = (g.taps, parts, width, wide)
    partial = te.compute((*g.outer, *shape), tile_sum, name="partial")
    n, tile = te.reduce_axis((0, g.n), "image"), te.reduce_axis((0, g.tiles), "tile")
    sums = te.compute(
        (g.slices, *shape),
        lambda s, t, part, c, o: te.sum(partial[s, n, tile, t, part, c, o], axis=[n, tile]),
        name="sums",
    )

    def value(o: Expr, c: Expr, a: Expr, b: Expr) -> Expr:
        channel = (o // outputs) * group_channels + c if p.groups > 1 else c
        s, local = channel // (parts * width), channel % (parts * width)
        total = sums[s, a * g.kw + b, local // width, local % width, o % outputs]
        return total.astype(p.dtype)

    return te.compute((p.out_channels, group_channels, g.kh, g.kw), value, name="grad_weight")


def _row_value(g: Graph, rows: te.Tensor, image: Expr, pixel: Expr, c: Expr) -> Expr:
    return g.real(rows[g.row_index(rows, image, pixel, c)])


def _grad_bias(g: Graph, grad_rows: te.Tensor) -> te.Tensor:
    """Tile sums, then their sum: an error that grows with the tile, not with the whole batch."""
    p, rows = g.problem, g.tiling.rows
    q = te.reduce_axis((0, rows), "q")

    def tile_sum(n: Expr, tile: Expr, o: Expr) -> Expr:
        value = _row_value(g, grad_rows, n, g.row(tile, q), o)
        return te.sum(_inside(tile * int64(rows) + q < g.pixels, value), axis=[q])

    partial = te.compute((g.n, g.tiles, p.out_channels), tile_sum, name="bias_partial")
    n, tile = te.reduce_axis((0, g.n), "image"), te.reduce_axis((0, g.tiles), "tile")
    total = te.compute(
        (p.out_channels,), lambda o: te.sum(partial[n, tile, o], axis=[n, tile]), name="bias_sums"
    )
    return te.compute((p.out_channels,), lambda o: total[o].astype(p.dtype), name="grad_bias")
