"""Deformable position-sensitive RoI pooling on GPUs: see `roi`."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_tvm.schedules.gpu import roi
from tvm import tirx

from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.deform_ps_roi_pool import DeformPSRoIPoolProblem
from dcn_tvm.te import deform_ps_roi_pool as te
from dcn_tvm.te.gpu import roi_graph as graph


def forward(
    problem: DeformPSRoIPoolProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """A block takes bins of a box."""
    blocking = roi.forward_blocking(problem, target, knobs)
    return graph.forward(problem, blocking, te.rule, roi.manner(target))


def backward(
    problem: DeformPSRoIPoolProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """A block takes bins of a box, or a thread owns a channel of an image."""
    blocking = roi.backward_blocking(problem, target, knobs, outputs)
    return graph.backward(problem, blocking, te.rule, roi.manner(target), outputs)
