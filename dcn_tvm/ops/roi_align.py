"""Contract of RoI align: the mean of bilinear samples on a grid in each bin (He et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dcn_tvm.ops.roi import RoIProblem, roi_op


@dataclass(frozen=True)
class RoIAlignProblem(RoIProblem):
    """Static facts of RoI align; a sampling ratio of 0 adapts to the size of the bin."""

    op: ClassVar[str] = "roi_align"

    sampling_ratio: int = 0
    aligned: bool = False


OP = roi_op(
    RoIAlignProblem,
    "int sampling_ratio, bool aligned",
    lambda tensors, own: (max(own[0], 0), own[1]),
)
