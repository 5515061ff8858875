"""Sampled columns of a deformable convolution, in a block's shared memory."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import sampling
from dcn_tvm.te.gpu.conv import VECTOR_BYTES, Frame
from dcn_tvm.te.gpu.grid import Expr, div, int32, mod
from dcn_tvm.te.gpu.product import Product
from dcn_tvm.te.gpu.shared import BYTES
from dcn_tvm.te.nest import int64


class Columns:
    """Samples of a tile: `count` rows by `span` channels, a few vectors of them by each thread.

    A thread keeps where its rows' samples are (pixel and share of four corners) for as long as tap
    and offset group stay the same, which is so for all its channels of a tap in most problems.
    """

    def __init__(
        self,
        g: Frame,
        product: Product,
        count: int,
        span: int,
        threads: int,
        *,
        exact: bool = False,
    ) -> None:
        self.g, self.product, self.exact = g, product, exact
        self.vector = math.gcd(g.vector(g.problem.dtype), span)
        self.across = span // self.vector
        self.passes = max(1, count * self.across // threads)
        self.busy = min(threads, count * self.across)  # threads that have something to do
        self.count, self.step = count, self.busy // self.across

    def open(self, x: Any, offset: Any, mask: Any, thread: Expr) -> None:
        """Allocate what a thread keeps."""
        g, r = self.g, self.passes
        self.x, self.offset, self.mask, self.thread = x, offset, mask, thread
        self.local = {
            name: T.sblock_alloc_buffer((size,), dtype, scope="local")
            for name, size, dtype in (
                ("image", r, "int32"),
                ("y", r, "int32"),
                ("x", r, "int32"),
                ("inside", r, "int32"),
                ("pixel", 4 * r, "int32"),
                ("share", 4 * r, g.problem.accumulate),
                ("read", 4 * r * self.vector, g.problem.dtype),
                ("blended", self.vector, self.product.dtype),
                ("position", 2, g.problem.accumulate),
                ("cell", 4, "int32"),
                ("weight", 4, g.problem.accumulate),
                ("group", 1, "int32"),
            )
        }
        T.buffer_store(self.local["group"], int32(-1), [0])
        # of channels that do not exist, whose samples are never looked for: 0 times 0
        with T.unroll(int64(0), int64(4 * r)) as i:
            T.buffer_store(self.local["pixel"], int32(-1), [i])
            T.buffer_store(self.local["share"], g.const(0), [i])

    def row(self, i: Expr) -> Expr:
        """Row of the tile that a thread's pass `i` is about."""
        return self.thread // self.across + i * self.step

    @property
    def lane(self) -> Expr:
        """First channel, within the tile, of the thread's vectors."""
        return self.thread % self.across * self.vector

    def take(self, first: Expr) -> None:
        """Begin with the rows from `first` on."""
        g, local = self.g, self.local
        with T.unroll(int64(0), int64(self.passes)) as i:
            row = first + self.row(i)
            inside = row < g.rows
            safe = tirx.Select(inside, row, g.rows - 1)
            T.buffer_store(local["image"], div(safe, g.pixels).astype("int32"), [i])
            pixel = safe - local["image"][i].astype("int64") * g.pixels
            T.buffer_store(local["y"], div(pixel, g.wo).astype("int32"), [i])
            T.buffer_store(
                local["x"], (pixel - local["y"][i].astype("int64") * g.wo).astype("int32"), [i]
            )
            T.buffer_store(local["inside"], inside.astype("int32"), [i])

    def locate(self, tap: Expr, group: Expr) -> None:
        """Find the samples of all rows, unless the thread is idle."""
        with T.If(self.thread < self.busy), T.Then(), T.unroll(int64(0), int64(self.passes)) as i:
            self._locate(i, tap, group)

    def _locate(self, i: Expr, tap: Expr, group: Expr) -> None:
        g, p, local = self.g, self.g.problem, self.local
        image, y, x = (local[name][i] for name in ("image", "y", "x"))
        pixel = y.astype("int64") * g.wo + x
        where = locations(g, self.offset, image.astype("int64"), y, x, pixel, tap, group)
        store_weights(g, where, local["position"], local["cell"], local["weight"])
        skip = sampling.skipped(local["position"][0], local["position"][1], g.h, g.w, p.boundary)
        if self.exact:
            skip = tirx.any(skip, local["inside"][i] == 0)
        modulation: Expr = g.const(1)
        if self.mask is not None:
            modulation = g.real(
                self.mask[tuple(g.index(image.astype("int64"), group * g.taps + tap, pixel))]
            )
        for corner in range(4):
            down, across = corner // 2, 2 + corner % 2
            linear = local["cell"][down] * g.w.astype("int32") + local["cell"][across]
            T.buffer_store(local["pixel"], tirx.Select(skip, int32(-1), linear), [i * 4 + corner])
            share = local["weight"][down] * local["weight"][across] * modulation
            if self.exact:
                share = tirx.Select(local["inside"][i] == 0, g.const(0), share)
            T.buffer_store(local["share"], share, [i * 4 + corner])

    def fetch(self, channel: Expr, exists: Expr) -> None:
        """Read the corners of the thread's vectors, which start at `channel` if it exists."""
        g, local, v = self.g, self.local, self.vector
        with T.unroll(int64(0), int64(self.passes)) as i, T.unroll(int64(0), int64(4)) as corner:
            pixel = local["pixel"][i * 4 + corner]
            first = (i * 4 + corner) * v
            with T.If(tirx.all(pixel >= 0, exists)):
                with T.Then(), T.vectorized(int64(0), int64(v)) as lane:
                    image = local["image"][i].astype("int64")
                    at = g.row_index(self.x, image, pixel.astype("int64"), channel + lane)
                    T.buffer_store(local["read"], self.x[tuple(at)], [first + lane])
                with T.Else(), T.vectorized(int64(0), int64(v)) as lane:
                    T.buffer_store(local["read"], tirx.const(0, g.problem.dtype), [first + lane])

    def store(self, stage: Expr) -> None:
        """Blend the corners that were read and put the samples into the tile."""
        g, local, v, product = self.g, self.local, self.vector, self.product
        with T.If(self.thread < self.busy), T.Then(), T.unroll(int64(0), int64(self.passes)) as i:
            with T.unroll(int64(0), int64(v)) as lane:
                value: Expr = g.const(0)
                for corner in range(4):
                    read = g.real(local["read"][(i * 4 + corner) * v + lane])
                    value = value + local["share"][i * 4 + corner] * read
                T.buffer_store(local["blended"], value.astype(product.dtype), [lane])
            row, first = self.row(i), self.lane
            at = (
                product.a_place(stage, first, row)
                if product.turned
                else product.a_place(stage, row, first)
            )
            if v * BYTES[product.dtype] == VECTOR_BYTES and product.shape.tensor:
                product.put(product.a, at, local["blended"])
            else:
                with T.unroll(int64(0), int64(v)) as lane:
                    T.buffer_store(product.a, local["blended"][lane], [at + lane])


def locations(
    g: Frame, offset: Any, image: Expr, y: Expr, x: Expr, pixel: Expr, tap: Expr, group: Expr
) -> tuple[Expr, Expr]:
    """Where a row's sample is: (y, x) in pixels of the input."""
    p = g.problem
    found = []
    for axis, at in enumerate((y, x)):
        step = div(tap, int64(g.kw)) if axis == 0 else mod(tap, int64(g.kw))
        start = at.astype("int64") * p.stride[axis] - p.padding[axis] + step * p.dilation[axis]
        moved = offset[tuple(g.index(image, (group * g.taps + tap) * 2 + axis, pixel))]
        found.append(g.real(start) + g.real(moved))
    return found[0], found[1]


def store_weights(
    g: Frame, where: tuple[Expr, Expr], position: Any, cell: Any, weight: Any
) -> None:
    """Put a sample's position, its two lines and two columns and their weights into registers."""
    for axis, size in enumerate((g.h, g.w)):
        T.buffer_store(position, where[axis], [axis])
        for side in range(2):
            arguments = (position[axis], size, int32(side))
            T.buffer_store(cell, sampling.index(*arguments), [axis * 2 + side])
            T.buffer_store(
                weight, sampling.weight(*arguments, g.problem.boundary), [axis * 2 + side]
            )
