"""Compiler-backed operators for PyTorch: deformable convolution and RoI pooling, compiled here.

Importing the package imports neither TVM nor a schedule; the first call of an op does, and only if
its kernels are not in the disk cache.
"""

from dcn_tvm import nn, reference
from dcn_tvm.functional import (
    deform_conv2d,
    deform_ps_roi_pool,
    deform_roi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
)

__all__ = [
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "nn",
    "ps_roi_align",
    "ps_roi_pool",
    "reference",
    "roi_align",
    "roi_pool",
]
__version__ = "0.1.0"
