"""The nest that pools boxes: a weighted mean, or the largest, of each bin's pixels."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest, roi_ends
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_bins import Place, Rule
from dcn_tvm.te.roi_walk import At, Walk, unless_larger, whole


class Forward(Walk):
    """Pools the entries of each bin: their weighted mean, or with `maximum` the largest."""

    def __init__(self, g: Frame, rule: Rule, *, maximum: bool = False) -> None:
        super().__init__(g, rule)
        self.maximum = maximum
        self.tile: Any = None
        # Bins of a position-sensitive map belong to different workers: contiguous channels of an
        # output in nchw would be written by all of them at once. So they write [bin, box, lane].
        self.collected = g.problem.layout == "nchw" and g.groups > 1
        self.tiled = g.problem.layout == "nchw" and not self.collected

    def emit(self, rows: te.Tensor, stages: dict[str, te.Tensor]) -> te.Tensor:
        """The output."""
        g = self.g
        names = list(stages)

        def body(ins: list[Any], outs: list[Any]) -> None:
            self.buffers = dict(zip(names, ins[1:], strict=True))
            with self.worker("pool", by_box=g.tiling.by_box) as (at, only):
                T.reads(*(whole(b) for b in ins))
                T.writes(whole(outs[0]))
                self.open()
                self.sums = self.registers()
                if self.tiled or (g.padded and not self.collected):
                    bins = g.bins[0] * g.bins[1] if self.tiled else 1
                    self.tile = T.sblock_alloc_buffer((bins, g.width), g.problem.accumulate)
                self._pool(ins[0], outs[0], at, only)

        if not self.collected:
            shape, dtype = g.output_shape(), g.problem.dtype
            return nest.nest([shape], [rows, *stages.values()], body, "output", [dtype])[0]
        kind, shape = [g.problem.accumulate], roi_ends.collected_shape(g)
        pooled = nest.nest([shape], [rows, *stages.values()], body, "pooled", kind)[0]
        return roi_ends.output_of(g, pooled)

    def _pool(self, source: Any, output: Any, at: At, only: Expr | None) -> None:
        def all_boxes(rows: Any, *, few: bool) -> None:
            with self.each_group(at) as each:
                self.boxes(each, only, lambda k: self._box(rows, output, each, k, few=few))

        if not self.g.owned:
            all_boxes(source, few=False)
            return
        with T.If(self.few(at)):
            with T.Then():
                all_boxes(source, few=True)
            with T.Else():
                all_boxes(self.rows(source, at), few=False)

    def _box(self, rows: Any, output: Any, at: At, k: Expr, *, few: bool) -> None:
        def visit(y: Place, x: Place) -> None:
            self.inverse(y, x)
            with self.each_lane(at, few=few):
                if self.maximum:
                    self._largest(rows, at, y, x)
                else:
                    self._sum(rows, at, y, x)
                self._store(output, at, y, x)
            self._copy(output, at, y, x)

        self.bins(at, k, visit)
        if self.tiled:
            tile = self.tile
            roi_ends.turn_out(self.g, self.turner, output, k, at[2], lambda i, lane: tile[i, lane])

    def _sum(self, rows: Any, at: At, y: Place, x: Place) -> None:
        g, sums = self.g, self.sums
        self.fill_with(sums, g.const(0))

        def visit(pixel: Expr, i: Expr, j: Expr) -> None:
            if self.rule.weighted:
                self.real["share"] = self.real["share_y"] * self.rule.shares[1][x.slot, j]

            def add(v: Expr, lane: Expr) -> None:
                value = self.read(rows, at, pixel, self.lane(v, lane))
                if self.rule.weighted:
                    value = value * self.real["share"]
                sums.store(v, lane, sums[v, lane] + value)

            self.vector(add)

        self.entries(y, x, visit)
        self.vector(lambda v, lane: sums.store(v, lane, sums[v, lane] * self.real["inverse"]))

    def _largest(self, rows: Any, at: At, y: Place, x: Place) -> None:
        g, sums = self.g, self.sums
        self.fill_with(sums, g.const(float("-inf")))

        def visit(pixel: Expr, i: Expr, j: Expr) -> None:
            def compare(v: Expr, lane: Expr) -> None:
                value = self.read(rows, at, pixel, self.lane(v, lane))
                kept = sums[v, lane]
                sums.store(v, lane, unless_larger(g, kept, value, kept, value))

            self.vector(compare)

        self.entries(y, x, visit)
        empty = tirx.any(self.rule.count[0][y.slot] == 0, self.rule.count[1][x.slot] == 0)
        poison = self.buffers["poison"][y.k]
        self.vector(lambda v, lane: sums.store(v, lane, tirx.Select(empty, poison, sums[v, lane])))

    def _store(self, output: Any, at: At, y: Place, x: Place) -> None:
        g, place = self.g, y.bin * self.g.bins[1] + x.bin
        target, first = output, at[2] * g.width
        if self.tile is not None:
            target = self.tile

        def where(lane: Expr) -> list[Expr]:
            if self.tiled:
                return [place, lane]
            if self.tile is not None:
                return [int64(0), lane]
            if self.collected:
                return [at[2], place, y.k, lane]
            return g.index(y.k, first + lane, place)

        def store(v: Expr, lane: Expr) -> None:
            value = self.sums[v, lane].astype(str(target.dtype))
            T.buffer_store(target, value, where(self.lane(v, lane)))

        self.vector(store)

    def _copy(self, output: Any, at: At, y: Place, x: Place) -> None:
        """The lanes that are channels, where a vector of them would write beyond the class."""
        g, place = self.g, y.bin * self.g.bins[1] + x.bin
        if self.tile is None or self.tiled:
            return
        with T.serial(int64(0), self.limit(at[2])) as lane:
            index = g.index(y.k, g.output_channel(at[2], lane), place)
            T.buffer_store(output, self.tile[0, lane].astype(g.problem.dtype), index)
