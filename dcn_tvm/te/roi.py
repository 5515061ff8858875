"""RoI pooling: the sizes, channels and boxes that the kernels of all RoI ops share.

The mean over a bin is a sum over its rows and columns apart: with WY(p) the share of row p in the
bin's samples, and WX(q) that of column q, `y = 1/n sum_p sum_q WY(p) WX(q) x(p, q)`. Bilinear
samples on a grid therefore cost one read for each pixel that they touch, not four for each sample.

A *block* is a run of channels of one class that a worker pools together: `width` of them, padded
with zeros where the class ends. Position-sensitive channels are ordered (class, channel, group): in
rows [image, group, block, pixel, lane] the channels that one bin needs lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.te.nest import int64

Expr = Any
AXES = 2  # 0 is y, 1 is x, in everything but the boxes' own columns
TOO_FAR = 2.0**23  # pixels; no map reaches there, and float32 counts in whole pixels up to it


@dataclass(frozen=True)
class RoITiling:
    """The part of a schedule that shapes the data.

    Attributes:
        lanes: elements of a vector.
        vectors: vectors of a block.
        by_box: workers take boxes, and all read the same rows; else a worker takes a block of an
            image, and has its rows for itself.
    """

    lanes: int
    vectors: int
    by_box: bool = False


class Frame:
    """A problem with its free sizes, its arguments and what follows from the boxes."""

    def __init__(self, problem: RoIProblem, tiling: RoITiling) -> None:
        self.problem, self.tiling = problem, tiling
        self.n, self.h, self.w = (te.var(name, "int64") for name in ("n", "h", "w"))
        self.boxes_count = te.var("k", "int64")
        self.scale = te.var("spatial_scale", problem.accumulate)
        self.gamma = te.var("gamma", problem.accumulate)
        self.bins = problem.output_size
        self.groups = problem.groups[0] * problem.groups[1]
        self.width = tiling.lanes * tiling.vectors
        self.subs = -(-problem.depth // self.width)
        self.blocks = problem.classes * self.subs
        self.arguments: list[te.Tensor] = []

    # -- types and arguments -----------------------------------------------------------------

    def const(self, value: float) -> Expr:
        """A constant of the accumulation type."""
        return tirx.const(value, self.problem.accumulate)

    def real(self, value: Expr) -> Expr:
        """`value` in the accumulation type."""
        return value.astype(self.problem.accumulate)

    def argument(self, name: str, shape: tuple[Any, ...], dtype: str | None = None) -> te.Tensor:
        """A tensor that the caller passes; arguments keep the order of these calls."""
        tensor = te.placeholder(shape, dtype=dtype or self.problem.dtype, name=name)
        self.arguments.append(tensor)
        return tensor

    def input_argument(self, name: str = "input") -> te.Tensor:
        """The feature map."""
        return self.argument(name, self.map_shape())

    def boxes_argument(self) -> te.Tensor:
        """Boxes [K, 5]: image, x1, y1, x2, y2."""
        return self.argument("boxes", (self.boxes_count, 5), self.problem.accumulate)

    def offset_argument(self) -> te.Tensor | None:
        """Offsets [K, 2 * classes, parts, parts], x first; None without."""
        if not self.problem.moves:
            return None
        return self.argument("offset", self.offset_shape())

    def offset_shape(self) -> tuple[Expr, ...]:
        """Shape of the offsets."""
        parts = (int64(part) for part in self.problem.parts)
        return (self.boxes_count, int64(2 * self.problem.classes), *parts)

    def map_shape(self) -> tuple[Expr, ...]:
        """Shape of the feature map in the problem's layout."""
        channels = int64(self.problem.channels)
        if self.problem.layout == "nchw":
            return (self.n, channels, self.h, self.w)
        return (self.n, self.h, self.w, channels)

    def output_shape(self) -> tuple[Expr, ...]:
        """Shape of the output in the problem's layout."""
        channels, bins = int64(self.problem.output_channels), map(int64, self.bins)
        if self.problem.layout == "nchw":
            return (self.boxes_count, channels, *bins)
        return (self.boxes_count, *bins, channels)

    def index(self, first: Expr, channel: Expr, place: Expr) -> list[Expr]:
        """Where a map holds a linear pixel or bin: rows are contiguous, so it may exceed one."""
        if self.problem.layout == "nchw":
            return [first, channel, int64(0), place]
        return [first, int64(0), place, channel]

    # -- channels ----------------------------------------------------------------------------

    def output_channel(self, block: Expr, lane: Expr) -> Expr:
        """Output channel of a block's lane."""
        depth, subs = self.problem.depth, self.subs
        return (block // subs) * depth + (block % subs) * self.width + lane

    def exists(self, block: Expr, lane: Expr) -> Expr:
        """Whether a lane is a channel, and not padding at the end of the class."""
        return (block % self.subs) * self.width + lane < self.problem.depth

    @property
    def padded(self) -> bool:
        """Whether there are lanes that are no channels."""
        return self.problem.depth % self.width != 0

    @property
    def owned(self) -> bool:
        """Whether workers turn maps to rows of their own, which stay in the cache."""
        return self.problem.layout == "nchw" or self.groups > 1

    @property
    def together(self) -> int:
        """Groups of a worker: in channels_last they are neighbours, and so turned together."""
        return self.tiling.lanes if self.problem.layout == "nhwc" and self.groups > 1 else 1

    def in_place(self, dtype: str) -> bool:
        """Whether a channels_last map of `dtype` already is what rows would be."""
        p = self.problem
        plain = p.layout == "nhwc" and self.groups == 1 and self.blocks == self.subs
        return plain and not self.padded and p.dtype == dtype

    def rows_shape(self) -> tuple[Expr, ...]:
        """Shape of a map's rows."""
        sizes = map(int64, (self.groups, self.blocks))
        return (self.n, *sizes, self.h * self.w, int64(self.width))

    def row_index(self, rows: Any, at: tuple[Expr, ...], pixel: Expr, lane: Expr) -> list[Expr]:
        """Where rows hold a lane of block `at`, (image, group, block).

        They are a worker's own [group, pixel, lane], or everybody's, or a map in place of them.
        """
        if len(rows.shape) == 3:
            return [at[1] % self.together, pixel, lane]
        if len(rows.shape) == 4:
            return [at[0], int64(0), pixel, at[2] * self.width + lane]
        return [*at, pixel, lane]

    def rows_of(self, tensor: te.Tensor) -> te.Tensor:
        """What workers read: the map, where each makes rows of its own or needs none; else rows."""
        p = self.problem
        if self.owned or self.in_place(p.dtype):
            return tensor

        def value(n: Expr, group: Expr, block: Expr, pixel: Expr, lane: Expr) -> Expr:
            channel = self.output_channel(block, lane)
            inside = self.real(tensor[tuple(self.index(n, channel, pixel))])
            if not self.padded:
                return inside
            return tirx.if_then_else(self.exists(block, lane), inside, self.const(0))

        return te.compute(self.rows_shape(), value, name="rows")

    def guard(self, block: Expr) -> Callable[[Expr], Expr] | None:
        """Whether a lane of a block is a channel; None if all are."""
        return (lambda lane: self.exists(block, lane)) if self.padded else None

    def map_index(self, at: tuple[Expr, ...], pixel: Expr, lane: Expr) -> list[Expr]:
        """Where the map itself holds a lane of block `at`."""
        return self.index(at[0], self.output_channel(at[2], lane) * self.groups + at[1], pixel)

    # -- boxes -------------------------------------------------------------------------------

    def covered(self, image: te.Tensor, size: te.Tensor) -> te.Tensor:
        """[image]: pixels that its boxes cover, each box counted by itself."""
        k = te.reduce_axis((0, self.boxes_count), "box")

        def area(n: Expr) -> Expr:
            sides = [
                te.max(te.min(size[k, a], self.real(s)), self.const(0))
                for a, s in enumerate((self.h, self.w))
            ]
            here = image[k] == n.astype("int32")
            return te.sum(tirx.if_then_else(here, sides[0] * sides[1], self.const(0)), axis=[k])

        return te.compute((self.n,), area, name="covered")

    def image_of(self, boxes: te.Tensor) -> te.Tensor:
        """[box]: its image; clamped, so that nothing else is ever read."""

        def value(k: Expr) -> Expr:
            last = (self.n - 1).astype(self.problem.accumulate)
            return te.max(te.min(boxes[k, 0], last), self.const(0)).astype("int32")

        return te.compute((self.boxes_count,), value, name="image")

    def per_axis(self, name: str, value: Any, dtype: str | None = None) -> te.Tensor:
        """[box, axis]: `value(k, axis)`."""
        shape = (self.boxes_count, int64(AXES))
        kind = dtype or self.problem.accumulate
        return te.compute(shape, lambda k, a: value(k, a).astype(kind), name=name)

    def per_bin(self, name: str, value: Any, dtype: str, extra: int = 0) -> te.Tensor:
        """[box, axis, bin]: `value(k, axis, bin)` for each row, or column, of bins."""
        shape = (self.boxes_count, int64(AXES), int64(max(self.bins) + extra))
        return te.compute(shape, lambda k, a, i: value(k, a, i).astype(dtype), name=name)

    def side(self, axis: Expr, y: Expr, x: Expr) -> Expr:
        """`y` or `x`, as the axis says."""
        return tirx.Select(axis == 0, y, x)


@dataclass(frozen=True)
class Box:
    """Stages that every rule starts from, in pixels of the map: [box, axis], and all corners."""

    start: te.Tensor
    size: te.Tensor
    corners: te.Tensor


def rounded_box(g: Frame, boxes: te.Tensor, beyond: int) -> Box:
    """Corners rounded to pixels; `beyond` is 1 where the last pixel belongs to the box."""
    corners = _corners(g, boxes, lambda corner, _: corner * g.scale)
    start = g.per_axis("start", lambda k, a: round_half_away(g.real(corners[k, 1 - a])))

    def size(k: Expr, a: Expr) -> Expr:
        length = round_half_away(g.real(corners[k, 3 - a])) - start[k, a] + g.const(beyond)
        return te.max(length, g.const(1))

    return Box(start, g.per_axis("size", size), corners)


def shifted_box(g: Frame, boxes: te.Tensor, shift: float, least: float | None = None) -> Box:
    """Corners as they are, moved by `shift` so that pixel centres are whole numbers."""
    corners = _corners(g, boxes, lambda corner, _: corner * g.scale)
    return _between(g, corners, shift, least)


def released_box(g: Frame, boxes: te.Tensor, shift: float) -> Box:
    """As the released R-FCN code: corners are whole pixels of the image, the last one inside."""

    def corner(value: Expr, last: Expr) -> Expr:
        return (round_half_away(g.real(value)) + g.real(last)) * g.scale

    return _between(g, _corners(g, boxes, corner), shift, 0.1)


def _corners(g: Frame, boxes: te.Tensor, value: Any) -> te.Tensor:
    """[box, x1 y1 x2 y2]: in a stage of its own, or the product would be fused with what follows.

    `value(corner, last)`, where `last` is 1 for x2 and y2.
    """

    def rule(k: Expr, c: Expr) -> Expr:
        return value(boxes[k, c + 1], tirx.Select(c >= 2, int64(1), int64(0)))

    return te.compute((g.boxes_count, int64(4)), rule, name="corners")


def _between(g: Frame, corners: te.Tensor, shift: float, least: float | None) -> Box:
    start = g.per_axis("start", lambda k, a: corners[k, 1 - a] - g.const(shift))

    def size(k: Expr, a: Expr) -> Expr:
        length = (corners[k, 3 - a] - g.const(shift)) - start[k, a]
        # This way round NaN stays NaN: in TVM max(NaN, b) = b.
        return length if least is None else te.max(g.const(least), length)

    return Box(start, g.per_axis("size", size), corners)


def round_half_away(value: Expr) -> Expr:
    """Round to the nearest whole number, halves away from zero, as C does."""
    dtype = str(value.ty.dtype)
    whole = te.trunc(value)
    step = tirx.Select(value < tirx.const(0, dtype), tirx.const(-1, dtype), tirx.const(1, dtype))
    far = te.abs(value - whole) >= tirx.const(0.5, dtype)
    return tirx.Select(far, whole + step, whole)


def finite_or_nan(value: Expr) -> Expr:
    """0 for a finite value, else NaN."""
    dtype = str(value.ty.dtype)
    limit = tirx.const(1.7e308 if dtype == "float64" else 3.4e38, dtype)
    nan = tirx.const(float("nan"), dtype)
    return tirx.Select(te.abs(value) <= limit, tirx.const(0, dtype), nan)
