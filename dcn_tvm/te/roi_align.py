"""RoI align and its gradient: the mean of bilinear samples on a grid in each bin.

y = 1/n sum_s X(p_s)        dx(q) = sum over bins of dy / n sum_s k(q, p_s)
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te

from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.te import roi_graph
from dcn_tvm.te.roi import Frame, RoITiling, shifted_box
from dcn_tvm.te.roi_bins import Grid, Rule


def forward(problem: RoIAlignProblem, tiling: RoITiling) -> roi_graph.Graph:
    """The mean of the samples of each bin."""
    return roi_graph.forward(problem, tiling, rule)


def backward(
    problem: RoIAlignProblem, tiling: RoITiling, outputs: Sequence[str]
) -> roi_graph.Graph:
    """The gradient of the input."""
    return roi_graph.backward(problem, tiling, rule, outputs)


def rule(g: Frame, boxes: te.Tensor) -> Rule:
    """The unrounded box; without `aligned` half a pixel off and at least one pixel long."""
    p = g.problem
    assert isinstance(p, RoIAlignProblem)
    box = shifted_box(g, boxes, 0.5 if p.aligned else 0.0, None if p.aligned else 1.0)
    return Grid(g, box, count=p.sampling_ratio)
