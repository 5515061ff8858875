"""The nest that consumes the gradients of all samples: scatter to the input, dots with its pixels.

`te.compute` cannot add to a place that the data names. One worker owns a slice of channels of one
image, so plain vector stores suffice and the order of additions is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.deform_tiles import Graph
from dcn_tvm.te.nest import int64

Expr = Any


Corners = tuple[te.Tensor, "te.Tensor | None", "list[te.Tensor]"]


def emit(
    g: Graph,
    outputs: Sequence[str],
    dots: Sequence[str],
    products: te.Tensor,
    corners: Corners,
    x_rows: te.Tensor | None,
) -> dict[str, te.Tensor]:
    """Tensors of `outputs`, a subset of grad_input, grad_offset, grad_mask.

    `corners` holds each corner's pixel, its share (for grad_input) and, for each sum over channels
    named in `dots`, its slope.
    """
    pixel, share, slopes = corners
    shapes, inputs = [], [products, pixel]
    if share is not None:
        shapes.append(_input_rows_shape(g))
        inputs.append(share)
    if x_rows is not None:
        shapes.append(_dots_shape(g, len(dots)))
        inputs += [x_rows, *slopes]

    def body(ins: list[Any], outs: list[Any]) -> None:
        _, _, *rest = ins
        shares = rest.pop(0) if share is not None else None
        rows = rest.pop(0) if x_rows is not None else None
        grad_rows = outs[0] if share is not None else None
        sums = outs[-1] if x_rows is not None else None
        Walk(g, ins[0], ins[1], shares, rows, rest, grad_rows, sums).emit()

    results = nest.nest(shapes, inputs, body, "scattered", [g.problem.accumulate] * len(shapes))
    found = {}
    if share is not None:
        found["grad_input"] = _finish_input(g, results[0])
    if x_rows is not None:
        found |= _finish_dots(g, results[-1], outputs, dots)
    return found


def _direct(g: Graph) -> bool:
    """Whether the rows that are scattered to are the output itself."""
    p = g.problem
    return p.layout == "nhwc" and p.dtype == p.accumulate and g.channels == p.in_channels


def _input_rows_shape(g: Graph) -> tuple[Expr, ...]:
    if _direct(g):
        return g.map_shape(g.problem.in_channels, output_sized=False)
    return (g.n, g.h * g.w, int64(g.channels))


def _finish_input(g: Graph, rows: te.Tensor) -> te.Tensor:
    if _direct(g):
        return rows
    p = g.problem

    def value(b: Expr, i: Expr, j: Expr, k: Expr) -> Expr:
        c, y, x = (i, j, k) if p.layout == "nchw" else (k, i, j)
        return rows[b, y * g.w + x, c].astype(p.dtype)

    shape = g.map_shape(p.in_channels, output_sized=False)
    return te.compute(shape, value, name="grad_input")


def _sharing(g: Graph) -> int:
    """Channel slices that an offset group is spread over; their dots are added up at the end."""
    return max(1, (g.channels // g.problem.offset_groups) // (g.channels // g.slices))


def _dots_shape(g: Graph, count: int) -> tuple[Expr, ...]:
    channels = g.problem.offset_groups * g.taps
    return (int64(_sharing(g)), int64(count), g.n, int64(channels), g.pixels)


def _finish_dots(
    g: Graph, sums: te.Tensor, outputs: Sequence[str], dots: Sequence[str]
) -> dict[str, te.Tensor]:
    found = {}
    for name, kinds in (("grad_offset", ("y", "x")), ("grad_mask", ("mask",))):
        if name in outputs:
            found[name] = _finish_dot(g, sums, name, dots.index(kinds[0]), len(kinds))
    return found


def _finish_dot(g: Graph, sums: te.Tensor, name: str, first: int, width: int) -> te.Tensor:
    """Add up the slices that share a group, in order; `width` kinds interleave as channels."""
    p = g.problem

    def value(b: Expr, i: Expr, j: Expr, k: Expr) -> Expr:
        c, y, x = (i, j, k) if p.layout == "nchw" else (k, i, j)
        which = first + c % width if width > 1 else int64(first)
        total = sums[int64(0), which, b, c // width, y * g.wo + x]
        for share in range(1, _sharing(g)):
            total = total + sums[int64(share), which, b, c // width, y * g.wo + x]
        return total.astype(p.dtype)

    return te.compute(g.map_shape(width * g.taps * p.offset_groups), value, name=name)


class Walk:
    """Emits the loops of one worker over the tiles, rows, taps and groups of its slice."""

    def __init__(
        self,
        g: Graph,
        products: Any,
        pixel: Any,
        share: Any | None,
        x_rows: Any | None,
        slopes: list[Any],
        grad_rows: Any | None,
        sums: Any | None,
    ) -> None:
        self.g, self.dots = g, len(slopes)
        self.products, self.pixel, self.share = products, pixel, share
        self.x_rows, self.slopes = x_rows, slopes
        self.grad_rows, self.sums = grad_rows, sums
        self.width = g.channels // g.slices
        self.group_channels = g.channels // g.problem.offset_groups
        self.span = min(self.width, self.group_channels)
        self.lanes = g.tiling.sample_lanes

    def emit(self) -> None:
        g = self.g
        workers = g.n * g.slices
        if self.grad_rows is not None:
            self._zero(workers)
        chunks = g.taps // g.tiling.taps
        with T.parallel(int64(0), workers) as w, T.serial(int64(0), g.tiles) as t:
            with T.serial(0, chunks) as k, T.sblock("scatter"):
                worker = T.axis.spatial(workers, w)
                tile = T.axis.opaque(g.tiles, t)
                chunk = T.axis.opaque(chunks, k)
                self._regions(worker, tile, chunk)
                scratch = None
                if self.dots:
                    shape = (4 + self.dots, self.lanes)
                    scratch = T.sblock_alloc_buffer(shape, g.problem.accumulate, scope="local")
                self._rows(worker, tile, chunk, scratch)

    def _row_index(self, rows: Any, image: Expr, pixel: Expr, c: Expr) -> list[Expr]:
        return [image, int64(0), pixel, c] if len(rows.shape) == 4 else [image, pixel, c]

    def _zero(self, workers: Expr) -> None:
        g = self.g
        with T.parallel(int64(0), workers) as w, T.serial(int64(0), g.h * g.w) as p:
            with T.sblock("zero"):
                worker, pixel = T.axis.spatial(workers, w), T.axis.spatial(g.h * g.w, p)
                image, first = worker // g.slices, (worker % g.slices) * self.width
                T.writes(self._slice_region(worker))
                with T.serial(int64(0), int64(self.width // self.lanes)) as block:
                    with T.vectorized(int64(0), int64(self.lanes)) as lane:
                        c = first + block * self.lanes + lane
                        where = self._row_index(self.grad_rows, image, pixel, c)
                        T.buffer_store(self.grad_rows, g.const(0), where)

    def _slice_region(self, worker: Expr) -> Any:
        g = self.g
        image, first = worker // g.slices, (worker % g.slices) * self.width
        middle = [slice(int64(0), extent) for extent in self.grad_rows.shape[1:-1]]
        return self.grad_rows[(image, *middle, slice(first, first + self.width))]

    def _regions(self, worker: Expr, tile: Expr, chunk: Expr) -> None:
        taps = self.g.tiling.taps
        read = slice(chunk * taps, chunk * taps + taps)

        def whole(buffer: Any, start: int) -> tuple[slice, ...]:
            return tuple(slice(0, extent) for extent in buffer.shape[start:])

        reads = [self.products[(worker, tile, read, *whole(self.products, 3))]]
        for stage in (self.pixel, self.share, *self.slopes):
            if stage is not None:
                groups = slice(0, stage.shape[2])
                reads.append(stage[(worker, tile, groups, read, *whole(stage, 4))])
        if self.x_rows is not None:
            reads.append(self.x_rows[whole(self.x_rows, 0)])
        T.reads(*reads)
        writes = []
        if self.grad_rows is not None:
            writes.append(self._slice_region(worker))
        if self.sums is not None:
            writes.append(self.sums[whole(self.sums, 0)])
        T.writes(*writes)

    def _rows(self, worker: Expr, tile: Expr, chunk: Expr, scratch: Any) -> None:
        g = self.g
        count = te.min(int64(g.tiling.rows), g.pixels - tile * g.tiling.rows)
        with T.serial(int64(0), count) as q, T.serial(0, g.tiling.taps) as t:
            tap = chunk * g.tiling.taps + t
            with T.serial(int64(0), int64(self.width // self.span)) as local_group:
                first = (worker % g.slices) * self.width + local_group * self.span
                group = first // self.group_channels
                at = (worker, tile, group, tap)
                if self.dots:
                    self._clear(scratch)
                inside = self.pixel[(*at, 0, q)] >= 0
                with T.If(inside), T.Then():
                    self._channels(at, q, local_group, scratch)
                if self.dots:
                    self._store_dots(at, q, first, scratch)

    def _clear(self, scratch: Any) -> None:
        with T.unroll(0, 4) as i, T.vectorized(0, self.lanes) as lane:
            T.buffer_store(scratch, self.g.const(0), [i, lane])

    def _channels(self, at: tuple[Expr, ...], q: Expr, local_group: Expr, scratch: Any) -> None:
        """For each vector of channels: add to the four pixels, and multiply with them."""
        g = self.g
        worker, tile, _, tap = at
        image, inner = worker // g.slices, g.parts[1]
        with T.serial(int64(0), int64(self.span // self.lanes)) as block:
            with T.vectorized(int64(0), int64(self.lanes)) as lane:
                local = local_group * self.span + block * self.lanes + lane
                c = (worker % g.slices) * self.width + local
                part, within = (local // inner, local % inner) if g.parts[0] > 1 else (0, local)
                product = self.products[worker, tile, tap, part, q, within]
                for i in range(4):
                    pixel = int64(self.pixel[(*at, i, q)])
                    if self.dots:
                        value = g.row_value(self.x_rows, image, pixel, c)
                        T.buffer_store(scratch, scratch[i, lane] + product * value, [i, lane])
                    if self.grad_rows is not None:
                        where = self._row_index(self.grad_rows, image, pixel, c)
                        added = self.grad_rows[tuple(where)] + self.share[(*at, i, q)] * product
                        T.buffer_store(self.grad_rows, added, where)

    def _store_dots(self, at: tuple[Expr, ...], q: Expr, first: Expr, scratch: Any) -> None:
        """Weigh the four corners' sums by the slopes, fold the lanes in halves, store."""
        g = self.g
        worker, tile, group, tap = at
        for d in range(self.dots):
            with T.vectorized(0, self.lanes) as lane:
                total = self.slopes[d][(*at, 0, q)] * scratch[0, lane]
                for i in range(1, 4):
                    total = total + self.slopes[d][(*at, i, q)] * scratch[i, lane]
                T.buffer_store(scratch, total, [4 + d, lane])
            half = self.lanes // 2
            while half:
                with T.vectorized(0, half) as lane:
                    T.buffer_store(
                        scratch, scratch[4 + d, lane] + scratch[4 + d, lane + half], [4 + d, lane]
                    )
                half //= 2
            share = (first % self.group_channels) // self.width if _sharing(g) > 1 else int64(0)
            where = [share, int64(d), worker // g.slices, group * g.taps + tap]
            row = tile * g.tiling.rows + q
            T.buffer_store(self.sums, scratch[4 + d, 0], [*where, row])
