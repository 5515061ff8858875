"""The small kernels before and after those of the RoI ops' gradients, a thread for each element."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.te import nest
from dcn_tvm.te.gpu import grid, sums
from dcn_tvm.te.gpu.grid import Cells, flat
from dcn_tvm.te.nest import int64
from dcn_tvm.te.roi import Expr, Frame
from dcn_tvm.te.roi_walk import bins_of

VECTOR_BITS = 128  # the widest load of a thread


def zero(g: Frame, target: Any, name: str) -> None:
    """Emit the kernel that sets all of a map to 0."""
    width = _width(g, str(target.dtype))
    with grid.each(grid.ceil_div(sums.elements(target.shape), width), name) as index:
        with T.vectorized(int64(0), int64(width)) as lane:
            place = flat(target, index * width + lane)
            T.buffer_store(target, tirx.const(0, target.dtype), place)


def _width(g: Frame, *dtypes: str) -> int:
    """Elements that a thread takes, a vector of the widest type; a map has whole ones of them."""
    widest = max(int("".join(c for c in dtype if c.isdigit())) for dtype in dtypes)
    width = VECTOR_BITS // widest
    return width if g.problem.channels % width == 0 else 1


def map_of(g: Frame, found: te.Tensor, scale: te.Tensor | None) -> te.Tensor:
    """The gradient of the map, of sums in another type."""
    dtype, given = g.problem.dtype, [found, *([] if scale is None else [scale])]
    width = _width(g, dtype, str(found.dtype))

    def body(ins: list[Any], outs: list[Any]) -> None:
        count = grid.ceil_div(sums.elements(outs[0].shape), width)
        with grid.each(count, "grad_input") as index:
            wide = T.sblock_alloc_buffer((width,), str(found.dtype), scope="local")
            narrow = T.sblock_alloc_buffer((width,), dtype, scope="local")
            with T.vectorized(int64(0), int64(width)) as lane:
                T.buffer_store(wide, ins[0][tuple(flat(ins[0], index * width + lane))], [lane])
            for lane in range(width):
                value = wide[lane]
                if scale is not None:
                    value = g.real(sums.of_fixed(wide, ins[1], [lane]))
                T.buffer_store(narrow, value.astype(dtype), [lane])
            with T.vectorized(int64(0), int64(width)) as lane:
                T.buffer_store(outs[0], narrow[lane], flat(outs[0], index * width + lane))

    return nest.nest([g.map_shape()], given, body, "grad_input", [dtype])[0]


def moves_shape(g: Frame) -> tuple[Expr, ...]:
    """[class, box, axis, bin]: the gradient of each bin's move."""
    return (int64(g.problem.classes), g.boxes_count, int64(2), int64(g.bins[0] * g.bins[1]))


def offset_sums(g: Frame, moves: te.Tensor) -> te.Tensor:
    """The gradient of the offset: the bins of a part, in order."""
    p = g.problem
    (rows, columns), (part_rows, part_columns) = g.bins, p.parts

    def body(ins: list[Any], outs: list[Any]) -> None:
        with grid.each(sums.elements(outs[0].shape), "grad_offset") as index:
            k, channel, part_i, part_j = place = grid.place(outs[0].shape, index)
            total = Cells(p.accumulate, "sum")
            total["sum"] = g.const(0)
            with T.serial(*bins_of(part_i, rows, part_rows)) as i:
                with T.serial(*bins_of(part_j, columns, part_columns)) as j:
                    move = ins[0][channel // 2, k, 1 - channel % 2, i * columns + j]
                    total["sum"] = total["sum"] + move
            T.buffer_store(outs[0], total["sum"].astype(p.dtype), place)

    return nest.nest([g.offset_shape()], [moves], body, "grad_offset", [p.dtype])[0]
