"""Eager torch oracles: what every op means, differentiable by autograd, with no thought for speed.

They judge the kernels. Each is written with whole-tensor torch operations only, so that its
gradients come from autograd and not from the hand-derived formulas that it has to check.
"""

from dcn_tvm.reference.deform_conv2d import deform_conv2d
from dcn_tvm.reference.deform_ps_roi_pool import deform_ps_roi_pool
from dcn_tvm.reference.deform_roi_pool import deform_roi_pool
from dcn_tvm.reference.ps_roi_align import ps_roi_align
from dcn_tvm.reference.ps_roi_pool import ps_roi_pool
from dcn_tvm.reference.roi_align import roi_align
from dcn_tvm.reference.roi_pool import roi_pool

__all__ = [
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
]
