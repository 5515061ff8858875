"""Contracts: what every op takes, gives and is called; the one list of the ops there are."""

from dcn_tvm.ops import (
    deform_conv2d,
    deform_ps_roi_pool,
    deform_roi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
)
from dcn_tvm.ops.contract import Kernel, Op, Tensor

__all__ = ["Kernel", "Op", "Tensor", "registry"]

_OPS = (
    deform_conv2d.OP,
    roi_pool.OP,
    roi_align.OP,
    ps_roi_pool.OP,
    ps_roi_align.OP,
    deform_roi_pool.OP,
    deform_ps_roi_pool.OP,
)


def registry() -> dict[str, Op]:
    """Every op by its name."""
    return {op.name: op for op in _OPS}
