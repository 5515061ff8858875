"""RoI pooling and its gradient: y = max over the bin's pixels, or their mean (paper, eq. 5).

max   dx(p) = sum of dy of the bins whose first largest pixel is p
avg   dx(p) = sum of dy / n of the bins that p is in
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te

from dcn_tvm.ops.roi_pool import RoIPoolProblem
from dcn_tvm.te import roi_graph
from dcn_tvm.te.roi import Frame, RoITiling, rounded_box
from dcn_tvm.te.roi_bins import Pixels, Rule


def forward(problem: RoIPoolProblem, tiling: RoITiling) -> roi_graph.Graph:
    """The largest pixel of each bin, or the mean."""
    return roi_graph.forward(problem, tiling, rule, maximum=problem.mode == "max")


def backward(problem: RoIPoolProblem, tiling: RoITiling, outputs: Sequence[str]) -> roi_graph.Graph:
    """The gradient of the input; a maximum is looked for again, which is less than to keep it."""
    return roi_graph.backward(
        problem, tiling, rule, outputs, maximum=problem.mode == "max", needs_input=True
    )


def rule(g: Frame, boxes: te.Tensor) -> Rule:
    """Whole pixels, the box's last one inside."""
    return Pixels(g, rounded_box(g, boxes, 1))
