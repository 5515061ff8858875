"""Bilinear samples over the bins of boxes, axis by axis.

A sum over a bin's samples separates: `sum_st X(y_s, x_t)` adds rows first and columns then. So the
positions along y and along x are tensors of their own, `[K, D, Kh, Kw, S]` with sizes 1 where
nothing depends on a dimension, and S the samples of a bin.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dcn_tvm.reference.roi import Axis, Edges

# The positions that a sample may have along an axis of n pixels, and what lies beyond the map:
# corners of value 0, or the border's pixels again (roi_align; the released R-FCN code).
BOUNDARIES: dict[str, Callable[[int], tuple[float, float]]] = {
    "zeros": lambda pixels: (-1, pixels),
    "align": lambda pixels: (-1, pixels),
    "rfcn": lambda pixels: (-0.5, pixels - 0.5),
}


class Samples(NamedTuple):
    """Positions along one axis, `[..., S]`, and which of them belong to the bin."""

    position: Tensor
    used: Tensor


class Corners(NamedTuple):
    """One of the two pixels beside every sample, its share, and whether it counts at all."""

    pixel: Tensor
    share: Tensor
    used: Tensor


def grid_count(axis: Axis, ratio: int) -> Tensor:
    """Return roi_align's samples per bin: the ratio if it is positive, else `ceil(size / bins)`."""
    return torch.full_like(axis.size, ratio) if ratio > 0 else (axis.size / axis.bins).ceil()


def grid_samples(axis: Axis, ratio: int, shift: Tensor | None = None) -> Samples:
    """Return roi_align's g samples `start + shift + i b + (s + 1/2) b / g` of every bin.

    Of an adaptive grid only those samples are listed that may touch the map: a box of 1e30 pixels
    has 1e30 of them.
    """
    width, grid = axis.size / axis.bins, grid_count(axis, ratio)
    begin = (axis.start if shift is None else axis.start + shift) + axis.bin * width
    listed, skipped = ratio, torch.zeros_like(begin)
    if ratio <= 0:
        # An adaptive grid of more than one sample has steps of at least half a pixel.
        most = 2 * axis.pixels + 8
        listed = int(grid.clamp(0, most).max()) if grid.numel() else 0
        step = width / grid.clamp(min=1)
        before = ((-1 - begin.detach()) / step).floor() - 2
        skipped = torch.where((grid > most) & before.isfinite(), before.clamp(min=0), 0)
    line = torch.arange(listed, dtype=grid.dtype, device=grid.device)
    number = skipped.unsqueeze(-1) + line
    inner = (number + 0.5) * width.unsqueeze(-1) / grid.clamp(min=1).unsqueeze(-1)
    return Samples(begin.unsqueeze(-1) + inner, number < grid.unsqueeze(-1))


def pixel_samples(axis: Axis, edges: Edges, shift: Tensor) -> Samples:
    """Return every pixel of the bins, moved by `shift`."""
    most = int(edges.pixels.max()) if edges.pixels.numel() else 0
    line = torch.arange(most, dtype=shift.dtype, device=shift.device)
    position = edges.first.unsqueeze(-1) + line + shift.unsqueeze(-1)
    return Samples(position, (line < edges.pixels.unsqueeze(-1)).expand(position.shape))


def corners(samples: Samples, pixels: int, boundary: str) -> tuple[Corners, Corners]:
    """Return the two pixels beside every sample; none is used where the sample is not on the map.

    The slope at an integer is that of the cell which begins there. Beyond the map's border the
    boundaries "align" and "rfcn" repeat its pixels, with slope 0.
    """
    lowest, highest = BOUNDARIES[boundary](pixels)
    inside = samples.used & (samples.position >= lowest) & (samples.position <= highest)
    position = torch.where(inside, samples.position, 0)
    if boundary == "zeros":
        low = position.detach().floor()
        share = position - low
        high = low + 1
        on_low, on_high = inside & (low >= 0) & (low < pixels), inside & (high < pixels)
    else:
        # Not clamp: whether that has a slope at the bound itself differs between versions of torch.
        position = torch.where(position < 0, 0, position)
        low = position.detach().floor().clamp(max=pixels - 1)
        share = torch.where(low >= pixels - 1, 0, position - low)
        high, on_low, on_high = (low + 1).clamp(max=pixels - 1), inside, inside
    return (
        Corners(torch.where(on_low, low, 0).long(), 1 - share, on_low),
        Corners(torch.where(on_high, high, 0).long(), share, on_high),
    )


def sample_sum(maps: Tensor, rows: Samples, columns: Samples, boundary: str) -> Tensor:
    """Return the sum of the bilinear values at all pairs of samples `[K, D, Kh, Kw]`.

    Args:
        maps: the map behind every output `[K, D, Kh or 1, Kw or 1, H, W]`.
        rows: samples along y `[K, D or 1, Kh, Kw or 1, S]`.
        columns: samples along x `[K, D or 1, Kh or 1, Kw, T]`.
        boundary: "zeros", "align" or "rfcn".
    """
    height, width = maps.shape[-2:]
    # `where` before each product: what is not used may be NaN.
    lines = []
    for corner in corners(rows, height, boundary):
        picked = maps.take_along_dim(corner.pixel.unsqueeze(-1), dim=-2)
        picked = torch.where(corner.used.unsqueeze(-1), picked, 0)
        lines.append((picked * corner.share.unsqueeze(-1)).sum(-2))
    line, total = lines[0] + lines[1], []
    for corner in corners(columns, width, boundary):
        picked = torch.where(corner.used, line.take_along_dim(corner.pixel, dim=-1), 0)
        total.append((picked * corner.share).sum(-1))
    return total[0] + total[1]


def samples_inside(samples: Samples, pixels: int, boundary: str) -> Tensor:
    """Return how many samples of every bin the boundary lets count."""
    lowest, highest = BOUNDARIES[boundary](pixels)
    position = samples.position
    return (samples.used & (position >= lowest) & (position <= highest)).sum(-1)


def moved_samples(move: Tensor, samples: Callable[[Tensor], Samples]) -> Samples:
    """Return `samples(move)`; an infinite move leaves none, a NaN moves nothing."""
    moved = samples(torch.where(move.isfinite(), move, 0))
    return Samples(moved.position, moved.used & ~move.isinf().unsqueeze(-1))
