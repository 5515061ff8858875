"""Position-sensitive RoI pooling: every bin averages a channel of its own.

Source: Dai et al., R-FCN, eq. 1. Two conventions for the bins are in use.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcn_tvm.reference.roi import (
    Axis,
    Edges,
    bin_edges,
    bin_mean,
    load_boxes,
    maps_of,
    pair,
    rfcn_span,
    unknown_to_nan,
    whole_span,
)

CONVENTIONS = ("torchvision", "rfcn")


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    convention: str = "torchvision",
) -> Tensor:
    """Average the pixels p of bin (i, j): `y[k,d,i,j] = mean_p x[(d Kh + i) Kw + j, p]`.

    - "torchvision": a box starts at `round(x1 s)` and has `max(round(x2 s) - round(x1 s), 1) = w`
      columns; bin j has those from `floor(j w/k)` up to `ceil((j+1) w/k)`. The ends are clipped to
      [0, W-1], so the last row and column belong to no bin. So does torchvision's forward; its
      backward on the CPU clips to [0, W] and is not copied: ours is the forward's derivative.
    - "rfcn": from `start = round(x1) s` to `end = (round(x2) + 1) s`, `w = max(end - start, 0.1)`;
      bin j has the columns from `floor(j w/k + start)` up to `ceil((j+1) w/k + start)`, clipped to
      [0, W].

    Rows alike. `round` takes halves away from zero. An empty bin gives 0. Half types are computed
    in float32 and rounded once. A box with a NaN or infinite number gives NaN and adds nothing to
    the gradient for the input.

    Args:
        input: feature map `[N, D*Kh*Kw, H, W]`, any floating dtype.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list with the
            `[L, 4]` boxes of each image; no gradient.
        output_size: number of bins, one number or (y, x).
        spatial_scale: map pixels per image pixel.
        convention: "torchvision" or "rfcn".

    Returns:
        `[K, D, Kh, Kw]` in the input's dtype.

    Raises:
        ValueError: the convention is unknown, or a box belongs to no image of the batch.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 3, 3)
        >>> ps_roi_pool(x, torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]), 2).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {CONVENTIONS}, got {convention!r}")
    rfcn = convention == "rfcn"
    span = rfcn_span(spatial_scale, 0.0) if rfcn else whole_span(spatial_scale, extra=0)
    box = load_boxes(boxes, input, output_size, span)
    rows, columns = (
        _rfcn_edges(axis) if rfcn else bin_edges(axis, axis.pixels - 1) for axis in (box.y, box.x)
    )
    maps = maps_of(input, box, own_channels(input.shape[1], output_size))
    return unknown_to_nan(bin_mean(maps, rows, columns), box).to(input.dtype)


def own_channels(channels: int, output_size: int | tuple[int, int]) -> Tensor:
    """Return the input channel of bin (i, j) of every output channel, `[D, Kh, Kw]`."""
    bins_y, bins_x = pair(output_size)
    return torch.arange(channels).reshape(channels // (bins_y * bins_x), bins_y, bins_x)


def _rfcn_edges(axis: Axis) -> Edges:
    width = axis.size / axis.bins
    first = (axis.bin * width + axis.start).floor()
    stop = ((axis.bin + 1) * width + axis.start).ceil()
    return Edges(first.clamp(0, axis.pixels), stop.clamp(0, axis.pixels))
