"""Contract of deformable position-sensitive RoI pooling (paper, section 2.2; released code)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dcn_tvm.ops.roi import Pair, RoIProblem, roi_op

SAMPLINGS = ("grid", "paper")


@dataclass(frozen=True)
class DeformPSRoIPoolProblem(RoIProblem):
    """Static facts of deformable position-sensitive RoI pooling.

    `sampling` "grid" takes `sample_per_part` samples along each side of a bin, from its edge, as
    the released code; "paper" moves every pixel of a bin.
    """

    op: ClassVar[str] = "deform_ps_roi_pool"
    deformable: ClassVar[bool] = True

    group_size: Pair = (7, 7)
    part_size: Pair = (7, 7)
    offset_classes: int = 1
    sample_per_part: int = 4
    sampling: str = "grid"
    deformed: bool = True

    def __post_init__(self) -> None:
        """Refuse what no call can mean."""
        for name in ("group_size", "part_size"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("offset_classes", "sample_per_part"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {SAMPLINGS}, got {self.sampling!r}")
        super().__post_init__()

    @property
    def groups(self) -> Pair:
        """The grid of groups, which need not be that of the bins."""
        return self.group_size

    @property
    def classes(self) -> int:
        """Runs of output channels with offsets of their own."""
        return self.offset_classes

    @property
    def parts(self) -> Pair:
        """The grid of offsets, which need not be that of the bins."""
        return self.part_size

    @property
    def moves(self) -> bool:
        """Whether offsets are given."""
        return self.deformed

    def absent(self) -> tuple[str, ...]:
        """The offset, if none is given."""
        return () if self.deformed else ("offset",)


def facts(tensors: Sequence[Any], own: Sequence[Any]) -> tuple[Any, ...]:
    """The problem's own fields; without offsets, parts and classes mean nothing."""
    group_size, part_size, sample_per_part, sampling = own
    offset = tensors[2]
    classes = 1 if offset is None else offset.shape[1] // 2
    parts = tuple(group_size if offset is None else part_size)
    samples = 1 if sampling == "paper" else sample_per_part
    return (tuple(group_size), parts, classes, samples, sampling, offset is not None)


OP = roi_op(
    DeformPSRoIPoolProblem,
    "int[2] group_size, int[2] part_size, int sample_per_part, str sampling",
    facts,
)
