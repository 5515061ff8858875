"""The kernel that pools boxes on a GPU: a weighted mean, or the largest, of each bin's pixels."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.gpu.roi_bins import Entry, PixelTables
from dcn_tvm.te.gpu.roi_block import Block, Blocking
from dcn_tvm.te.gpu.roi_sources import Sources
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_bins import Rule
from dcn_tvm.te.roi_walk import unless_larger


class Forward(Block):
    """Pools the entries of each bin: their weighted mean, or with `maximum` the largest."""

    def __init__(self, g: Frame, rule: Rule, blocking: Blocking, *, maximum: bool) -> None:
        super().__init__(g, rule, blocking)
        self.maximum = maximum

    def emit(self, x: te.Tensor, offset: te.Tensor | None, sources: Sources) -> te.Tensor:
        """The output."""
        g, p = self.g, self.g.problem
        tensors = [x, *sources.tensors, *([] if offset is None else [offset])]

        def body(ins: list[Any], outs: list[Any]) -> None:
            rest = ins[1:]
            values = sources.values(rest)
            shifts = None if offset is None else rest[-1]
            self.source, self.output = ins[0], outs[0]
            self.kernel("pool", values, sources.image, shifts, self._body)

        return nest.nest([g.output_shape()], tensors, body, "output", [p.dtype])[0]

    def _body(self) -> None:
        dtype, wide = self.g.problem.dtype, self.g.problem.accumulate
        self.sums = self.registers(wide)
        self.loaded = self.registers(dtype)
        self.pooled = self.registers(dtype)
        self.each_bin(lambda _: self.each_unit(self._unit))

    def _unit(self) -> None:
        g, y, x = self.g, self.at["y"], self.at["x"]
        first = g.const(float("-inf") if self.maximum else 0)
        self.each_channel(lambda j: T.buffer_store(self.sums, first, [j]))
        self.tables.entries(y, x, self._visit)

        def result(j: int) -> None:
            value = self.sums[j]
            if self.maximum:
                tables = self.tables
                assert isinstance(tables, PixelTables)
                value = tirx.Select(tables.empty(y, x), tables.poison(), value)
            else:
                value = value * self.tables.inverse(y, x)
            T.buffer_store(self.pooled, value.astype(g.problem.dtype), [j])

        self.each_channel(result)
        self.store(self.output, self.output_index, self.pooled)

    def _visit(self, entry: Entry) -> None:
        g, sums = self.g, self.sums
        self.load(self.source, lambda j: self.map_index(j, entry.pixel), self.loaded)

        def add(j: int) -> None:
            value: Expr = g.real(self.loaded[j])
            if self.maximum:
                new = unless_larger(g, sums[j], value, sums[j], value)
            else:
                new = sums[j] + (value if entry.share is None else entry.share * value)
            T.buffer_store(sums, new, [j])

        self.each_channel(add)
