"""Position-sensitive RoI align and its gradient: bilinear samples, each bin of its own channels.

y(c, i, j) = 1/n sum_s X(c k^2 + i k + j, p_s)
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te

from dcn_tvm.ops.ps_roi_align import PSRoIAlignProblem
from dcn_tvm.te import roi_graph
from dcn_tvm.te.roi import Frame, RoITiling, shifted_box
from dcn_tvm.te.roi_bins import Grid, Rule


def forward(problem: PSRoIAlignProblem, tiling: RoITiling) -> roi_graph.Graph:
    """The mean of the samples of each bin."""
    return roi_graph.forward(problem, tiling, rule)


def backward(
    problem: PSRoIAlignProblem, tiling: RoITiling, outputs: Sequence[str]
) -> roi_graph.Graph:
    """The gradient of the input."""
    return roi_graph.backward(problem, tiling, rule, outputs)


def rule(g: Frame, boxes: te.Tensor) -> Rule:
    """The unrounded box, whatever its size."""
    p = g.problem
    assert isinstance(p, PSRoIAlignProblem)
    return Grid(g, shifted_box(g, boxes, 0.5), count=p.sampling_ratio)
