"""Contracts: what every op takes, gives and is called; the one list of the ops there are."""

from dcn_tvm.ops import deform_conv2d
from dcn_tvm.ops.contract import Kernel, Op, Tensor

__all__ = ["Kernel", "Op", "Tensor", "registry"]

_OPS = (deform_conv2d.OP,)


def registry() -> dict[str, Op]:
    """Every op by its name."""
    return {op.name: op for op in _OPS}
