"""Arguments that all RoI functions share: the map, the boxes, the grid of bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcn_tvm.functional import checks

Boxes = Tensor | Sequence[Tensor]


class Common(NamedTuple):
    """Checked arguments: boxes as [K, 5] in the accumulation type, bins as (rows, columns)."""

    boxes: Tensor
    spatial_scale: float
    bins: tuple[int, int]


def check_common(
    input: Tensor, boxes: Boxes, output_size: checks.Pair, spatial_scale: float
) -> Common:
    """Check what every RoI function takes.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ranks, sizes or devices do not fit.
    """
    checks.check_kind("input", input, 4, input)
    if input.shape[1] < 1 or input.shape[2] < 1 or input.shape[3] < 1:
        raise ValueError(
            f"input must have at least one channel, row and column, got shape {tuple(input.shape)}"
        )
    bins = checks.pair("output_size", output_size, 1)
    return Common(_rows(input, boxes), _scale(spatial_scale), bins)


def _scale(value: float) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"spatial_scale must be a number, got {type(value).__name__}")
    return float(value)


def _rows(input: Tensor, boxes: Boxes) -> Tensor:
    """Boxes as rows (image, x1, y1, x2, y2), in a type that can name every pixel."""
    rows = boxes if isinstance(boxes, Tensor) else _joined(input, boxes)
    if not rows.is_floating_point():
        raise TypeError(f"boxes must have a floating type, got {rows.dtype}")
    if rows.device != input.device:
        raise ValueError(f"boxes must be on the input's device {input.device}, got {rows.device}")
    if rows.dim() != 2 or rows.shape[1] != 5:
        raise ValueError(
            "boxes must be [K, 5], rows of (image, x1, y1, x2, y2), or a list of [L, 4] for each "
            f"image, got shape {tuple(rows.shape)}"
        )
    return rows.detach().to(torch.promote_types(input.dtype, torch.float32))


def _joined(input: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    if not isinstance(boxes, list | tuple) or not all(isinstance(b, Tensor) for b in boxes):
        raise TypeError(
            f"boxes must be a tensor [K, 5] or a list of tensors, got {type(boxes).__name__}"
        )
    if len(boxes) != input.shape[0]:
        raise ValueError(
            f"a list of boxes must have a tensor for each of {input.shape[0]} images, "
            f"got {len(boxes)}"
        )
    for number, tensor in enumerate(boxes):
        if not tensor.is_floating_point():
            raise TypeError(f"boxes must have a floating type, got {tensor.dtype}")
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise ValueError(
                f"boxes of image {number} must be [L, 4], rows of (x1, y1, x2, y2), got shape "
                f"{tuple(tensor.shape)}"
            )
    if not boxes:
        return input.new_zeros((0, 5))
    # Numbered in a type that knows every whole number: bfloat16 ends at 256 images.
    dtype = torch.promote_types(boxes[0].dtype, torch.float32)
    images = [b.new_full((b.shape[0], 1), float(i), dtype=dtype) for i, b in enumerate(boxes)]
    return torch.cat([torch.cat(images), torch.cat(list(boxes)).to(dtype)], dim=1)


def check_group(input: Tensor, rows: int, columns: int) -> None:
    """Refuse channels that the position-sensitive groups do not divide."""
    if input.shape[1] % (rows * columns):
        raise ValueError(
            f"the input's channels must be a multiple of {rows} x {columns} = {rows * columns} "
            f"position-sensitive groups, got {input.shape[1]}"
        )


def check_ratio(value: int) -> int:
    """Return a sampling ratio, a whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"sampling_ratio must be a whole number, got {value!r}")
    return value
