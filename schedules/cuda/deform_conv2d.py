"""Deformable convolution on CUDA: tensor cores, and atomics for the gradient of the input.

Pattern: gathers that feed a product (paper, eq. 2): 2 * rows * taps * C * O operations, and for
each number of a column four reads, which neighbouring rows and taps mostly find in the first cache.
Strategy: (1) `mma.sync` on a tile in shared memory, whose columns are sampled in place, 8 half
channels a read, while the tensor cores are busy with the tile before; the weight comes by
asynchronous copies; (2) where a map has few tiles, its taps (in the weight's gradient: its rows)
are split over blocks; (3) the input's gradient meets in vector reductions of four floats, or in
64-bit whole numbers where the same bits are asked for in every run; (4) float32 without TF32 and
float64 take the tiles of schedules/gpu. Left out: `wgmma` and the bulk copy engine (sm_90a only):
the columns would have to be written in its swizzled layout.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcn_tvm.schedules.gpu import deform_conv2d as gpu
from dcn_tvm.schedules.gpu import products
from tvm import tirx

from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.te.gpu import deform_data, deform_forward, deform_weight
from dcn_tvm.te.gpu.mma import KINDS

TENSOR_CORES = 80  # capability from which they take these products
WIDTHS = (32, 64, 128)
NARROW = 16  # channels of a group, below which tensor cores would mostly multiply padding


def forward(
    problem: DeformConv2dProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """The output, a tile of rows and output channels by each block."""
    tensor = _tensor(problem, target)
    if not tensor:
        return gpu.forward(problem, target, knobs, outputs)
    # as wide as there are outputs: each panel of them samples its columns anew
    wide = products.round_up(problem.out_channels // problem.groups, (*WIDTHS, 256))
    shape = products.warp_shape(
        *(target, knobs, tensor, (64, wide), gpu.forward_bytes(problem)),
        by_rows=problem.layout == "nchw",
    )
    blocks = products.blocks(target, knobs)
    knobs.finish()
    return deform_forward.forward(problem, shape, blocks)


def backward_data(
    problem: DeformConv2dProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """Gradients of input, offset and mask: a block has rows and one tap."""
    tensor = _tensor(problem, target)
    if not tensor:
        return gpu.backward_data(problem, target, knobs, outputs)
    wide = products.round_up(problem.in_channels // problem.groups, WIDTHS)
    shape = products.warp_shape(target, knobs, tensor, (64, wide), gpu.data_bytes(problem, outputs))
    knobs.finish()
    manner = "fixed" if target.deterministic else "atomic"
    return deform_data.backward_data(problem, shape, manner, outputs)


def backward_weight(
    problem: DeformConv2dProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """Gradients of weight and bias: a block has a tile of one tap, and a part of the rows."""
    tensor = _tensor(problem, target)
    if not tensor:
        return gpu.backward_weight(problem, target, knobs, outputs)
    tile = [
        products.round_up(c // problem.groups, WIDTHS)
        for c in (problem.in_channels, problem.out_channels)
    ]
    shape = products.warp_shape(
        target, knobs, tensor, (min(tile[0], 64), tile[1]), gpu.weight_bytes(problem)
    )
    blocks = products.blocks(target, knobs)
    knobs.finish()
    return deform_weight.backward_weight(problem, shape, blocks, outputs)


def _tensor(problem: DeformConv2dProblem, target: Gpu) -> str:
    """Which products the tensor cores take; "" for none."""
    narrow = min(problem.in_channels, problem.out_channels) // problem.groups < NARROW
    if (
        target.capability < TENSOR_CORES
        or narrow
        or (problem.dtype == "float32" and not target.tf32)
    ):
        return ""
    return KINDS.get(problem.dtype, "")
