"""Deformable position-sensitive RoI pooling: moved bins, each of a channel of its own.

Source: Dai et al., Deformable Convolutional Networks, section 2.2 and eq. 6; the released code of
Deformable R-FCN (deformable_psroi_pooling) for `sampling="grid"`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcn_tvm.reference.deform_roi_pool import pool_pixels
from dcn_tvm.reference.roi import (
    Axis,
    Boxes,
    compute_dtype,
    load_boxes,
    maps_of,
    pair,
    rfcn_span,
    unknown_to_nan,
    whole_span,
)
from dcn_tvm.reference.roi_samples import Samples, moved_samples, sample_sum, samples_inside

SAMPLINGS = ("grid", "paper")


def deform_ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    output_dim: int | None = None,
    group_size: int | None = None,
    part_size: int | None = None,
    sample_per_part: int = 4,
    gamma: float = 0.1,
    sampling: str = "grid",
) -> Tensor:
    """Average bilinear values over each bin, moved by `gamma * offset * size` of the box.

    Bin (i, j) of output channel d has input channel `(d g + i g // Kh) g + j g // Kw`, with g the
    group size, and the offset (d // (D / classes), i p // Kh, j p // Kw), with p the part size.

    - "grid" (released code): `start = round(x1) s - 1/2`, `end = (round(x2) + 1) s - 1/2`,
      `size = max(end - start, 0.1)`, samples at `start + j b + shift + t b / sample_per_part`, from
      the left edge of a bin of `b = size / Kw`. Samples outside [-1/2, W - 1/2] are left out of sum
      and count; a coordinate below 0 counts as 0 and one above W - 1 as W - 1, with slope 0.
    - "paper" (eq. 6): the bins, size and X of deform_roi_pool without a sampling ratio.

    `round` takes halves away from zero. The slope at an integer position is that of the cell which
    begins there. A bin without samples gives 0. Half types are computed in float32 and rounded
    once. A box with a NaN or infinite number gives NaN, a NaN offset gives NaN in its bins; neither
    adds anything to the gradient for the input, but the gradient for their offsets is NaN. An
    infinite offset moves every sample off the map: 0, slope 0.

    Args:
        input: feature map `[N, D*g*g, H, W]`, any floating dtype.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list with the
            `[L, 4]` boxes of each image; no gradient.
        offset: `[K, 2*classes, p, p]`, x of a class before its y, as shares of the box; None for 0.
        output_size: number of bins, one number or (y, x).
        spatial_scale: map pixels per image pixel.
        output_dim: D; None for `C // g^2`.
        group_size: bins that have channels of their own along an axis; None for the output size.
        part_size: bins that have offsets of their own along an axis; None or 0 for the output size.
        sample_per_part: samples per bin and axis of "grid".
        gamma: the factor of all offsets.
        sampling: "grid" or "paper".

    Returns:
        `[K, D, Kh, Kw]` in the input's dtype.

    Raises:
        ValueError: the sampling is unknown, sizes do not agree, or a box belongs to no image of the
            batch.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 3, 3)
        >>> box = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]])
        >>> deform_ps_roi_pool(x, box, torch.zeros(1, 2, 2, 2), 2).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {SAMPLINGS}, got {sampling!r}")
    size = pair(output_size)
    groups = _square("group_size", group_size, size)
    dim = input.shape[1] // groups**2 if output_dim is None else output_dim
    if dim * groups**2 != input.shape[1]:
        raise ValueError(f"input must have {dim} * {groups}^2 channels, got {input.shape[1]}")
    moves = None
    if offset is not None:
        parts = _square("part_size", part_size or None, size)
        moves = _moves_by_bin(offset.to(compute_dtype(input)), dim, size, parts)
    paper = sampling == "paper"
    span = whole_span(spatial_scale, extra=1) if paper else rfcn_span(spatial_scale, shift=0.5)
    box = load_boxes(boxes, input, size, span)
    maps = maps_of(input, box, _channels(dim, groups, size))
    if paper:
        output = pool_pixels(maps, box, moves, gamma)
    else:
        output = _pool_grid(maps, box, moves, sample_per_part, gamma)
    return unknown_to_nan(output, box, moves).to(input.dtype)


def _square(name: str, size: int | None, bins: tuple[int, int]) -> int:
    if size is None and bins[0] != bins[1]:
        raise ValueError(f"{name} must be given where the output is not square, {bins}")
    return bins[0] if size is None else size


def _channels(dim: int, groups: int, bins: tuple[int, int]) -> Tensor:
    """Return the input channel of bin (i, j) of every output channel, `[D, Kh, Kw]`."""
    row, column = (torch.arange(count) * groups // count for count in bins)
    outer = torch.arange(dim)[:, None, None] * groups
    return (outer + row[:, None]) * groups + column


def _moves_by_bin(
    offset: Tensor, dim: int, bins: tuple[int, int], parts: int
) -> tuple[Tensor, Tensor]:
    """Return the offsets (y, x) of every bin of every output channel, each `[K, D, Kh, Kw]`."""
    boxes, channels, *size = offset.shape
    classes = channels // 2
    if channels != 2 * classes or classes == 0 or dim % classes or size != [parts, parts]:
        raise ValueError(
            f"offset must be [K, 2*classes, {parts}, {parts}] with classes that divide {dim}, "
            f"got {tuple(offset.shape)}"
        )
    row, column = (torch.arange(count) * parts // count for count in bins)
    by_bin = offset.reshape(boxes, classes, 2, parts, parts)[:, :, :, row[:, None], column]
    by_channel = by_bin.repeat_interleave(dim // classes, dim=1)
    return by_channel[:, :, 1], by_channel[:, :, 0]


def _pool_grid(
    maps: Tensor, box: Boxes, moves: tuple[Tensor, Tensor] | None, samples: int, gamma: float
) -> Tensor:
    """Return the mean over those samples of a grid from the bin's left edge that are inside."""

    def grid(axis: Axis, move: Tensor | float) -> Samples:
        width = axis.size / axis.bins
        begin = axis.bin * width + axis.start + move * gamma * axis.size
        line = torch.arange(samples, dtype=begin.dtype, device=begin.device)
        position = begin.unsqueeze(-1) + line * (width / samples).unsqueeze(-1)
        return Samples(position, torch.ones_like(position, dtype=torch.bool))

    def moved(axis: Axis, move: Tensor) -> Samples:
        return moved_samples(move, lambda finite: grid(axis, finite))

    if moves is None:
        rows, columns = grid(box.y, 0.0), grid(box.x, 0.0)
    else:
        rows, columns = moved(box.y, moves[0]), moved(box.x, moves[1])
    count = samples_inside(rows, box.y.pixels, "rfcn") * samples_inside(
        columns, box.x.pixels, "rfcn"
    )
    return sample_sum(maps, rows, columns, "rfcn") / count.clamp(min=1)
