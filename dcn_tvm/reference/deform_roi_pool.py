"""Deformable RoI pooling: every bin moves by an offset of its own.

Source: Dai et al., Deformable Convolutional Networks, eq. 6; with a sampling ratio mmcv's
DeformRoIPool.
"""

from collections.abc import Sequence

from torch import Tensor

from dcn_tvm.reference.roi import (
    Axis,
    Boxes,
    Edges,
    bin_edges,
    bin_mean,
    compute_dtype,
    half_pixel_span,
    load_boxes,
    maps_of,
    unknown_to_nan,
    whole_span,
)
from dcn_tvm.reference.roi_samples import (
    Samples,
    grid_count,
    grid_samples,
    moved_samples,
    pixel_samples,
    sample_sum,
)


def deform_roi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    offset: Tensor | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int | None = None,
    gamma: float = 0.1,
) -> Tensor:
    """Average bilinear values X over each bin, moved by `gamma * offset * size` of the box.

    - `sampling_ratio=None` (eq. 6): `y[k,c,i,j] = sum_p X[c](p + shift_ij) / n_ij` over the n_ij
      pixels p of roi_pool's bin, clipped to the map; the size is that of roi_pool's box in whole
      pixels. A corner outside the map counts as 0. An empty bin gives 0.
    - a number (mmcv): roi_align's samples and border, from `start = x1 s - 1/2` with
      `size = x2 s - x1 s`, which may be 0 or negative; that many samples per bin and axis, or
      `ceil(size / k)` if it is not positive, and the sum divided by `max(g_y g_x, 1)`. The slope
      for the offset is 0 where the border's pixels are repeated.

    The slope at an integer position is that of the cell which begins there. Half types are computed
    in float32 and rounded once. A box with a NaN or infinite number gives NaN, a NaN offset gives
    NaN in its bin; neither adds anything to the gradient for the input, but the gradient for their
    offsets is NaN. An infinite offset moves every sample off the map: 0, slope 0.

    Args:
        input: feature map `[N, C, H, W]`, any floating dtype.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list with the
            `[L, 4]` boxes of each image; no gradient.
        offset: `[K, 2, Kh, Kw]`, channel 0 is x and 1 is y, as shares of the box; None for 0.
        output_size: number of bins, one number or (y, x).
        spatial_scale: map pixels per image pixel.
        sampling_ratio: None, or samples per bin and axis (not positive: about one per pixel).
        gamma: the factor of all offsets.

    Returns:
        `[K, C, Kh, Kw]` in the input's dtype.

    Raises:
        ValueError: a box belongs to no image of the batch.

    Example:
        >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> box = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]])
        >>> right = torch.tensor([0.5, 0.0]).reshape(1, 2, 1, 1)
        >>> deform_roi_pool(x, box, right, 1, gamma=1.0).item()
        4.5
    """
    moves = None
    if offset is not None:
        x, y = offset.to(compute_dtype(input)).unsqueeze(2).unbind(1)
        moves = (y, x)
    if sampling_ratio is None:
        box = load_boxes(boxes, input, output_size, whole_span(spatial_scale, extra=1))
        output = pool_pixels(maps_of(input, box), box, moves, gamma)
    else:
        box = load_boxes(boxes, input, output_size, half_pixel_span(spatial_scale))
        output = _pool_grid(maps_of(input, box), box, moves, sampling_ratio, gamma)
    return unknown_to_nan(output, box, moves).to(input.dtype)


def pool_pixels(
    maps: Tensor, box: Boxes, moves: tuple[Tensor, Tensor] | None, gamma: float
) -> Tensor:
    """Return eq. 6: the mean over the pixels of every bin, moved by `gamma * move * size`."""
    edges_y, edges_x = bin_edges(box.y, box.y.pixels), bin_edges(box.x, box.x.pixels)
    if moves is None:
        return bin_mean(maps, edges_y, edges_x)

    def moved(axis: Axis, edges: Edges, move: Tensor) -> Samples:
        return moved_samples(
            move, lambda finite: pixel_samples(axis, edges, gamma * finite * axis.size)
        )

    rows, columns = moved(box.y, edges_y, moves[0]), moved(box.x, edges_x, moves[1])
    count = edges_y.pixels * edges_x.pixels
    return sample_sum(maps, rows, columns, "zeros") / count.clamp(min=1)


def _pool_grid(
    maps: Tensor, box: Boxes, moves: tuple[Tensor, Tensor] | None, ratio: int, gamma: float
) -> Tensor:
    """Return the mean over roi_align's samples, moved by `gamma * size * move`."""

    def moved(axis: Axis, move: Tensor) -> Samples:
        return moved_samples(
            move, lambda finite: grid_samples(axis, ratio, gamma * axis.size * finite)
        )

    if moves is None:
        rows, columns = grid_samples(box.y, ratio), grid_samples(box.x, ratio)
    else:
        rows, columns = moved(box.y, moves[0]), moved(box.x, moves[1])
    count = grid_count(box.y, ratio) * grid_count(box.x, ratio)
    return sample_sum(maps, rows, columns, "align") / count.clamp(min=1)
