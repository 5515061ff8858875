"""The stages before and after the nests of RoI ops: outputs and their gradients, turned and summed.

Position-sensitive bins of a box belong to different workers, so these write and read
[block, bin, box, lane], a vector each; that is turned to, or from, the planes of nchw here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_walk import bins_of, block_of, whole
from dcn_tvm.te.turn import Load, Store, Turner, cast

Turn = Callable[[Turner, Any, Any, Expr, Expr], None]


def collected_shape(g: Frame) -> tuple[Expr, ...]:
    """[block, bin, box, lane]."""
    return (int64(g.blocks), int64(g.bins[0] * g.bins[1]), g.boxes_count, int64(g.width))


def output_of(g: Frame, pooled: te.Tensor) -> te.Tensor:
    """The output in nchw, of [block, bin, box, lane]."""

    def turn(turner: Turner, source: Any, target: Any, k: Expr, block: Expr) -> None:
        turn_out(g, turner, target, k, block, lambda i, lane: source[block, i, k, lane])

    return _by_box(g, pooled, g.output_shape(), "output", g.problem.dtype, turn)


def grad_rows(g: Frame, grad: te.Tensor) -> te.Tensor:
    """[block, bin, box, lane] of the output's gradient."""
    if g.problem.layout == "nhwc":

        def value(block: Expr, place: Expr, k: Expr, lane: Expr) -> Expr:
            inside = g.real(grad[tuple(g.index(k, g.output_channel(block, lane), place))])
            if not g.padded:
                return inside
            return tirx.if_then_else(g.exists(block, lane), inside, g.const(0))

        return te.compute(collected_shape(g), value, name="grad_rows")

    def turn(turner: Turner, source: Any, target: Any, k: Expr, block: Expr) -> None:
        def store(place: Expr, lane: Expr, value: Expr) -> None:
            T.buffer_store(target, value, [block, place, k, lane])

        turn_in(g, turner, source, k, block, store)

    return _by_box(g, grad, collected_shape(g), "grad_rows", g.problem.accumulate, turn)


def _by_box(
    g: Frame, source: te.Tensor, shape: tuple[Expr, ...], name: str, dtype: str, turn: Turn
) -> te.Tensor:
    """A stage that turns each block of each box; workers take boxes."""

    def body(ins: list[Any], outs: list[Any]) -> None:
        with T.parallel(int64(0), g.boxes_count) as w, T.sblock(name):
            k = T.axis.spatial(g.boxes_count, w)
            T.reads(whole(ins[0]))
            T.writes(whole(outs[0]))
            turner = Turner(g.problem.accumulate, g.tiling.lanes)
            with T.serial(int64(0), int64(g.blocks)) as block:
                turn(turner, ins[0], outs[0], k, block)

    return nest.nest([shape], [source], body, name, [dtype])[0]


def turn_out(g: Frame, turner: Turner, output: Any, k: Expr, block: Expr, load: Load) -> None:
    """A block's bins, `load(bin, lane)`, to the planes of its channels."""
    first = g.output_channel(block, int64(0))

    def store(lane: Expr, place: Expr, value: Expr) -> None:
        T.buffer_store(output, cast(value, g.problem.dtype), g.index(k, first + lane, place))

    bins, width = int64(g.bins[0] * g.bins[1]), int64(g.width)
    turner.turn(bins, width, load, store, store_if=g.guard(block))


def turn_in(g: Frame, turner: Turner, grads: Any, k: Expr, block: Expr, store: Store) -> None:
    """The planes of a block's channels to its bins: `store(bin, lane, value)`."""
    first = g.output_channel(block, int64(0))

    def load(lane: Expr, place: Expr) -> Expr:
        return cast(grads[tuple(g.index(k, first + lane, place))], g.problem.accumulate)

    bins, width = int64(g.bins[0] * g.bins[1]), int64(g.width)
    turner.turn(width, bins, load, store, load_if=g.guard(block))


def map_of(g: Frame, rows: te.Tensor) -> te.Tensor:
    """The gradient of a channels_last map, of rows that everybody shares."""

    def value(n: Expr, y: Expr, x: Expr, channel: Expr) -> Expr:
        block, lane = block_of(g, channel)
        return rows[n, 0, block, y * g.w + x, lane].astype(g.problem.dtype)

    return te.compute(g.map_shape(), value, name="grad_input")


def offset_sums(g: Frame, moves: te.Tensor) -> te.Tensor:
    """The gradient of the offset: the blocks of a class and the bins of a part, in order."""
    p = g.problem
    (rows, columns), (part_rows, part_columns) = g.bins, p.parts
    sub = te.reduce_axis((0, int64(g.subs)), "sub")
    i = te.reduce_axis((0, int64(-(-rows // part_rows))), "i")
    j = te.reduce_axis((0, int64(-(-columns // part_columns))), "j")

    def total(k: Expr, channel: Expr, part_i: Expr, part_j: Expr) -> Expr:
        axis = 1 - channel % 2
        first_i, stop_i = bins_of(part_i, rows, part_rows)
        first_j, stop_j = bins_of(part_j, columns, part_columns)
        inside = tirx.all(first_i + i < stop_i, first_j + j < stop_j)
        place = (first_i + i) * columns + first_j + j
        moved = moves[(channel // 2) * g.subs + sub, k, axis, place]
        return te.sum(tirx.if_then_else(inside, moved, g.const(0)), axis=[sub, i, j])

    sums = te.compute(g.offset_shape(), total, name="move_sums")
    if p.dtype == p.accumulate:
        return sums
    return te.compute(g.offset_shape(), lambda *i: sums[i].astype(p.dtype), name="grad_offset")
