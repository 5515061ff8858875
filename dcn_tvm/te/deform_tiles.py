"""Row tiles of a deformable convolution: shapes, tiling and the stages that its kernels share.

A *row* is an output pixel of one image; the rows of an image are cut into tiles. The last tile is
padded by repeating the last pixel, so that no loop has a ragged end; what is stored is exact. A
tile's samples are the rows of a GEMM's left operand and live only as long as the tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.te.nest import int64

Expr = Any


@dataclass(frozen=True)
class Tiling:
    """The part of a schedule that shapes the data: row tiles, packed panels, channel slices."""

    rows: int  # output pixels of a tile
    lanes: int  # elements of one vector of the GEMM's result
    columns: int  # width of a packed panel of the GEMM's right operand, whole vectors
    sample_lanes: int  # channels of one vector while sampling and scattering
    taps: int = 1  # kernel taps whose samples are alive at once; divides the number of taps
    slice: int = 0  # channels owned by one worker of a backward kernel


class Graph:
    """Shapes, placeholders and the stages that all kernels of the op share.

    `order` tells a kernel's outer loops, which are the leading dimensions of its per-tile stages:
    "tiles" (an item is one tile), "images" (an item is a channel slice of an image and walks its
    tiles), "slices" (an item is a channel slice and walks all tiles of all images).
    """

    def __init__(self, problem: DeformConv2dProblem, tiling: Tiling, order: str = "tiles") -> None:
        self.problem, self.tiling, self.order = problem, tiling, order
        self.n, self.h, self.w, self.ho, self.wo = (
            te.var(name, "int64") for name in ("n", "h", "w", "ho", "wo")
        )
        self.tiles, self.items = te.var("tiles", "int64"), te.var("items", "int64")
        self.pixels = self.ho * self.wo
        self.kh, self.kw = problem.kernel_size
        self.taps = self.kh * self.kw
        self.channels = padded_channels(problem, tiling.sample_lanes)
        self.group_channels = self.channels // problem.offset_groups
        self.slices = self.channels // (tiling.slice or self.channels)
        self.arguments: list[te.Tensor] = []

    @property
    def derived(self) -> dict[Any, Expr]:
        """Values of the free variables that a schedule must not look into."""
        tiles = tirx.floordiv(self.pixels + (self.tiling.rows - 1), int64(self.tiling.rows))
        return {self.tiles: tiles, self.items: self.n * tiles}

    @property
    def outer(self) -> tuple[Expr, ...]:
        """Extents of the leading dimensions of every per-tile stage."""
        return {
            "tiles": (self.items,),
            "images": (self.n * self.slices, self.tiles),
            "slices": (int64(self.slices), self.n, self.tiles),
        }[self.order]

    def locate(self, index: tuple[Expr, ...]) -> tuple[Expr, Expr]:
        """(image, tile) of a stage's leading indices."""
        if self.order == "tiles":
            return index[0] // self.tiles, index[0] % self.tiles
        if self.order == "images":
            return index[0] // self.slices, index[1]
        return index[1], index[2]

    def slice_of(self, index: tuple[Expr, ...]) -> Expr:
        """Number of the channel slice that a stage's leading indices belong to."""
        return index[0] % self.slices if self.order == "images" else index[0]

    @property
    def parts(self) -> tuple[int, int]:
        """(convolution groups in a channel slice, channels of each); (1, all) if inside one."""
        width = self.channels // self.slices
        inner = min(width, self.channels // self.problem.groups)
        return width // inner, inner

    def const(self, value: float) -> Expr:
        """A constant of the accumulation type."""
        return tirx.const(value, self.problem.accumulate)

    def real(self, value: Expr) -> Expr:
        """`value` in the accumulation type."""
        return value.astype(self.problem.accumulate)

    # -- arguments ---------------------------------------------------------------------------

    def map_shape(self, channels: int, *, output_sized: bool = True) -> tuple[Expr, ...]:
        """Shape of a map of `channels` in the problem's layout."""
        height, width = (self.ho, self.wo) if output_sized else (self.h, self.w)
        if self.problem.layout == "nchw":
            return (self.n, int64(channels), height, width)
        return (self.n, height, width, int64(channels))

    def argument(self, name: str, shape: tuple[Any, ...]) -> te.Tensor:
        """A tensor that the caller passes; arguments keep the order of these calls."""
        tensor = te.placeholder(shape, dtype=self.problem.dtype, name=name)
        self.arguments.append(tensor)
        return tensor

    def index(self, image: Expr, channel: Expr, pixel: Expr) -> list[Expr]:
        """Where a map holds a linear pixel: rows are contiguous, so it may exceed a row."""
        zero = int64(0)
        if self.problem.layout == "nchw":
            return [image, channel, zero, pixel]
        return [image, zero, pixel, channel]

    def at(self, tensor: Any, image: Expr, channel: Expr, pixel: Expr) -> Expr:
        """A map's value at a linear pixel."""
        return tensor[tuple(self.index(image, channel, pixel))]

    # -- rows --------------------------------------------------------------------------------

    def row(self, tile: Expr, q: Expr) -> Expr:
        """The linear output pixel of a tile's row; padding rows repeat the last pixel."""
        return te.min(tile * int64(self.tiling.rows) + q, self.pixels - int64(1))

    def by_tile(self, tile: Expr, q: Expr, read: Callable[[Expr], Expr]) -> Expr:
        """A row's value, with plain addresses in all tiles but a ragged last one.

        The condition is the same for the whole tile, so the compiler makes two loops of it.
        """
        plain = tile * int64(self.tiling.rows) + q
        full = (tile + 1) * int64(self.tiling.rows) <= self.pixels
        value = tirx.if_then_else(full, read(plain), read(self.row(tile, q)))
        return self.real(value)

    def rows_of(self, tensor: te.Tensor, name: str, channels: int, dtype: str) -> te.Tensor:
        """A map as rows [image, pixel, `channels`], copied only where it is not so already."""
        p = self.problem
        nchw = p.layout == "nchw"
        real_channels = tensor.shape[1 if nchw else 3].value
        if not nchw and channels == real_channels and dtype == p.dtype:
            return tensor
        height, width = tensor.shape[2:4] if nchw else tensor.shape[1:3]

        def value(b: Expr, pixel: Expr, c: Expr) -> Expr:
            inside = self.at(tensor, b, c, pixel).astype(dtype)
            if channels == real_channels:
                return inside
            return tirx.if_then_else(c < real_channels, inside, tirx.const(0, dtype))

        return te.compute((self.n, height * width, int64(channels)), value, name=name)

    def row_index(self, rows: Any, image: Expr, pixel: Expr, c: Expr) -> tuple[Expr, ...]:
        """Where rows hold a channel of a linear pixel; a map's rows are contiguous."""
        return (image, int64(0), pixel, c) if len(rows.shape) == 4 else (image, pixel, c)

    # -- where the samples are -----------------------------------------------------------------

    def positions(self, offset: te.Tensor) -> te.Tensor:
        """[.., group, tap, axis, row]: y and x of every sample in pixels of the input map."""
        p, rows, leading = self.problem, self.tiling.rows, len(self.outer)

        def origin(*index: Expr) -> Expr:
            axis, q = index[-2:]
            row = self.row(self.locate(index)[1], q)
            y, x = (row // self.wo) * p.stride[0], (row % self.wo) * p.stride[1]
            return self.real(tirx.Select(axis == 0, y - p.padding[0], x - p.padding[1]))

        origins = te.compute((*self.outer, 2, rows), origin, name="origins")
        moved = self.tile_of(offset, 2 * self.taps * p.offset_groups, "moved")

        def position(*index: Expr) -> Expr:
            outer, (g, t, axis, q) = index[:leading], index[leading:]
            y, x = (t // self.kw) * p.dilation[0], (t % self.kw) * p.dilation[1]
            tap = self.real(tirx.Select(axis == 0, y, x))
            # same order of additions as torchvision: exact integers first, then the offset
            start = origins[(*outer, axis, q)] + tap
            return start + moved[(*outer, (g * self.taps + t) * 2 + axis, q)]

        shape = (p.offset_groups, self.taps, 2, rows)
        return te.compute((*self.outer, *shape), position, name="position")

    def neighbours(self, name: str, dtype: str, positions: te.Tensor, rule: Any) -> te.Tensor:
        """[.., group, tap, axis, side, row]: `rule(position, size, side)` on both axes."""

        def value(*index: Expr) -> Expr:
            axis, side, q = index[-3:]
            size = tirx.Select(axis == 0, self.h, self.w)
            return rule(self.real(positions[(*index[:-2], q)]), size, side).astype(dtype)

        shape = (self.problem.offset_groups, self.taps, 2, 2, self.tiling.rows)
        return te.compute((*self.outer, *shape), value, name=name)

    def corners(self, name: str, dtype: str, rule: Any) -> te.Tensor:
        """[.., group, tap, corner, row]: `rule(index, corner, row)`, `index` up to the tap."""

        def value(*index: Expr) -> Expr:
            return rule(index[:-2], index[-2], index[-1]).astype(dtype)

        shape = (self.problem.offset_groups, self.taps, 4, self.tiling.rows)
        return te.compute((*self.outer, *shape), value, name=name)

    def mask_tile(self, mask: te.Tensor | None) -> te.Tensor | None:
        """A tile of the mask as [channel, row], None without mask."""
        channels = self.taps * self.problem.offset_groups
        return None if mask is None else self.tile_of(mask, channels, "mask_tile")

    def tile_of(self, tensor: te.Tensor, channels: int, name: str) -> te.Tensor:
        """A tile of an output-sized map as [channel, row]."""

        def value(*index: Expr) -> Expr:
            channel, q = index[-2:]
            image, tile = self.locate(index)
            return self.by_tile(tile, q, lambda row: self.at(tensor, image, channel, row))

        return te.compute((*self.outer, channels, self.tiling.rows), value, name=name)

    def samples(self, x_rows: te.Tensor, pixel: te.Tensor, share: te.Tensor) -> te.Tensor:
        """[.., row, tap, channel of the slice]: bilinear samples, exactly 0 outside the map.

        The test for outside is not only a shortcut: such a sample must be 0 even where the pixel
        that would stand in for its corners holds inf or NaN.
        """
        p, leading = self.problem, len(self.outer)
        width = self.channels // self.slices

        def value(*index: Expr) -> Expr:
            outer, (q, t, local) = index[:leading], index[leading:]
            image, _ = self.locate(outer)
            c = self.slice_of(outer) * width + local if self.slices > 1 else local
            group = c // self.group_channels if p.offset_groups > 1 else int64(0)
            where = [pixel[(*outer, group, t, i, q)] for i in range(4)]
            terms = [
                share[(*outer, group, t, i, q)]
                * self.real(x_rows[self.row_index(x_rows, image, int64(where[i]), c)])
                for i in range(4)
            ]
            total = ((terms[0] + terms[1]) + terms[2]) + terms[3]
            return tirx.if_then_else(where[0] >= 0, total, self.const(0))

        shape = (self.tiling.rows, self.taps, int64(width))
        return te.compute((*self.outer, *shape), value, name="samples")


def sample_lanes(problem: DeformConv2dProblem, lanes: int) -> int:
    """Channels sampled by one vector: whole vectors, padded at the end if there is one group.

    With several offset groups or convolution groups no vector may cross a boundary, so the width
    is the largest power of two that divides both group sizes.
    """
    if problem.offset_groups == 1 and problem.groups == 1:
        return min(lanes, 1 << (problem.in_channels - 1).bit_length())
    shared = math.gcd(
        problem.in_channels // problem.offset_groups, problem.in_channels // problem.groups
    )
    return min(lanes, shared & -shared)


def padded_channels(problem: DeformConv2dProblem, lanes: int) -> int:
    """Channels of a row of the input, rounded up to whole sampling vectors."""
    return -(-problem.in_channels // lanes) * lanes


def legal_slices(problem: DeformConv2dProblem, lanes: int) -> list[int]:
    """Channel counts that a backward worker may own: no slice straddles a group's boundary."""
    channels = padded_channels(problem, lanes)
    sizes = [channels // problem.offset_groups, channels // problem.groups]
    return [
        width
        for width in range(lanes, channels + 1, lanes)
        if channels % width == 0 and all(width % s == 0 or s % width == 0 for s in sizes)
    ]
