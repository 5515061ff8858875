"""Position-sensitive RoI align on GPUs: see `roi`."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_tvm.schedules.gpu import roi
from tvm import tirx

from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.ps_roi_align import PSRoIAlignProblem
from dcn_tvm.te import ps_roi_align as te
from dcn_tvm.te.gpu import roi_graph as graph


def forward(
    problem: PSRoIAlignProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """A block takes bins of a box."""
    blocking = roi.forward_blocking(problem, target, knobs)
    return graph.forward(problem, blocking, te.rule, roi.manner(target))


def backward(
    problem: PSRoIAlignProblem, target: Gpu, knobs: Knobs, outputs: Sequence[str]
) -> tirx.PrimFunc:
    """A block takes bins of a box, or a thread owns a channel of an image."""
    blocking = roi.backward_blocking(problem, target, knobs, outputs)
    return graph.backward(problem, blocking, te.rule, roi.manner(target), outputs)
