"""RoI pooling on CPUs: see `roi`."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_tvm.schedules.cpu import roi
from tvm import tirx

from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.roi_pool import RoIPoolProblem
from dcn_tvm.target import Target
from dcn_tvm.te import roi_pool as te


def forward(
    problem: RoIPoolProblem, target: Target, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """A worker pools boxes, or a block of channels of an image."""
    tiling = roi.forward_tiling(problem, target, knobs)
    return roi.schedule(te.forward(problem, tiling))


def backward(
    problem: RoIPoolProblem, target: Target, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """A worker owns a block of channels of an image."""
    tiling = roi.backward_tiling(problem, target, knobs)
    return roi.schedule(te.backward(problem, tiling, outputs))
