"""RoI pooling: the maximum (Fast R-CNN) or the mean (eq. 5) over whole-pixel bins.

Source: Girshick, Fast R-CNN; Dai et al., Deformable Convolutional Networks, eq. 5. Bins as in
torchvision.ops.roi_pool.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcn_tvm.reference.roi import (
    Edges,
    bin_edges,
    bin_mean,
    in_bin,
    load_boxes,
    maps_of,
    unknown_to_nan,
    whole_span,
)

MODES = ("max", "avg")


def roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    mode: str = "max",
) -> Tensor:
    """Pool the pixels p of every bin: `y[k,c,i,j] = max_p x[c,p]`, or their mean.

    A box starts at `round(x1 s)` and has `max(round(x2 s) - round(x1 s) + 1, 1) = w` columns; bin j
    has those from `floor(j w/k)` up to `ceil((j+1) w/k)`, clipped to the map; rows alike. `round`
    takes halves away from zero. An empty bin gives 0. The maximum of a bin with a NaN is NaN; the
    gradient goes to the first maximum (or NaN) in row-major order.

    Half types are computed in float32 and rounded once. A box with a NaN or infinite number gives
    NaN and adds nothing to the gradient for the input.

    Args:
        input: feature map `[N, C, H, W]`, any floating dtype.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list with the
            `[L, 4]` boxes of each image; no gradient.
        output_size: number of bins, one number or (y, x).
        spatial_scale: map pixels per image pixel.
        mode: "max" or "avg".

    Returns:
        `[K, C, Kh, Kw]` in the input's dtype.

    Raises:
        ValueError: the mode is unknown, or a box belongs to no image of the batch.

    Example:
        >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> roi_pool(x, torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]), 1, mode="avg").item()
        4.0
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    box = load_boxes(boxes, input, output_size, whole_span(spatial_scale, extra=1))
    rows, columns = bin_edges(box.y, box.y.pixels), bin_edges(box.x, box.x.pixels)
    pool = _bin_maximum if mode == "max" else bin_mean
    output = pool(maps_of(input, box), rows, columns)
    return unknown_to_nan(output, box).to(input.dtype)


def _bin_maximum(maps: Tensor, rows: Edges, columns: Edges) -> Tensor:
    """Return the maximum over every bin's pixels, 0 for empty bins; maps `[K, C, 1, 1, H, W]`."""
    height, width = maps.shape[-2:]
    inside = in_bin(rows, height).unsqueeze(-1) & in_bin(columns, width).unsqueeze(-2)
    pixels = torch.where(inside, maps, -torch.inf).flatten(-2)
    largest = pixels.detach().amax(-1, keepdim=True)
    # argmax of truth values is the first one; amax is NaN where a pixel is.
    hit = inside.flatten(-2) & ((pixels == largest) | pixels.isnan())
    first = hit.to(torch.uint8).argmax(-1, keepdim=True)
    empty = ~inside.flatten(-2).any(-1)
    return torch.where(empty, 0, pixels.gather(-1, first).squeeze(-1))
