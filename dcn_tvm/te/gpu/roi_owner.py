"""The gradient of the map without atomics: a thread owns a channel of an image and its pixels.

It walks over all boxes in order, so the sums are the same bits in every run. For devices on which
threads cannot add to the same number: right on all of them, and slow, since each thread works out
the bins for its one channel, and a map with few channels keeps few threads busy.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.gpu import roi_ends
from dcn_tvm.te.gpu.grid import Cells, each, int32
from dcn_tvm.te.gpu.roi_bins import Bin, Entry
from dcn_tvm.te.gpu.roi_block import over, rest
from dcn_tvm.te.gpu.roi_samples import tables_of
from dcn_tvm.te.gpu.roi_sources import Sources
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_bins import Rule
from dcn_tvm.te.roi_walk import bins_of, unless_larger

ALONE = (1, 1)  # slots of a thread that looks at one bin at a time


class Owner:
    """Gradient of the input; one thread for a channel of an image."""

    def __init__(self, g: Frame, rule: Rule, threads: int, *, maximum: bool = False) -> None:
        self.g, self.rule, self.threads, self.maximum = g, rule, threads, maximum

    def emit(
        self,
        grad: te.Tensor,
        x: te.Tensor | None,
        offset: te.Tensor | None,
        sources: Sources,
    ) -> te.Tensor:
        """Sums for the map, in the accumulation type."""
        g, p = self.g, self.g.problem
        given = {"x": x if self.maximum else None, "offset": offset}
        names = [name for name, tensor in given.items() if tensor is not None]
        tensors = [grad, *(given[name] for name in names), *sources.tensors]

        def body(ins: list[Any], outs: list[Any]) -> None:
            found = dict(zip(names, ins[1:], strict=False))
            self.grad, self.target = ins[0], outs[0]
            self.source: Any = found.get("x")
            self.values = sources.values(ins[1 + len(names) :])
            roi_ends.zero(g, self.target, "zero")
            with each(g.n * p.channels, "own", self.threads) as index:
                self._thread(index, sources.image, found.get("offset"))

        return nest.nest([g.map_shape()], tensors, body, "owned", [p.accumulate])[0]

    def _thread(self, index: Expr, image: te.Tensor, offset: Any | None) -> None:
        g, p = self.g, self.g.problem
        self.tables = tables_of(g, self.rule, self.values, ALONE, 0)
        self.tables.open("local", slopes=False)
        self.at = Cells("int32", "image", "channel", "output")
        self.cells = Cells(p.accumulate, "y", "x", "grad", "largest")
        self.places = Cells("int32", "place", "pixel")
        self.at["image"] = int32(over(index, p.channels))
        self.at["channel"] = int32(rest(index, p.channels))
        self.at["output"] = over(self.at["channel"], g.groups)
        (rows, columns), (group_rows, group_columns) = g.bins, p.groups
        group = index % p.channels % g.groups  # as it is: that it is not negative shows
        with T.serial(int64(0), g.boxes_count) as k:
            with T.If(self.values(image, k) == self.at["image"]), T.Then():
                self.tables.fill_box(k)
                with T.serial(*bins_of(group // group_columns, rows, group_rows)) as i:
                    with T.serial(*bins_of(group % group_columns, columns, group_columns)) as j:
                        self._bin(k, i, j, offset)

    def _bin(self, k: Expr, i: Expr, j: Expr, offset: Any | None) -> None:
        g, p, zero = self.g, self.g.problem, int32(0)
        (rows, columns), (part_rows, part_columns) = g.bins, p.parts
        for axis, number in enumerate((i, j)):
            shift, name = None, "yx"[axis]
            if offset is not None:
                part = (over(i * part_rows, rows), over(j * part_columns, columns))
                channel = int64(over(self.at["output"], p.depth)) * 2 + (1 - axis)
                value = self.values.product(g.real(offset[(k, channel, *part)]), g.gamma)
                size = self.values(self.rule.stages["size"], k, axis)
                self.cells[name] = self.values.product(value, size)
                shift = self.cells[name]
            self.tables.fill(Bin(k, axis, number, zero, shift))
        value = g.real(self.grad[tuple(g.index(k, int64(self.at["output"]), i * columns + j))])
        if self.maximum:
            self.cells["grad"] = value
            self._to_largest()
            return
        self.cells["grad"] = value * self.tables.inverse(zero, zero)
        self.tables.entries(zero, zero, self._visit)

    def _visit(self, entry: Entry) -> None:
        value = self.cells["grad"]
        self._add(entry.pixel, value if entry.share is None else entry.share * value)

    @property
    def _plane(self) -> tuple[Expr, Expr]:
        return int64(self.at["image"]), int64(self.at["channel"])

    def _add(self, pixel: Expr, value: Expr) -> None:
        index = self.g.index(*self._plane, pixel)
        T.buffer_store(self.target, self.target[tuple(index)] + value, index)

    def _to_largest(self) -> None:
        g, cells, places = self.g, self.cells, self.places
        cells["largest"], places["place"] = g.const(float("-inf")), int32(-1)

        def find(entry: Entry) -> None:
            index = g.index(*self._plane, entry.pixel)
            value, kept, place = (
                g.real(self.source[tuple(index)]),
                cells["largest"],
                places["place"],
            )
            places["pixel"] = int32(entry.pixel)
            first = tirx.Select(place < 0, places["pixel"], place)
            places["place"] = unless_larger(g, kept, value, first, places["pixel"])
            cells["largest"] = unless_larger(g, kept, value, kept, value)

        self.tables.entries(int32(0), int32(0), find)
        with T.If(places["place"] >= 0), T.Then():
            self._add(int64(places["place"]), cells["grad"])
