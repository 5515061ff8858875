"""Examples of the RoI ops.

Boxes are like proposals: sides log-uniform from 24 to 240 pixels of the image, centres uniform over
it, clipped. They begin at odd multiples of 1/64 pixel and end at odd multiples of 1/128, as are
their offsets (standard deviation 1): no corner lies on a half that has to be rounded, no side is a
whole number, of which the samples of an adaptive grid are counted, no moved sample lies where its
slope jumps, and there two right answers may differ. Boxes end two pixels of the map before its end:
beyond that torchvision's ps_roi_pool has a gradient that is not its forward's.

What is rounded first, as bins of whole pixels and R-FCN's corners, still divides where it may be
whole: a reference must do so in the type of the kernel's sums to see the same bins.

Half types leave boxes float32. In channels_last the input and the gradient from above have that
format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dcn_tvm import reference
from dcn_tvm.examples.contract import Draw, Example, Family, between_pixels, required
from dcn_tvm.ops.deform_ps_roi_pool import DeformPSRoIPoolProblem
from dcn_tvm.ops.roi import RoIProblem

SIDE_PIXELS = (24.0, 240.0)  # of the image
BORDER_PIXELS = 2  # of the map
BEGIN_UNIT, END_UNIT, OFFSET_UNIT = 1 / 64, 1 / 128, 1 / 128
GAMMA = 0.1
STRIDE = 16  # where none is given

SIZES = ("batch", "height", "width", "boxes", "stride")
# The reference reads the whole map for every box, roi_pool's maximum even for every bin.
JUDGED = {"batch": 2, "height": 24, "width": 24, "boxes": 4}

# By op: the schema's attributes after spatial_scale and output_size, in its order, under the names
# that the reference has for them.
OPTIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "roi_pool": lambda p: {"mode": p.mode},
    "roi_align": lambda p: {"sampling_ratio": p.sampling_ratio, "aligned": p.aligned},
    "ps_roi_pool": lambda p: {"convention": p.convention},
    "ps_roi_align": lambda p: {"sampling_ratio": p.sampling_ratio},
    "deform_roi_pool": lambda p: {
        "gamma": GAMMA,
        "sampling_ratio": None if p.sampling == "paper" else p.sampling_ratio,
    },
    "deform_ps_roi_pool": lambda p: {
        "gamma": GAMMA,
        "group_size": p.group_size,
        "part_size": p.part_size,
        "sample_per_part": p.sample_per_part,
        "sampling": p.sampling,
    },
}


def example(problem: RoIProblem, sizes: Mapping[str, int], seed: int) -> Example:
    """Return a call of a problem."""
    batch, height, width, count, stride = _sizes(sizes).values()
    draw = Draw(problem, seed)
    input = draw.normal("input", (batch, problem.channels, height, width))
    tensors: list[Tensor | None] = [draw.placed(input), boxes(problem, sizes, seed)]
    if problem.deformable:
        tensors.append(_offset(problem, count, draw) if problem.moves else None)
    options = OPTIONS[problem.op](problem)
    grids = problem.op == DeformPSRoIPoolProblem.op
    judge: Callable[..., Tensor] = _judge_grids if grids else getattr(reference, problem.op)

    def call(*tensors: Tensor | None) -> Tensor:
        return judge(*tensors, problem.output_size, 1 / stride, **options)

    attributes = (1 / stride, problem.output_size, *options.values())
    return Example(problem, tuple(tensors), attributes, call, seed)


def boxes(problem: RoIProblem, sizes: Mapping[str, int], seed: int = 0) -> Tensor:
    """Return boxes `[K, 5]`, rows (image, x1, y1, x2, y2) in pixels of the image."""
    batch, height, width, count, stride = _sizes(sizes).values()
    share, centre = Draw(problem, seed).uniform("boxes", (2, count, 2))
    pixels = (torch.tensor([width, height]) - BORDER_PIXELS).clamp(min=1)
    extent = (pixels * stride).to(centre.dtype)
    least, most = SIDE_PIXELS
    half = least * (most / least) ** share / 2
    begin, end = (
        torch.minimum((centre * extent + side * half).clamp(min=0), extent) for side in (-1, 1)
    )
    corners = (between_pixels(begin, BEGIN_UNIT), between_pixels(end, END_UNIT))
    image = (torch.arange(count) % batch)[:, None].to(centre.dtype)
    return torch.cat([image, *corners], 1)


def judged_sizes(problem: RoIProblem, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return sizes of at most four boxes on two maps of 24 x 24 pixels."""
    return {name: min(size, JUDGED.get(name, size)) for name, size in _sizes(sizes).items()}


FAMILY = Family(example, judged_sizes)


def _sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    return required({"stride": STRIDE, **sizes}, SIZES)


def _offset(problem: RoIProblem, count: int, draw: Draw) -> Tensor:
    moves = draw.normal("offset", (count, 2 * problem.classes, *problem.parts))
    dtype: torch.dtype = getattr(torch, problem.dtype)
    return between_pixels(moves, OFFSET_UNIT).to(dtype)


def _judge_grids(
    input: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    output_size: tuple[int, int],
    spatial_scale: float,
    *,
    group_size: tuple[int, int],
    part_size: tuple[int, int],
    **options: Any,
) -> Tensor:
    """Call a reference that knows square grids of groups and offsets only.

    Bin i of n has row `i g // n` of g. In a grid of m g rows, each repeated m times, it has row
    `i m g // n`, a repetition of the same, as `i m g // n // m == i g // n`.
    """
    groups, parts = math.lcm(*group_size), math.lcm(*part_size)
    maps = _repeated(input.unflatten(1, (-1, *group_size)), groups, 2).flatten(1, 3)
    moves = None if offset is None else _repeated(offset, parts, 2)
    options |= {"group_size": groups, "part_size": parts}
    return reference.deform_ps_roi_pool(maps, boxes, moves, output_size, spatial_scale, **options)


def _repeated(grid: Tensor, side: int, dim: int) -> Tensor:
    """Repeat rows and columns, the dimensions `dim` and `dim + 1`, to `side` of each."""
    for place in (dim, dim + 1):
        grid = grid.repeat_interleave(side // grid.shape[place], place)
    return grid
