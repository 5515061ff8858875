"""Position-sensitive RoI pooling and its gradient: bin (i, j) is the mean over its own channels.

y(c, i, j) = 1/n sum_p x(c k^2 + i k + j, p)
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te

from dcn_tvm.ops.ps_roi_pool import PSRoIPoolProblem
from dcn_tvm.te import roi_graph
from dcn_tvm.te.roi import Frame, RoITiling, released_box, rounded_box
from dcn_tvm.te.roi_bins import Pixels, Rule


def forward(problem: PSRoIPoolProblem, tiling: RoITiling) -> roi_graph.Graph:
    """The mean of the pixels of each bin."""
    return roi_graph.forward(problem, tiling, rule)


def backward(
    problem: PSRoIPoolProblem, tiling: RoITiling, outputs: Sequence[str]
) -> roi_graph.Graph:
    """The gradient of the input."""
    return roi_graph.backward(problem, tiling, rule, outputs)


def rule(g: Frame, boxes: te.Tensor) -> Rule:
    """Rounded boxes without their last pixel, or the released code's with float bins."""
    p = g.problem
    assert isinstance(p, PSRoIPoolProblem)
    if p.convention == "torchvision":
        return Pixels(g, rounded_box(g, boxes, 0), limit=1)
    return Pixels(g, released_box(g, boxes, 0.0), whole=False)
