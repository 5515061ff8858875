"""Deformable convolution on a GPU: sizes, arguments, maps as rows and weights as blocks read them.

A *row* is an output pixel; the rows of all images are counted through. Where the channels of a map
are not neighbours (nchw), a kernel of its own turns the map to rows [image, pixel, channel] first:
everything else reads whole vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.te import nest
from dcn_tvm.te.gpu.grid import Expr, ceil_div, div, each, launch, mod, place
from dcn_tvm.te.gpu.shared import BYTES
from dcn_tvm.te.nest import int64

VECTOR_BYTES = 16
Finish = tuple[Callable[..., Expr], str]
TURN = 32  # side of the squares in which a map is turned


class Frame:
    """A problem with its free sizes and arguments."""

    def __init__(self, problem: DeformConv2dProblem) -> None:
        p = self.problem = problem
        self.n, self.h, self.w, self.ho, self.wo = (
            te.var(name, "int64") for name in ("n", "h", "w", "ho", "wo")
        )
        self.pixels = self.ho * self.wo
        self.rows = self.n * self.pixels
        self.kh, self.kw = p.kernel_size
        self.taps = self.kh * self.kw
        self.inputs, self.outputs = p.in_channels // p.groups, p.out_channels // p.groups
        self.group_channels = p.in_channels // p.offset_groups
        self.arguments: list[te.Tensor] = []

    @property
    def unit(self) -> int:
        """Channels that share both groups, if they start at a multiple of it."""
        return math.gcd(self.inputs, self.group_channels)

    def vector(self, dtype: str, most: int = VECTOR_BYTES) -> int:
        """Channels that are read at once."""
        return math.gcd(most // BYTES[dtype], self.unit)

    def const(self, value: float) -> Expr:
        """A constant of the accumulation type."""
        return tirx.const(value, self.problem.accumulate)

    def real(self, value: Expr) -> Expr:
        """`value` in the accumulation type."""
        return value.astype(self.problem.accumulate)

    # -- arguments ---------------------------------------------------------------------------

    def argument(self, name: str, shape: Sequence[Any]) -> te.Tensor:
        """A tensor that the caller passes; arguments keep the order of these calls."""
        tensor = te.placeholder(tuple(shape), dtype=self.problem.dtype, name=name)
        self.arguments.append(tensor)
        return tensor

    def map_shape(self, channels: int, *, output_sized: bool = True) -> tuple[Expr, ...]:
        """Shape of a map of `channels` in the problem's layout."""
        height, width = (self.ho, self.wo) if output_sized else (self.h, self.w)
        if self.problem.layout == "nchw":
            return (self.n, int64(channels), height, width)
        return (self.n, height, width, int64(channels))

    def index(self, image: Expr, channel: Expr, pixel: Expr) -> list[Expr]:
        """Where a map holds a linear pixel: lines are contiguous, so it may exceed one."""
        if self.problem.layout == "nchw":
            return [image, channel, int64(0), pixel]
        return [image, int64(0), pixel, channel]

    def rows_of(self, tensor: te.Tensor, channels: int, name: str) -> te.Tensor:
        """The map as [image, pixel, channel], or the map itself if it is so."""
        if self.problem.layout == "nhwc":
            return tensor
        pixels = tensor.shape[2] * tensor.shape[3]
        return turned(tensor, self.n, int64(channels), pixels, name)

    def row_index(self, rows: Any, image: Expr, pixel: Expr, channel: Expr) -> list[Expr]:
        """Where what `rows_of` gave holds an element."""
        return (
            [image, pixel, channel] if len(rows.shape) == 3 else [image, int64(0), pixel, channel]
        )


def turned(
    tensor: te.Tensor,
    n: Expr,
    height: Expr,
    width: Expr,
    name: str,
    *,
    shape: Sequence[Expr] | None = None,
    finish: Finish | None = None,
    more: Sequence[te.Tensor] = (),
) -> te.Tensor:
    """[n, width, height] of a tensor [n, height, ...], whose others have `width` elements.

    Args:
        tensor: what is turned.
        n: matrices.
        height: of what is given.
        width: of what is given.
        name: of the kernel.
        shape: of the result, if its last dimensions are not just `height`.
        finish: `(value, *more)` to what is stored, and its type.
        more: tensors that `finish` reads.
    """
    rest = [int64(0)] * (len(tensor.shape) - 3)
    after = [int64(0)] * (len(shape) - 3 if shape else 0)
    dtype = finish[1] if finish else tensor.dtype

    def body(ins: list[Any], outs: list[Any]) -> None:
        across = ceil_div(width, TURN)
        with launch([n * across, ceil_div(height, TURN)], [TURN, 8], name) as (block, down, x, y):
            square = T.sblock_alloc_buffer((TURN, TURN + 1), dtype, scope="shared")
            image, first = div(block, across), mod(block, across) * TURN
            with T.unroll(int64(0), int64(TURN // 8)) as i:
                line, column = down * TURN + y + i * 8, first + x
                with T.If(tirx.all(line < height, column < width)), T.Then():
                    value = ins[0][(image, line, *rest, column)]
                    T.buffer_store(
                        square, finish[0](value, *ins[1:]) if finish else value, [y + i * 8, x]
                    )
            T.evaluate(T.tvm_storage_sync("shared"))
            with T.unroll(int64(0), int64(TURN // 8)) as i:
                line, column = down * TURN + x, first + y + i * 8
                with T.If(tirx.all(line < height, column < width)), T.Then():
                    T.buffer_store(outs[0], square[x, y + i * 8], [image, column, *after, line])

    return nest.nest([shape or (n, width, height)], [tensor, *more], body, name, [dtype])[0]


def packed(g: Frame, weight: te.Tensor, shape: Sequence[int], element: Any, name: str) -> te.Tensor:
    """The weight as blocks read it; `element(index)` is (output, channel, tap, exists)."""

    def body(ins: list[Any], outs: list[Any]) -> None:
        with each(int64(math.prod(shape)), name) as number:
            at = place([int64(extent) for extent in shape], number)
            output, channel, tap, exists = element(at)
            value = tirx.if_then_else(
                exists,
                ins[0][output, channel, div(tap, int64(g.kw)), mod(tap, int64(g.kw))],
                tirx.const(0, weight.dtype),
            )
            T.buffer_store(outs[0], value, at)

    return nest.nest([[int64(extent) for extent in shape]], [weight], body, name, [weight.dtype])[0]
