"""Examples of deformable convolution.

Offsets are normal with a standard deviation of 1.5 pixels, rounded to odd multiples of 1/128
pixel: at an integer the slope jumps, and there two right answers may differ. (bfloat16 rounds those
beyond 2 pixels again.) Masks are uniform between 0 and 1, filters keep the data's variance. In
channels_last all 4-D tensors have that format, as after `model.to(memory_format=...)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from dcn_tvm import reference
from dcn_tvm.examples.contract import Draw, Example, Family, between_pixels, required
from dcn_tvm.ops.deform_conv2d import OP, DeformConv2dProblem

OFFSET_STD_PIXELS = 1.5
OFFSET_UNIT = 1 / 128

SIZES = ("batch", "height", "width")
JUDGED_BATCH = 2
# Odd, so that tiles are ragged at the end of a row, and not square, so that axes are told apart.
JUDGED_OUTPUT = (13, 11)


def example(problem: DeformConv2dProblem, sizes: Mapping[str, int], seed: int) -> Example:
    """Return a call of a problem."""
    batch, height, width = required(sizes, SIZES).values()
    draw = Draw(problem, seed)
    taps = math.prod(problem.kernel_size)
    channels = problem.in_channels // problem.groups
    input = draw.normal("input", (batch, problem.in_channels, height, width))
    weight = draw.normal(
        "weight",
        (problem.out_channels, channels, *problem.kernel_size),
        1 / math.sqrt(channels * taps),
    )
    attributes = (problem.stride, problem.padding, problem.dilation, problem.boundary)
    rows, columns = OP.shape((input, None, weight), attributes)[2:]
    if min(rows, columns) < 1:
        raise ValueError(
            f"the output must have at least one row and column, got {rows} x {columns} from a "
            f"height and width of {height} x {width}"
        )
    points = problem.offset_groups * taps
    moves = draw.normal("offset", (batch, 2 * points, rows, columns), OFFSET_STD_PIXELS)
    tensors = {
        "input": input,
        "offset": between_pixels(moves, OFFSET_UNIT),
        "weight": weight,
        "bias": draw.normal("bias", (problem.out_channels,)) if problem.bias else None,
        "mask": draw.uniform("mask", (batch, points, rows, columns)) if problem.modulated else None,
    }
    placed = tuple(None if t is None else draw.placed(t) for t in tensors.values())

    def call(
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        geometry = (problem.stride, problem.padding, problem.dilation)
        return reference.deform_conv2d(
            input, offset, weight, bias, *geometry, mask, boundary=problem.boundary
        )

    return Example(problem, placed, attributes, call, seed)


def judged_sizes(problem: DeformConv2dProblem, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return sizes of which the output has at most 2 images of 13 x 11 pixels, and one at least."""
    given = required(sizes, SIZES)
    judged = {"batch": min(given["batch"], JUDGED_BATCH)}
    for axis, name in enumerate(SIZES[1:]):
        window = problem.dilation[axis] * (problem.kernel_size[axis] - 1) + 1
        least = max(window - 2 * problem.padding[axis], 1)
        pixels = (JUDGED_OUTPUT[axis] - 1) * problem.stride[axis] + least
        judged[name] = max(min(given[name], pixels), least)
    return judged


FAMILY = Family(example, judged_sizes)
