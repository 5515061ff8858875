"""The nest that consumes the gradients of all samples: scatter to the input, dots with its pixels.

`te.compute` cannot add to a place that the data names. One worker owns a slice of channels of one
image, so plain vector stores suffice and the order of additions is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.deform_tiles import Graph
from dcn_tvm.te.nest import int64

Expr = Any


Dots = Mapping[str, Sequence[str]]
Use = Callable[[Expr, Expr, Expr, Expr], None]
Corners = tuple[te.Tensor, "te.Tensor | None", "list[te.Tensor]"]


def emit(
    g: Graph,
    dots: Dots,
    products: te.Tensor,
    corners: Corners,
    x_rows: te.Tensor | None,
) -> dict[str, te.Tensor]:
    """Gradients by name: grad_input if the corners have shares, and those named in `dots`.

    `dots` names for each of grad_offset and grad_mask the kinds of sums over channels that are its
    channels; `corners` holds each corner's pixel, its share, and one slope for each kind.
    """
    pixel, share, slopes = corners
    shapes, inputs = [], [products, pixel]
    if share is not None:
        shapes.append(_input_rows_shape(g))
        inputs.append(share)
    if x_rows is not None:
        shapes += [_sums_shape(g, len(kinds)) for kinds in dots.values()]
        inputs += [x_rows, *slopes]

    def body(ins: list[Any], outs: list[Any]) -> None:
        _, _, *rest = ins
        shares = rest.pop(0) if share is not None else None
        rows = rest.pop(0) if x_rows is not None else None
        sums = list(outs)
        grad_rows = sums.pop(0) if share is not None else None
        Walk(g, ins[0], ins[1], shares, rows, rest, grad_rows, _channels_of(dots, sums)).emit()

    results = nest.nest(shapes, inputs, body, "scattered", [g.problem.accumulate] * len(shapes))
    found = {}
    if share is not None:
        found["grad_input"] = _finish_input(g, results.pop(0))
    for (name, kinds), sums in zip(dots.items(), results, strict=True):
        found[name] = _finish_sums(g, sums, name, len(kinds))
    return found


def _channels_of(dots: Dots, sums: list[Any]) -> list[tuple[Any, int, int]]:
    """For each kind: the buffer of its sums, its place among the kinds there, and their number."""
    return [
        (buffer, place, len(kinds))
        for buffer, kinds in zip(sums, dots.values(), strict=True)
        for place in range(len(kinds))
    ]


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
        return rows[g.row_index(rows, b, y * g.w + x, c)].astype(p.dtype)

    shape = g.map_shape(p.in_channels, output_sized=False)
    return te.compute(shape, value, name="grad_input")


def _sharing(g: Graph) -> int:
    """Channel slices that an offset group is spread over; their sums are added up at the end."""
    return max(1, g.group_channels // (g.channels // g.slices))


def _sums_shape(g: Graph, kinds: int) -> tuple[Expr, ...]:
    shape = g.map_shape(kinds * g.taps * g.problem.offset_groups)
    return (int64(_sharing(g)), *shape) if _sharing(g) > 1 else shape


def _finish_sums(g: Graph, sums: te.Tensor, name: str, kinds: int) -> te.Tensor:
    """Add up the slices that share a group, in order; without any, the sums are the output."""
    p, sharing = g.problem, _sharing(g)
    if sharing == 1 and p.dtype == p.accumulate:
        return sums

    def value(*index: Expr) -> Expr:
        if sharing == 1:
            return sums[index].astype(p.dtype)
        total = sums[(int64(0), *index)]
        for share in range(1, sharing):
            total = total + sums[(int64(share), *index)]
        return total.astype(p.dtype)

    return te.compute(g.map_shape(kinds * g.taps * p.offset_groups), value, name=name)


@dataclass(frozen=True)
class Scratch:
    """Buffers of one worker for the sums over channels."""

    corners: Any  # [corner, lane]
    block: Any  # [dot, row of the block, lane]
    halves: list[Any]


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
        sums: list[tuple[Any, int, int]],
    ) -> None:
        self.g, self.dots = g, len(slopes)
        self.products, self.pixel = products, pixel
        self.share: Any = share
        self.x_rows: Any = x_rows
        self.slopes = slopes
        self.grad_rows: Any = grad_rows
        self.sums = sums
        self.width = g.channels // g.slices
        self.span = min(self.width, g.group_channels)
        self.lanes = g.tiling.sample_lanes
        self.block = math.gcd(g.tiling.rows, 16)

    def emit(self) -> None:
        """Emit into the current IRBuilder."""
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
                self._rows(worker, tile, chunk)

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
                        where = g.row_index(self.grad_rows, image, pixel, c)
                        T.buffer_store(self.grad_rows, g.const(0), list(where))

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
        writes += [buffer[whole(buffer, 0)] for buffer, place, _ in self.sums if place == 0]
        T.writes(*writes)

    def _rows(self, worker: Expr, tile: Expr, chunk: Expr) -> None:
        """Blocks of rows, then groups, then taps: a group's pixels stay in the first cache."""
        g = self.g
        scratch = self._scratch() if self.dots else None
        count = te.min(int64(g.tiling.rows), g.pixels - tile * g.tiling.rows)
        blocks = (count + (self.block - 1)) // self.block
        groups = self.width // self.span
        with T.serial(int64(0), blocks) as b, T.serial(int64(0), int64(groups)) as local_group:
            with T.serial(0, g.tiling.taps) as t:
                first = (worker % g.slices) * self.width + local_group * self.span
                at = (worker, tile, first // g.group_channels, chunk * g.tiling.taps + t)
                left = te.min(int64(self.block), count - b * self.block)
                if scratch is not None:
                    with T.serial(int64(0), left) as r:
                        self._weigh(at, b * self.block + r, r, local_group, scratch)
                    with T.serial(int64(0), left) as r:
                        self._store_sums(at, b * self.block + r, r, first, scratch)
                if self.grad_rows is not None:
                    with T.serial(int64(0), left) as r:
                        self._add(at, b * self.block + r, local_group)

    def _scratch(self) -> Scratch:
        """Corner sums in registers, a block's weighted sums in memory, and their halves.

        The block is in memory on purpose: from a register LLVM folds 16 lanes one by one.
        """
        dtype = self.g.problem.accumulate
        widths = [self.lanes >> level for level in range(1, self.lanes.bit_length())]
        return Scratch(
            T.sblock_alloc_buffer((4, self.lanes), dtype, scope="local"),
            T.sblock_alloc_buffer((self.dots, self.block, self.lanes), dtype),
            [T.sblock_alloc_buffer((width,), dtype, scope="local") for width in widths],
        )

    def _vectors(self, at: tuple[Expr, ...], q: Expr, local_group: Expr, use: Use) -> None:
        """Call `use(product, image, c, lane)` for each vector of the group, if q is inside."""
        g = self.g
        worker, tile, _, tap = at
        parts, inner = g.parts
        with T.If(self.pixel[(*at, 0, q)] >= 0), T.Then():
            with T.serial(int64(0), int64(self.span // self.lanes)) as block:
                with T.vectorized(int64(0), int64(self.lanes)) as lane:
                    local = local_group * self.span + block * self.lanes + lane
                    part, within = (local // inner, local % inner) if parts > 1 else (0, local)
                    product = self.products[worker, tile, tap, part, q, within]
                    c = (worker % g.slices) * self.width + local
                    use(product, worker // g.slices, c, lane)

    def _add(self, at: tuple[Expr, ...], q: Expr, local_group: Expr) -> None:
        """Scatter: add the products, shared out, to the four pixels."""
        g = self.g

        def use(product: Expr, image: Expr, c: Expr, lane: Expr) -> None:
            for i in range(4):
                where = g.row_index(self.grad_rows, image, int64(self.pixel[(*at, i, q)]), c)
                added = self.grad_rows[where] + self.share[(*at, i, q)] * product
                T.buffer_store(self.grad_rows, added, list(where))

        self._vectors(at, q, local_group, use)

    def _weigh(
        self, at: tuple[Expr, ...], q: Expr, r: Expr, local_group: Expr, scratch: Scratch
    ) -> None:
        """Dots of the products with the four pixels, weighed by the slopes; lanes stay apart.

        Apart from `_add`: its stores and these loads would fall on equal addresses modulo 4096,
        which processors take for a dependency.
        """
        g, sums = self.g, scratch.corners

        def use(product: Expr, image: Expr, c: Expr, lane: Expr) -> None:
            for i in range(4):
                where = g.row_index(self.x_rows, image, int64(self.pixel[(*at, i, q)]), c)
                value = g.real(self.x_rows[where])
                T.buffer_store(sums, sums[i, lane] + product * value, [i, lane])

        with T.unroll(0, 4) as i, T.vectorized(0, self.lanes) as lane:
            T.buffer_store(sums, g.const(0), [i, lane])
        self._vectors(at, q, local_group, use)
        for d in range(self.dots):
            with T.vectorized(0, self.lanes) as lane:
                total = self.slopes[d][(*at, 0, q)] * sums[0, lane]
                for i in range(1, 4):
                    total = total + self.slopes[d][(*at, i, q)] * sums[i, lane]
                T.buffer_store(scratch.block, total, [d, r, lane])

    def _store_sums(
        self, at: tuple[Expr, ...], q: Expr, r: Expr, first: Expr, scratch: Scratch
    ) -> None:
        """Fold the lanes of the weighted sums in halves, and store them."""
        g = self.g
        worker, tile, group, tap = at
        share = (first % g.group_channels) // self.width
        for d in range(self.dots):
            folded: Expr = scratch.block[d, r, 0]
            for level, target in enumerate(scratch.halves):
                half = self.lanes >> (level + 1)
                with T.vectorized(0, half) as lane:
                    if level == 0:
                        low, high = scratch.block[d, r, lane], scratch.block[d, r, lane + half]
                    else:
                        source = scratch.halves[level - 1]
                        low, high = source[lane], source[lane + half]
                    T.buffer_store(target, low + high, [lane])
                folded = target[0]
            buffer, place, kinds = self.sums[d]
            channel = (group * g.taps + tap) * kinds + place
            where = g.index(worker // g.slices, channel, tile * g.tiling.rows + q)
            T.buffer_store(buffer, folded, [share, *where] if _sharing(g) > 1 else where)
