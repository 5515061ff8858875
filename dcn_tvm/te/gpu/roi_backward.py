"""The kernel of the gradients on a GPU: scatter to the pixels of each bin, dots for the offsets.

Blocks of all boxes add to the same pixels: with atomics, floating-point or fixed-point ones. The
gradient of an offset is a sum over channels and pixels that one block makes by itself, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.gpu import roi_ends, sums
from dcn_tvm.te.gpu.grid import Cells, ceil_div, int32
from dcn_tvm.te.gpu.roi_bins import Entry
from dcn_tvm.te.gpu.roi_block import Block, Blocking, over, rest
from dcn_tvm.te.gpu.roi_sources import Sources
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_bins import Rule
from dcn_tvm.te.roi_walk import unless_larger

FOUR = 4  # neighbours that one atomic addition can take


class Backward(Block):
    """Gradients of the input, of the offset, or of both.

    `scatters` says whether this kernel makes that of the input, by atomics; `moves` whether it
    makes that of the offset, for which its blocks have all channels of a class.
    """

    def __init__(
        self,
        g: Frame,
        rule: Rule,
        blocking: Blocking,
        *,
        scatters: bool,
        moves: bool,
        maximum: bool = False,
    ) -> None:
        super().__init__(g, rule, blocking)
        self.scatters, self.moves, self.maximum = scatters, moves, maximum
        self.reads = maximum or moves
        assert not moves or self.chunks == 1

    def emit(
        self,
        grad: te.Tensor,
        x: te.Tensor | None,
        offset: te.Tensor | None,
        scale: te.Tensor | None,
        sources: Sources,
    ) -> list[te.Tensor]:
        """Sums for the map, and the gradients of bins' moves or of offsets, any of the two."""
        g, p = self.g, self.g.problem
        shapes, dtypes = [], []
        if self.scatters:
            shapes.append(g.map_shape())
            dtypes.append(p.accumulate if scale is None else "int64")
        if self.moves:
            shapes.append(g.offset_shape() if self.finished else roi_ends.moves_shape(g))
            dtypes.append(p.dtype if self.finished else p.accumulate)
        given = {"x": x if self.reads else None, "offset": offset, "scale": scale}
        names = [name for name, tensor in given.items() if tensor is not None]
        tensors = [grad, *(given[name] for name in names), *sources.tensors]

        def body(ins: list[Any], outs: list[Any]) -> None:
            found = dict(zip(names, ins[1:], strict=False))
            self.grad, self.source, self.scale = ins[0], found.get("x"), found.get("scale")
            values = sources.values(ins[1 + len(names) :])
            targets = list(outs)
            self.target = targets.pop(0) if self.scatters else None
            self.moved_by = targets.pop(0) if self.moves else None
            if self.target is not None:
                roi_ends.zero(g, self.target, "zero")
            slopes = self.moves
            name = "scatter" if self.scatters else "dots"
            self.kernel(name, values, sources.image, found.get("offset"), self._body, slopes=slopes)

        return nest.nest(shapes, tensors, body, "scattered", dtypes)

    @property
    def finished(self) -> bool:
        """Whether each bin has an offset of its own, so that its gradient is one bin's."""
        return self.g.bins == self.g.problem.parts

    # -- the body ----------------------------------------------------------------------------

    def _body(self) -> None:
        p, blocking = self.g.problem, self.blocking
        self.loaded, self.grads = self.registers(p.dtype), self.registers(p.accumulate)
        if self.reads:
            self.pixels = self.registers(p.dtype)
        if self.maximum:
            self.largest, self.places = self.registers(p.accumulate), self.registers("int32")
            self.place = Cells("int32", "pixel")
        if not self.moves:
            self.each_bin(lambda _: self.each_unit(self._unit))
            return
        self.dots = [self.registers(p.accumulate) for _ in range(2)]
        self.total = Cells(p.accumulate, "y", "x")
        shape = (2, blocking.lanes, blocking.run)
        self.partial = T.sblock_alloc_buffer(shape, p.accumulate, scope="shared")
        self.each_bin(self._dots_of_bin)
        T.evaluate(T.tvm_storage_sync("shared"))
        self._reduce()

    def _unit(self) -> None:
        g, y, x = self.g, self.at["y"], self.at["x"]
        self.load(self.grad, self.output_index, self.loaded)

        def share(j: int) -> None:
            value: Expr = g.real(self.loaded[j])
            if not self.maximum:
                value = value * self.tables.inverse(y, x)
            T.buffer_store(self.grads, value, [j])

        self.each_channel(share)
        if self.maximum:
            self._to_largest(y, x)
        else:
            self.tables.entries(y, x, self._visit)

    def _visit(self, entry: Entry) -> None:
        g = self.g
        if self.target is not None:

            def share(j: int) -> Expr:
                return self.grads[j] if entry.share is None else entry.share * self.grads[j]

            self._add(entry.pixel, share)
        if entry.moves is None:
            return
        self.load(self.source, lambda j: self.map_index(j, entry.pixel), self.pixels)
        for dots, move in zip(self.dots, entry.moves, strict=True):
            for j in range(self.blocking.channels):
                T.buffer_store(dots, dots[j] + move * g.real(self.pixels[j]), [j])

    def _add(self, pixel: Expr, value: Callable[[int], Expr]) -> None:
        """Add to a pixel of each channel."""
        scale = None if self.scale is None else self.scale[0]
        channels = self.blocking.channels
        if self.blocking.adjacent and channels % FOUR == 0:
            for first in range(0, channels, FOUR):
                index = self.map_index(int64(first), pixel)
                values = [value(j) for j in range(first, first + FOUR)]
                sums.add_four(self.target, index, values, scale)
            return
        for j in range(channels):
            self._add_one(j, pixel, value(j), scale)

    def _add_one(self, j: int, pixel: Expr, value: Expr, scale: Expr | None) -> None:
        exists = None if self.blocking.adjacent else self.exists(j)
        if exists is None:
            sums.add(self.target, self.map_index(int64(j), pixel), value, scale)
            return
        with T.If(exists), T.Then():
            sums.add(self.target, self.map_index(int64(j), pixel), value, scale)

    # -- maxima ------------------------------------------------------------------------------

    def _to_largest(self, y: Expr, x: Expr) -> None:
        """Find the first largest pixel of each channel again, then add to it."""
        g, largest, places = self.g, self.largest, self.places
        # Until something is larger than minus infinity, the first pixel is the largest.
        none = tirx.const(-1, "int32")
        for j in range(self.blocking.channels):
            T.buffer_store(largest, g.const(float("-inf")), [j])
            T.buffer_store(places, none, [j])

        def find(entry: Entry) -> None:
            self.place["pixel"] = int32(entry.pixel)
            self.load(self.source, lambda j: self.map_index(j, entry.pixel), self.pixels)
            for j in range(self.blocking.channels):
                value, kept, place = g.real(self.pixels[j]), largest[j], places[j]
                here = self.place["pixel"]
                first = tirx.Select(place < 0, here, place)
                T.buffer_store(places, unless_larger(g, kept, value, first, here), [j])
                T.buffer_store(largest, unless_larger(g, kept, value, kept, value), [j])

        self.tables.entries(y, x, find)
        scale = None if self.scale is None else self.scale[0]
        with T.If(places[0] >= 0), T.Then():
            for j in range(self.blocking.channels):
                self._add_one(j, int64(places[j]), self.grads[j], scale)

    # -- moves -------------------------------------------------------------------------------

    def _dots_of_bin(self, local: Expr) -> None:
        """Gradient times d(mean)/d(shift) of this thread's channels."""
        self.total["y"] = self.total["x"] = self.g.const(0)

        def unit() -> None:
            for j in range(self.blocking.channels):
                for dots in self.dots:
                    T.buffer_store(dots, self.g.const(0), [j])
            self._unit()
            for dots, name in zip(self.dots, ("y", "x"), strict=True):
                for j in range(self.blocking.channels):
                    self.total[name] = self.total[name] + dots[j] * self.grads[j]

        self.each_unit(unit)
        for axis, name in enumerate(("y", "x")):
            T.buffer_store(self.partial, self.total[name], [axis, self.at["lane"], local])

    def _reduce(self) -> None:
        """Add up the lanes of each bin, in order."""
        g, blocking, at = self.g, self.blocking, self.at
        values = self.tables.values
        threads, count = blocking.threads, 2 * blocking.run
        thread = at["thread"]
        with T.serial(0, ceil_div(count - thread, threads)) as turn:
            item = thread + turn * threads
            axis, local = over(item, blocking.run), rest(item, blocking.run)
            at["bin"] = at["base"] + local
            with T.If(at["bin"] < self.bins), T.Then():
                self.total["y"] = g.const(0)
                with T.serial(0, blocking.lanes) as lane:
                    self.total["y"] = self.total["y"] + self.partial[axis, lane, local]
                k, wide = self.k, int64(axis)
                # Worked out apart: stages are short expressions only of a constant axis.
                sizes = [values(self.rule.stages["size"], k, a) for a in range(2)]
                size = tirx.Select(axis == 0, sizes[0], sizes[1])
                moved = self.total["y"] * g.gamma * size
                self._store_move(k, wide, moved)

    def _store_move(self, k: Expr, axis: Expr, moved: Expr) -> None:
        g, cls, number = self.g, int64(self.at["cls"]), int64(self.at["bin"])
        if self.finished:
            index = [k, cls * 2 + (1 - axis), int64(0), number]
            T.buffer_store(self.moved_by, moved.astype(g.problem.dtype), index)
        else:
            T.buffer_store(self.moved_by, moved, [cls, k, axis, number])
