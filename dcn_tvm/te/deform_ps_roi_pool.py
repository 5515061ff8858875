"""Deformable position-sensitive RoI pooling and its gradients: moved bins, each its own channels.

y(c, i, j) = 1/n sum_s X(c G^2 + g(i, j), p_s + D),  D = gamma offset(class, part) (h, w)
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te

from dcn_tvm.ops.deform_ps_roi_pool import DeformPSRoIPoolProblem
from dcn_tvm.te import roi_graph
from dcn_tvm.te.roi import Frame, RoITiling, released_box, rounded_box
from dcn_tvm.te.roi_bins import Grid, MovedPixels, Pixels, Rule


def forward(problem: DeformPSRoIPoolProblem, tiling: RoITiling) -> roi_graph.Graph:
    """The mean of each moved bin."""
    return roi_graph.forward(problem, tiling, rule)


def backward(
    problem: DeformPSRoIPoolProblem, tiling: RoITiling, outputs: Sequence[str]
) -> roi_graph.Graph:
    """The gradients of input and offset."""
    return roi_graph.backward(problem, tiling, rule, outputs)


def rule(g: Frame, boxes: te.Tensor) -> Rule:
    """The released code's samples, from the edge of each part; or the paper's, eq. 6."""
    p = g.problem
    assert isinstance(p, DeformPSRoIPoolProblem)
    if p.sampling == "grid":
        box = released_box(g, boxes, 0.5)
        return Grid(g, box, count=p.sample_per_part, phase=0.0, reach=(0.5, 0.5), counted=True)
    return (MovedPixels if p.moves else Pixels)(g, rounded_box(g, boxes, 1))
