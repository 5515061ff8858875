"""Contract of RoI pooling: the maximum, or the mean (paper, eq. 5), of each bin's pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dcn_tvm.ops.contract import Kernel
from dcn_tvm.ops.roi import RoIProblem, roi_op

MODES = ("max", "avg")


@dataclass(frozen=True)
class RoIPoolProblem(RoIProblem):
    """Static facts of RoI pooling."""

    op: ClassVar[str] = "roi_pool"

    mode: str = "max"

    def __post_init__(self) -> None:
        """Refuse what no call can mean."""
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {self.mode!r}")


def all_inputs(kernel: Kernel, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """All: a maximum is looked for again in the input. No kernel differs for a mean."""
    return kernel.inputs


OP = roi_op(RoIPoolProblem, "str mode", lambda tensors, own: tuple(own), needs=all_inputs)
