"""Eager torch oracles: what every op means, differentiable by autograd, with no thought for speed.

They judge the kernels. Each is written with whole-tensor torch operations only, so that its
gradients come from autograd and not from the hand-derived formulas that it has to check.
"""

from dcn_tvm.reference.deform_conv2d import deform_conv2d

__all__ = ["deform_conv2d"]
