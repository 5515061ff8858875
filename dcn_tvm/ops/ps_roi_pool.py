"""Contract of position-sensitive RoI pooling (Dai et al., R-FCN, 2016): each bin its own maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dcn_tvm.ops.roi import Pair, RoIProblem, roi_op

CONVENTIONS = ("torchvision", "rfcn")


@dataclass(frozen=True)
class PSRoIPoolProblem(RoIProblem):
    """Static facts of position-sensitive RoI pooling."""

    op: ClassVar[str] = "ps_roi_pool"

    convention: str = "torchvision"

    def __post_init__(self) -> None:
        """Refuse what no call can mean."""
        super().__post_init__()
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {CONVENTIONS}, got {self.convention!r}")

    @property
    def groups(self) -> Pair:
        """Every bin has a group of its own."""
        return self.output_size


OP = roi_op(PSRoIPoolProblem, "str convention", lambda tensors, own: tuple(own))
