"""The nest of the gradients: scatter to the pixels of each bin, dots with them for the offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest, roi_ends
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_bins import Place, Rule
from dcn_tvm.te.roi_walk import At, Registers, Walk, unless_larger, whole
from dcn_tvm.te.turn import cast


class Backward(Walk):
    """Gradients of the input, of the offset, or of both; one worker for a block of an image."""

    def __init__(
        self, g: Frame, rule: Rule, outputs: Sequence[str], *, maximum: bool = False
    ) -> None:
        super().__init__(g, rule, slopes="grad_offset" in outputs)
        self.maximum = maximum
        self.scatters = "grad_input" in outputs
        self.reads = maximum or self.slopes
        nchw = g.problem.layout == "nchw"
        # Where the rows that are scattered to are: the output itself, or a worker's own, turned to
        # planes at the end, or all of them, turned by a stage of their own.
        self.direct = g.in_place(g.problem.accumulate)
        # Where the gradient of the output comes from: a box's, turned here, or a stage of rows.
        self.tiled = nchw and g.groups == 1
        self.collected = not self.tiled and not g.in_place(g.problem.dtype)

    # -- the graph ---------------------------------------------------------------------------

    def emit(
        self, grad: te.Tensor, rows: te.Tensor | None, stages: dict[str, te.Tensor]
    ) -> dict[str, te.Tensor]:
        """Gradients by name."""
        g = self.g
        grads = roi_ends.grad_rows(g, grad) if self.collected else grad
        inputs = [grads, *([rows] if rows is not None else []), *stages.values()]
        shapes, dtypes = [], []
        own = self.direct or g.owned
        if self.scatters:
            shapes.append(g.map_shape() if own else g.rows_shape())
            dtypes.append(g.problem.dtype if own else g.problem.accumulate)
        if self.slopes:
            bins = int64(g.bins[0] * g.bins[1])
            shapes.append((int64(g.blocks), g.boxes_count, int64(2), bins))
            dtypes.append(g.problem.accumulate)

        def body(ins: list[Any], outs: list[Any]) -> None:
            source, *rest = ins
            own_rows = rest.pop(0) if rows is not None else None
            self.buffers = dict(zip(stages, rest, strict=True))
            targets = list(outs)
            scattered = targets.pop(0) if self.scatters else None
            self._nest(source, own_rows, scattered, targets.pop(0) if self.slopes else None)

        results = nest.nest(shapes, inputs, body, "scattered", dtypes)
        found = {}
        if self.scatters:
            target = results.pop(0)
            found["grad_input"] = target if own else roi_ends.map_of(g, target)
        if self.slopes:
            found["grad_offset"] = roi_ends.offset_sums(g, results.pop(0))
        return found

    # -- the nest ----------------------------------------------------------------------------

    def _nest(self, grads: Any, rows: Any | None, scattered: Any | None, moves: Any | None) -> None:
        g = self.g
        with self.worker("scatter", by_box=False) as (at, _):
            reads = [] if rows is None else [whole(rows)]
            T.reads(*reads, whole(grads), *(whole(b) for b in self.buffers.values()))
            T.writes(*(whole(b) for b in (scattered, moves) if b is not None))
            self.open()
            self.grads = self.registers()
            self.moves = moves
            if self.slopes:
                self.dots = [self.registers(), self.registers()]
                self._open_folds()
            if self.maximum:
                self.largest = self.registers()
                self.places = self.registers("int32")
            if self.tiled:
                shape = (g.bins[0] * g.bins[1], g.width)
                self.tile = T.sblock_alloc_buffer(shape, g.problem.accumulate)
            # Sums are not kept in a half type, so there the rows are always a worker's own.
            if not g.owned:
                self._all_boxes(grads, rows, scattered, at, few=False)
            elif g.problem.dtype != g.problem.accumulate:
                self._turned(grads, rows, scattered, at)
            else:
                with T.If(self.few(at)):
                    with T.Then():
                        self._all_boxes(grads, rows, scattered, at, few=True)
                    with T.Else():
                        self._turned(grads, rows, scattered, at)

    def _turned(self, grads: Any, rows: Any | None, scattered: Any | None, at: At) -> None:
        source = None if rows is None else self.rows(rows, at)
        target = None if scattered is None else self.own_rows()
        self._all_boxes(grads, source, target, at, few=False)
        if scattered is not None:
            self._turn(scattered, at)

    def _all_boxes(
        self, grads: Any, source: Any | None, target: Any | None, at: At, *, few: bool
    ) -> None:
        self.source: Any = source
        self.target: Any = target
        if target is not None:
            self._zero(at, few=few)
        with self.each_group(at) as each:
            self.boxes(each, None, lambda k: self._box(grads, each, k, few=few))

    def _target_index(self, at: At, pixel: Expr, v: Expr, lane: Expr) -> list[Expr]:
        if self.single is not None:
            return self.g.map_index(at, pixel, self.single)
        return self.g.row_index(self.target, at, pixel, v * self.lanes + lane)

    def _zero(self, at: At, *, few: bool) -> None:
        g = self.g
        with self.each_group(at) as each, self.each_lane(each, few=few):
            with T.serial(int64(0), g.h * g.w) as pixel:

                def store(v: Expr, lane: Expr) -> None:
                    T.buffer_store(
                        self.target, g.const(0), self._target_index(each, pixel, v, lane)
                    )

                self.vector(store)

    def _turn(self, scattered: Any, at: At) -> None:
        """A worker's rows back to the map."""
        g, dtype = self.g, self.g.problem.dtype
        first = g.output_channel(at[2], int64(0)) * g.groups + at[1]
        guard = g.guard(at[2])

        def store(lane: Expr, group: Expr, pixel: Expr, value: Expr) -> None:
            index = g.index(at[0], group + (first + lane * g.groups), pixel)
            T.buffer_store(scattered, cast(value, dtype), index)

        self.turn_map(
            at,
            planes=lambda: self.turner.turn(
                g.h * g.w,
                int64(g.width),
                lambda pixel, lane: self.target[int64(0), pixel, lane],
                lambda lane, pixel, v: store(lane, int64(0), pixel, v),
                store_if=guard,
            ),
            groups=lambda pixel, count: self.turner.turn(
                count,
                int64(g.width),
                lambda group, lane: self.target[group, pixel, lane],
                lambda lane, group, v: store(lane, group, pixel, v),
                store_if=guard,
            ),
        )

    def _box(self, grads: Any, at: At, k: Expr, *, few: bool) -> None:
        g = self.g
        if self.tiled:

            def store(place: Expr, lane: Expr, value: Expr) -> None:
                T.buffer_store(self.tile, value, [place, lane])

            roi_ends.turn_in(g, self.turner, grads, k, at[2], store)
        self.bins(at, k, lambda y, x: self._bin(grads, at, y, x, few=few))

    def _bin(self, grads: Any, at: At, y: Place, x: Place, *, few: bool) -> None:
        place = y.bin * self.g.bins[1] + x.bin
        self.inverse(y, x)
        if self.slopes and few:
            self._clear_products()
        with self.each_lane(at, few=few):
            self._load(grads, at, y.k, place)
            if self.maximum:
                self._scatter_to_largest(at, y, x)
            elif self.target is not None:
                self._scatter(at, y, x)
            if self.slopes:
                self._dots(at, y, x)
        if self.slopes:
            self._store_dots(at, y.k, place)

    def _load(self, grads: Any, at: At, k: Expr, place: Expr) -> None:
        """The gradient of a bin, its share of the mean already taken."""
        g = self.g

        def load(v: Expr, lane: Expr) -> None:
            local = self.lane(v, lane)
            if self.tiled:
                value = self.tile[place, local]
            elif self.collected:
                value = grads[at[2], place, k, local]
            else:
                value = g.real(grads[tuple(g.index(k, at[2] * g.width + local, place))])
            if not self.maximum:
                value = value * self.real["inverse"]
            self.grads.store(v, lane, value)

        self.vector(load)

    def _add(self, at: At, pixel: Expr, value: Any) -> None:
        def add(v: Expr, lane: Expr) -> None:
            index = self._target_index(at, pixel, v, lane)
            T.buffer_store(self.target, self.target[tuple(index)] + value(v, lane), index)

        self.vector(add)

    def _scatter(self, at: At, y: Place, x: Place) -> None:
        def visit(pixel: Expr, i: Expr, j: Expr) -> None:
            if not self.rule.weighted:
                self._add(at, pixel, lambda v, lane: self.grads[v, lane])
                return
            self.real["share"] = self.real["share_y"] * self.rule.shares[1][x.slot, j]
            self._add(at, pixel, lambda v, lane: self.real["share"] * self.grads[v, lane])

        self.entries(y, x, visit)

    def _scatter_to_largest(self, at: At, y: Place, x: Place) -> None:
        """Find the largest pixel of each lane again, then add to where it is."""
        g = self.g
        self.fill_with(self.largest, g.const(float("-inf")))
        none = tirx.const(0, "int32")
        first = self.rule.pixel(y, none) * g.w.astype("int32") + self.rule.pixel(x, none)
        self.fill_with(self.places, first)

        def find(pixel: Expr, i: Expr, j: Expr) -> None:
            self.whole["pixel"] = pixel.astype("int32")

            def compare(v: Expr, lane: Expr) -> None:
                value, kept = (
                    self.read(self.source, at, pixel, self.lane(v, lane)),
                    self.largest[v, lane],
                )
                place = self.places[v, lane]
                moved = unless_larger(g, kept, value, place, self.whole["pixel"])
                self.places.store(v, lane, moved)
                self.largest.store(v, lane, unless_larger(g, kept, value, kept, value))

            self.vector(compare)

        def add(pixel: Expr, i: Expr, j: Expr) -> None:
            here = pixel.astype("int32")

            def share(v: Expr, lane: Expr) -> Expr:
                return tirx.Select(self.places[v, lane] == here, self.grads[v, lane], g.const(0))

            self._add(at, pixel, share)

        self.entries(y, x, find)
        self.entries(y, x, add)

    # -- dots --------------------------------------------------------------------------------

    def _dots(self, at: At, y: Place, x: Place) -> None:
        """Gradient times d(mean)/d(shift): slopes along one axis, shares along the other."""
        g, rule = self.g, self.rule
        for dots in self.dots:
            self.fill_with(dots, g.const(0))

        def visit(pixel: Expr, i: Expr, j: Expr) -> None:
            self.real["share"] = rule.slopes[0][y.slot, i] * rule.shares[1][x.slot, j]
            self.real["share_x"] = self.real["share_y"] * rule.slopes[1][x.slot, j]
            for dots, name in zip(self.dots, ("share", "share_x"), strict=True):

                def add(v: Expr, lane: Expr, dots: Registers = dots, name: str = name) -> None:
                    value = self.read(self.source, at, pixel, self.lane(v, lane))
                    dots.store(v, lane, dots[v, lane] + self.real[name] * value)

                self.vector(add)

        self.entries(y, x, visit)
        for dots, products in zip(self.dots, self.products, strict=True):

            def multiply(v: Expr, lane: Expr, dots: Registers = dots, to: Any = products) -> None:
                where = self.lane(v, lane)
                value = dots[v, lane] * self.grads[v, lane]
                T.buffer_store(to, value, [where // self.lanes, where % self.lanes])

            self.vector(multiply)

    def _open_folds(self) -> None:
        """Products in memory on purpose: from a register LLVM folds its lanes one by one."""
        dtype, shape = self.g.problem.accumulate, (self.vectors, self.lanes)
        self.products = [T.sblock_alloc_buffer(shape, dtype) for _ in range(2)]
        self.folds = [T.sblock_alloc_buffer((self.lanes,), dtype)]
        for level in range(1, self.lanes.bit_length()):
            half = (self.lanes >> level,)
            self.folds.append(T.sblock_alloc_buffer(half, dtype, scope="local"))

    def _clear_products(self) -> None:
        """Lanes that are no channels are not walked over, but added up."""
        for products in self.products:
            with T.unroll(0, self.vectors) as v, T.vectorized(0, self.lanes) as lane:
                T.buffer_store(products, self.g.const(0), [v, lane])

    def _store_dots(self, at: At, k: Expr, place: Expr) -> None:
        """Add up the products, over vectors and then over lanes in halves."""
        for axis, products in enumerate(self.products):
            with T.vectorized(0, self.lanes) as lane:
                total = products[0, lane]
                for v in range(1, self.vectors):
                    total = total + products[v, lane]
                T.buffer_store(self.folds[0], total, [lane])
            for source, target in zip(self.folds, self.folds[1:], strict=False):
                half = int(target.shape[0])
                with T.vectorized(0, half) as lane:
                    T.buffer_store(target, source[lane] + source[lane + half], [lane])
            moved = self.scaled(k, axis, self.folds[-1][0])
            T.buffer_store(self.moves, moved, [at[2], k, axis, place])
