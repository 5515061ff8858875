"""Deformable convolution on targets with threads, without tensor cores or atomics.

Pattern: gathers that feed a product. Strategy: a block samples a chunk of columns into shared
memory, where all its threads use them for a tile of outputs (te/gpu/deform_forward.py); the
gradient of the weight does the same with the rows as depth, split over blocks whose parts are added
up in order; that of the input keeps dcolumn in memory, and a thread walks over it for each channel
of an image. All sums have a fixed order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence

from dcn_tvm.schedules.gpu import products
from tvm import tirx

from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.te.gpu import deform_data, deform_forward, deform_weight
from dcn_tvm.te.gpu.product import Shape
from dcn_tvm.te.gpu.shared import Shared

WIDTHS = (32, 64)


def forward(
    problem: DeformConv2dProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """The output, a tile of rows and output channels by each block."""
    outs = problem.out_channels // problem.groups
    shape = products.thread_shape(
        *(target, knobs, (64, products.round_up(outs, WIDTHS)), forward_bytes(problem)),
        by_rows=problem.layout == "nchw",
        numbers=_numbers(problem),
    )
    blocks = products.blocks(target, knobs)
    knobs.finish()
    return deform_forward.forward(problem, shape, blocks)


def backward_data(
    problem: DeformConv2dProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """Gradients of input, offset and mask: a block has rows and one tap."""
    channels = products.round_up(problem.in_channels // problem.groups, WIDTHS)
    shape = products.thread_shape(
        *(target, knobs, (64, channels), data_bytes(problem, outputs)), numbers=_numbers(problem)
    )
    knobs.finish()
    manner = "owned" if target.kind != "cuda" else "fixed" if target.deterministic else "atomic"
    return deform_data.backward_data(problem, shape, manner, outputs)


def backward_weight(
    problem: DeformConv2dProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """Gradients of weight and bias: a block has a tile of one tap, and a part of the rows."""
    tile = tuple(
        products.round_up(c // problem.groups, WIDTHS)
        for c in (problem.in_channels, problem.out_channels)
    )
    shape = products.thread_shape(
        *(target, knobs, (tile[0], tile[1]), weight_bytes(problem)), numbers=_numbers(problem)
    )
    blocks = products.blocks(target, knobs)
    knobs.finish()
    return deform_weight.backward_weight(problem, shape, blocks, outputs)


def _numbers(problem: DeformConv2dProblem) -> int:
    """Of the result that a thread may own, beside what it samples."""
    return 16 if problem.accumulate == "float64" else 64


def _need(shared: Callable[..., Shared], *arguments: Hashable) -> Callable[[Shape], int]:
    """Bytes of shared memory that a shape needs."""
    return lambda shape: _bytes(shared, arguments, shape)


@functools.lru_cache(4096)  # a search asks for all shapes at each of its points
def _bytes(shared: Callable[..., Shared], arguments: tuple[Hashable, ...], shape: Shape) -> int:
    problem, *rest = arguments
    return int(shared(problem, shape, *rest).bytes)


def forward_bytes(problem: DeformConv2dProblem) -> Callable[[Shape], int]:
    """Shared memory that a shape needs in the forward."""
    return _need(deform_forward.shared, problem)


def weight_bytes(problem: DeformConv2dProblem) -> Callable[[Shape], int]:
    """Shared memory that a shape needs in the gradient of the weight."""
    return _need(deform_weight.shared, problem)


def data_bytes(problem: DeformConv2dProblem, outputs: Sequence[str]) -> Callable[[Shape], int]:
    """Shared memory that a shape needs in the gradients of input, offset and mask."""
    return _need(deform_data.shared, problem, tuple(outputs))
