"""Position-sensitive RoI align: bilinear samples, from a channel of its own for every bin.

Source: Li et al., Light-Head R-CNN; grid and border as in torchvision.ops.ps_roi_align.
"""

from collections.abc import Sequence

from torch import Tensor

from dcn_tvm.reference.ps_roi_pool import own_channels
from dcn_tvm.reference.roi import half_pixel_span, load_boxes, maps_of, unknown_to_nan
from dcn_tvm.reference.roi_samples import grid_count, grid_samples, sample_sum


def ps_roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """Average samples at `start + i b + (s + 1/2) b / g` of channel `(d Kh + i) Kw + j`.

    `start = x1 s - 1/2` and `size = x2 s - x1 s`, which may be 0 or negative; `b = size / k`; g is
    the sampling ratio or, if that is not positive, `ceil(b)`. Where the grid is empty the result is
    0 (torchvision: 0/0). The border is that of roi_align: a sample beyond [-1, H] is 0; within, a
    coordinate below 0 counts as 0 and one above H - 1 as H - 1.

    Half types are computed in float32 and rounded once. A box with a NaN or infinite number gives
    NaN and adds nothing to the gradient for the input.

    Args:
        input: feature map `[N, D*Kh*Kw, H, W]`, any floating dtype.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list with the
            `[L, 4]` boxes of each image; no gradient.
        output_size: number of bins, one number or (y, x).
        spatial_scale: map pixels per image pixel.
        sampling_ratio: samples per bin and axis; not positive: about one per pixel.

    Returns:
        `[K, D, Kh, Kw]` in the input's dtype.

    Raises:
        ValueError: a box belongs to no image of the batch.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 3, 3)
        >>> ps_roi_align(x, torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]), 2).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    box = load_boxes(boxes, input, output_size, half_pixel_span(spatial_scale))
    rows, columns = (grid_samples(axis, sampling_ratio) for axis in (box.y, box.x))
    count = grid_count(box.y, sampling_ratio) * grid_count(box.x, sampling_ratio)
    maps = maps_of(input, box, own_channels(input.shape[1], output_size))
    output = sample_sum(maps, rows, columns, "align") / count.clamp(min=1)
    return unknown_to_nan(output, box).to(input.dtype)
