"""What all RoI references share: boxes, bins of whole pixels, and what has no finite number.

Bins are products of rows and columns, so every axis is worked out alone, in tensors that broadcast
to `[K, D, Kh, Kw]`: boxes, output channels, bins along y, bins along x.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Span = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Axis(NamedTuple):
    """One axis of every box, in map pixels."""

    start: Tensor  # [K, 1, 1, 1]
    size: Tensor  # [K, 1, 1, 1]
    bin: Tensor  # the number of the bin: [Kh, 1] for y, [Kw] for x
    bins: int
    pixels: int  # of the map along this axis


class Boxes(NamedTuple):
    """The boxes of one call; a box that is not known has numbers that are not finite."""

    image: Tensor  # [K], integer
    known: Tensor  # [K, 1, 1, 1]
    y: Axis
    x: Axis


class Edges(NamedTuple):
    """The pixels of every bin along one axis: from `first` up to, not including, `stop`."""

    first: Tensor
    stop: Tensor

    @property
    def pixels(self) -> Tensor:
        """Return the number of pixels, 0 for an empty bin."""
        return (self.stop - self.first).clamp(min=0)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (rows, columns) of an output size given as one number or as two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def compute_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype of all arithmetic: the input's own, but float32 for half types."""
    return torch.promote_types(input.dtype, torch.float32)


def round_half_away(values: Tensor) -> Tensor:
    """Round to the nearest integer, halves away from zero as in C (torch.round: to even)."""
    whole = values.trunc()
    return torch.where((values - whole).abs() >= 0.5, whole + values.sign(), whole)


def whole_span(spatial_scale: float, extra: int) -> Span:
    """Return roi_pool's span: corners rounded to pixels, size `end - start + extra`, at least 1."""

    def span(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        start = round_half_away(first * spatial_scale)
        end = round_half_away(last * spatial_scale)
        return start, (end - start + extra).clamp(min=1)

    return span


def load_boxes(
    boxes: Tensor | Sequence[Tensor], input: Tensor, output_size: int | Sequence[int], span: Span
) -> Boxes:
    """Read the boxes in the compute dtype; `span` makes (start, size) of two coordinates.

    Raises:
        ValueError: a box belongs to no image of the batch.
    """
    image, corners = _split_boxes(boxes, input)
    x1, y1, x2, y2 = corners.to(compute_dtype(input)).detach().unbind(1)
    numbers = (*span(y1, y2), *span(x1, x2))
    known = torch.stack([x1, y1, x2, y2, *numbers]).isfinite().all(0)
    start_y, size_y, start_x, size_x = (
        torch.where(known, number, 0)[:, None, None, None] for number in numbers
    )
    bins_y, bins_x = pair(output_size)
    line_y = torch.arange(bins_y, dtype=start_y.dtype, device=input.device)[:, None]
    line_x = torch.arange(bins_x, dtype=start_y.dtype, device=input.device)
    y = Axis(start_y, size_y, line_y, bins_y, input.shape[2])
    x = Axis(start_x, size_x, line_x, bins_x, input.shape[3])
    return Boxes(image, known[:, None, None, None], y, x)


def _split_boxes(boxes: Tensor | Sequence[Tensor], input: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image of every box `[K]` and its corners (x1, y1, x2, y2) `[K, 4]`."""
    batch = input.shape[0]
    if isinstance(boxes, Tensor):
        # A column of numbers, so NaN and infinity are possible: neither is below the batch.
        number, corners = boxes[:, 0].trunc(), boxes[:, 1:]
    else:
        lengths = torch.tensor([part.shape[0] for part in boxes], dtype=torch.long)
        number = torch.arange(len(boxes)).repeat_interleave(lengths).to(input.device)
        corners = torch.cat([input.new_zeros(0, 4, dtype=torch.float32), *boxes])
    if not ((number >= 0) & (number < batch)).all():
        raise ValueError(f"boxes must belong to images 0 to {batch - 1}, got {number.tolist()}")
    return number.long(), corners


def rfcn_span(spatial_scale: float, shift: float) -> Span:
    """Return R-FCN's span: `round(x1) s` to `(round(x2) + 1) s`, at least 0.1, minus the shift."""

    def span(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        start = round_half_away(first) * spatial_scale - shift
        end = (round_half_away(last) + 1) * spatial_scale - shift
        return start, (end - start).clamp(min=0.1)

    return span


def half_pixel_span(spatial_scale: float) -> Span:
    """Return the span of unrounded corners, moved by half a pixel to the pixels' centres."""

    def span(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        start, end = first * spatial_scale - 0.5, last * spatial_scale - 0.5
        return start, end - start

    return span


def bin_edges(axis: Axis, last: int) -> Edges:
    """Return roi_pool's bins `floor(i b) ... ceil((i+1) b)` from the start, clipped to [0, last].

    Integers are kept in floats: a box of 1e30 pixels is clipped like any other.
    """
    width = axis.size / axis.bins
    first = (axis.bin * width).floor() + axis.start
    stop = ((axis.bin + 1) * width).ceil() + axis.start
    return Edges(first.clamp(0, last), stop.clamp(0, last))


def in_bin(edges: Edges, pixels: int) -> Tensor:
    """Return which pixels of an axis belong to which bin, `[..., pixels]`."""
    line = torch.arange(pixels, dtype=edges.first.dtype, device=edges.first.device)
    return (line >= edges.first.unsqueeze(-1)) & (line < edges.stop.unsqueeze(-1))


def bin_mean(maps: Tensor, rows: Edges, columns: Edges) -> Tensor:
    """Return the mean over every bin's pixels, 0 for empty bins; maps `[K, D, .., .., H, W]`."""
    height, width = maps.shape[-2:]
    # `where`, not a product: a pixel outside the bin may be NaN.
    lines = torch.where(in_bin(rows, height).unsqueeze(-1), maps, 0).sum(-2)
    total = torch.where(in_bin(columns, width), lines, 0).sum(-1)
    return total / (rows.pixels * columns.pixels).clamp(min=1)


def maps_of(input: Tensor, boxes: Boxes, channel: Tensor | None = None) -> Tensor:
    """Return the map behind every output, `[K, D, Kh, Kw, H, W]`, or `[K, C, 1, 1, H, W]`.

    `channel [D, Kh, Kw]` says which input channel feeds bin (i, j) of output channel d.
    """
    maps = input.to(compute_dtype(input))
    maps = maps[:, :, None, None] if channel is None else maps[:, channel]
    return maps[boxes.image]


def unknown_to_nan(
    output: Tensor, boxes: Boxes, moves: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return NaN, with no gradient for the input, where the box is not known.

    The same where one of the bin's moves (y, x) is NaN; the moves' gradients become NaN as well.
    """
    if moves is None:
        return torch.where(boxes.known, output, torch.nan)
    unknown = ~boxes.known | moves[0].isnan() | moves[1].isnan()
    # The square has slope 2 * NaN where it is NaN and 2 * 0 elsewhere.
    poison = torch.where(unknown, moves[0] + moves[1] + torch.nan, 0).square()
    return torch.where(unknown, 0, output) + poison
