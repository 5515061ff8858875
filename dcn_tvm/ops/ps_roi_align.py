"""Contract of position-sensitive RoI align: bilinear samples, each bin from its own maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dcn_tvm.ops.roi import Pair, RoIProblem, roi_op


@dataclass(frozen=True)
class PSRoIAlignProblem(RoIProblem):
    """Static facts of position-sensitive RoI align; a sampling ratio of 0 adapts to the bin."""

    op: ClassVar[str] = "ps_roi_align"

    sampling_ratio: int = 0

    @property
    def groups(self) -> Pair:
        """Every bin has a group of its own."""
        return self.output_size


OP = roi_op(PSRoIAlignProblem, "int sampling_ratio", lambda tensors, own: (max(own[0], 0),))
