"""RoI align: bilinear samples at the unrounded points of a grid in every bin, averaged.

Source: He et al., Mask R-CNN; grid, border and counts as in torchvision.ops.roi_align.
"""

from collections.abc import Sequence

from torch import Tensor

from dcn_tvm.reference.roi import load_boxes, maps_of, unknown_to_nan
from dcn_tvm.reference.roi_samples import grid_count, grid_samples, sample_sum


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Average the bilinear values at `start + i b + (s + 1/2) b / g`, `s < g`, y and x alike.

    `start = x1 s - a` and `size = x2 s - x1 s` with `a = 1/2` if aligned; else `a = 0` and the size
    is at least 1. `b = size / k` is a bin, g the sampling ratio or, if that is not positive,
    `ceil(b)`. The sum is divided by `max(g_y g_x, 1)`, so that an empty grid gives 0. A sample
    beyond [-1, H] is 0; within, a coordinate below 0 counts as 0 and one above H - 1 as H - 1.

    Half types are computed in float32 and rounded once. A box with a NaN or infinite number gives
    NaN and adds nothing to the gradient for the input.

    Args:
        input: feature map `[N, C, H, W]`, any floating dtype.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list with the
            `[L, 4]` boxes of each image; no gradient.
        output_size: number of bins, one number or (y, x).
        spatial_scale: map pixels per image pixel.
        sampling_ratio: samples per bin and axis; not positive: about one per pixel.
        aligned: whether boxes are shifted by half a pixel, to the centres of the pixels.

    Returns:
        `[K, C, Kh, Kw]` in the input's dtype.

    Raises:
        ValueError: a box belongs to no image of the batch.

    Example:
        >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> roi_align(x, torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]), 1).item()
        4.0
    """

    def span(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        shift = 0.5 if aligned else 0.0
        start, end = first * spatial_scale - shift, last * spatial_scale - shift
        size = end - start
        return start, size if aligned else size.clamp(min=1)

    box = load_boxes(boxes, input, output_size, span)
    rows, columns = (grid_samples(axis, sampling_ratio) for axis in (box.y, box.x))
    count = grid_count(box.y, sampling_ratio) * grid_count(box.x, sampling_ratio)
    maps = maps_of(input, box)
    output = sample_sum(maps, rows, columns, "align") / count.clamp(min=1)
    return unknown_to_nan(output, box).to(input.dtype)
