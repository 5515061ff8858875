"""Contract of deformable RoI pooling (paper, eq. 6): bins that move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dcn_tvm.ops.roi import RoIProblem, roi_op

SAMPLINGS = ("paper", "grid")


@dataclass(frozen=True)
class DeformRoIPoolProblem(RoIProblem):
    """Static facts of deformable RoI pooling.

    `sampling` "paper" moves every pixel of a bin; "grid" takes `sampling_ratio` samples along each
    side of it, 0 as many as it has pixels.
    """

    op: ClassVar[str] = "deform_roi_pool"
    deformable: ClassVar[bool] = True

    sampling: str = "paper"
    sampling_ratio: int = 0
    deformed: bool = True

    def __post_init__(self) -> None:
        """Refuse what no call can mean."""
        super().__post_init__()
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {SAMPLINGS}, got {self.sampling!r}")

    @property
    def moves(self) -> bool:
        """Whether offsets are given."""
        return self.deformed

    def absent(self) -> tuple[str, ...]:
        """The offset, if none is given."""
        return () if self.deformed else ("offset",)


OP = roi_op(
    DeformRoIPoolProblem,
    "int? sampling_ratio",
    lambda tensors, own: (
        "paper" if own[0] is None else "grid",
        max(own[0] or 0, 0),
        tensors[2] is not None,
    ),
)
