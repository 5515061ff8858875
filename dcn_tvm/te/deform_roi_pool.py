"""Deformable RoI pooling and its gradients (paper, eq. 6 and appendix A): bins move by D.

y = 1/n sum_p X(p + D),  D = gamma offset (h, w)
dx(q) = sum over bins of dy / n sum_p k(q, p + D);   d offset = gamma (h, w) dy / n sum_p dX/dp
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te

from dcn_tvm.ops.deform_roi_pool import DeformRoIPoolProblem
from dcn_tvm.te import roi_graph
from dcn_tvm.te.roi import Frame, RoITiling, rounded_box, shifted_box
from dcn_tvm.te.roi_bins import Grid, MovedPixels, Pixels, Rule


def forward(problem: DeformRoIPoolProblem, tiling: RoITiling) -> roi_graph.Graph:
    """The mean of each moved bin."""
    return roi_graph.forward(problem, tiling, rule)


def backward(
    problem: DeformRoIPoolProblem, tiling: RoITiling, outputs: Sequence[str]
) -> roi_graph.Graph:
    """The gradients of input and offset."""
    return roi_graph.backward(problem, tiling, rule, outputs)


def rule(g: Frame, boxes: te.Tensor) -> Rule:
    """The paper's bins of whole pixels, or a grid of samples in the unrounded box, as mmcv."""
    p = g.problem
    assert isinstance(p, DeformRoIPoolProblem)
    if p.sampling == "grid":
        return Grid(g, shifted_box(g, boxes, 0.5), count=p.sampling_ratio)
    return (MovedPixels if p.moves else Pixels)(g, rounded_box(g, boxes, 1))
