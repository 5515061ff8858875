"""Compiler-backed operators for PyTorch: deformable convolution that compiles itself here.

Importing the package imports neither TVM nor a schedule; the first call of an op does, and only if
its kernels are not in the disk cache.
"""

from dcn_tvm import nn, reference
from dcn_tvm.functional import deform_conv2d

__all__ = ["deform_conv2d", "nn", "reference"]
__version__ = "0.1.0"
