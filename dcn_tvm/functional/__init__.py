"""The public functions: what they compute, what they refuse, what their defaults are."""

from dcn_tvm.functional.deform_conv2d import deform_conv2d
from dcn_tvm.functional.deform_roi import deform_ps_roi_pool, deform_roi_pool
from dcn_tvm.functional.roi import ps_roi_align, ps_roi_pool, roi_align, roi_pool

__all__ = [
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
]
