"""Where deformable RoI pooling reads: the bins of a box, regular and moved (figure 7).

Positions are in pixels of the map, whose centres are whole numbers. The three ways of sampling:

- "paper" (eq. 6): a bin is whole pixels of the rounded box, cut off at the map's border before it
  moves; neighbours overlap where an edge falls inside a pixel.
- "mmcv": equal parts of the unrounded box, `x * scale - 1/2`, and samples in the middles of a grid.
- "rfcn" (the released code): equal parts of `round(x1) * scale - 1/2` to
  `(round(x2) + 1) * scale - 1/2`, and samples at the left edges of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dcn_tvm.reference import roi
from dcn_tvm.viz.layers import Pair

Sampling = Literal["paper", "mmcv", "rfcn"]


@dataclass(frozen=True)
class SampledBins:
    """A deformable RoI pooling layer's geometry with the boxes and the offsets that it used.

    Args:
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image.
        offset: `[K, 2*classes, parts, parts]` in fractions of the box, x before y.
        map_size: (H, W) of the map that was pooled.
        output_size: bins along y and x.
        spatial_scale: pixels of the map for one pixel of the image.
        gamma: scale of the offsets.
        sampling: "paper", "mmcv" or "rfcn", see the module.

    Raises:
        ValueError: the shapes of boxes and offset do not fit each other.

    Example:
        >>> box, offset = torch.tensor([[0, 0.0, 0, 64, 64]]), torch.zeros(1, 42, 7, 7)
        >>> SampledBins(box, offset, (38, 63), (7, 7), 1 / 16, 0.1, "rfcn").classes
        21
    """

    boxes: Tensor
    offset: Tensor
    map_size: Pair
    output_size: Pair
    spatial_scale: float
    gamma: float
    sampling: Sampling

    def __post_init__(self) -> None:
        boxes, offset = tuple(self.boxes.shape), tuple(self.offset.shape)
        if len(boxes) != 2 or boxes[1] != 5:
            raise ValueError(f"boxes must be [K, 5], rows of (image, x1, y1, x2, y2), got {boxes}")
        if len(offset) != 4 or offset[0] != boxes[0] or offset[1] < 2 or offset[1] % 2:
            raise ValueError(
                f"offset must be [{boxes[0]}, 2 * classes, parts, parts], got {offset}"
            )

    @property
    def classes(self) -> int:
        """The classes that move apart; 1 where all move alike."""
        return self.offset.shape[1] // 2

    @property
    def origin(self) -> float:
        """Where in the image the sampling itself takes the first map pixel's centre to be.

        For "paper" map pixel i is at image pixel `i / scale`. The others divide the image into
        squares of `1 / scale` pixels, whose middles are the centres of the map's pixels.
        """
        return 0.0 if self.sampling == "paper" else (1 / self.spatial_scale - 1) / 2


def bin_boxes(
    bins: SampledBins, index: int, *, offset_class: int = 0, moved: bool = True
) -> Tensor:
    """Return the bins of one box, `D_ij = gamma * offset_ij * (w, h)` from their regular places.

    For "paper" the centre of a bin is the mean of the positions that the op reads, and its area in
    pixels their number; for "mmcv" the samples are the middles of an even grid in the bin; for
    "rfcn" the left upper corners of one, so that their mean lies half a grid step before the
    centre, and samples more than half a pixel outside the map are left out.

    Args:
        bins: what a layer did.
        index: of the box.
        offset_class: whose offsets to follow, from 0 to `bins.classes - 1`.
        moved: False for the regular bins.

    Returns:
        `[rows, columns, 4]`, (x1, y1, x2, y2) of the edges in pixels of the map, whose pixel i
        extends from i - 1/2 to i + 1/2. NaN where nothing is read: a bin outside the map for
        "paper", a box or an offset that is not finite.

    Raises:
        ValueError: there is no such box or class.

    Source: Dai et al., Deformable Convolutional Networks, section 2.2, eq. 6, and figure 7.

    Example:
        >>> box, right = torch.tensor([[0, 0.0, 0, 3, 3]]), torch.tensor([[[[0.5]], [[0.0]]]])
        >>> bin_boxes(SampledBins(box, right, (9, 9), (1, 1), 1.0, 1.0, "paper"), 0).tolist()
        [[[1.5, -0.5, 5.5, 3.5]]]
    """
    for name, value, count in (
        ("index", index, len(bins.boxes)),
        ("offset_class", offset_class, bins.classes),
    ):
        if not 0 <= value < count:
            raise ValueError(f"{name} must be from 0 to {count - 1}, got {value}")
    corners = bins.boxes[index, 1:].detach().cpu()
    like = corners.new_empty(()).expand(1, 1, *bins.map_size)
    box = roi.load_boxes([corners[None]], like, bins.output_size, _span(bins))
    offset = bins.offset[index, 2 * offset_class : 2 * offset_class + 2].detach().cpu()
    move = _by_bin(offset.to(corners.dtype), bins.output_size) * bins.gamma * moved
    sides = [
        torch.stack(torch.broadcast_tensors(low + shift * axis.size, high + shift * axis.size))
        for axis, shift in ((box.x, move[0]), (box.y, move[1]))
        for low, high in [_edges(bins, axis)]
    ]
    found = torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], -1)[0, 0]
    known = box.known[0, 0] & found.isfinite().all(-1)
    return torch.where(known[..., None], found, torch.nan)


def _span(bins: SampledBins) -> roi.Span:
    if bins.sampling == "paper":
        return roi.whole_span(bins.spatial_scale, extra=1)
    if bins.sampling == "mmcv":
        return roi.half_pixel_span(bins.spatial_scale)
    return roi.rfcn_span(bins.spatial_scale, shift=0.5)


def _edges(bins: SampledBins, axis: roi.Axis) -> tuple[Tensor, Tensor]:
    """Return the edges of the regular bins along one axis; NaN for those without a pixel."""
    if bins.sampling == "paper":
        edges = roi.bin_edges(axis, axis.pixels)
        first = torch.where(edges.pixels > 0, edges.first - 0.5, torch.nan)
        return first, edges.stop - 0.5
    width = axis.size / axis.bins
    low = axis.start + axis.bin * width
    return low, low + width


def _by_bin(offset: Tensor, bins: Pair) -> Tensor:
    """Return the part `[2, rows, columns]` of an offset `[2, parts, parts]` that is each bin's."""
    row, column = (
        torch.arange(count) * parts // count
        for count, parts in zip(bins, offset.shape[1:], strict=True)
    )
    return offset[:, row[:, None], column]
