"""Compiler-backed operators for PyTorch: deformable convolution and RoI pooling, compiled here.

Importing the package imports neither TVM nor a schedule; the first call of an op does, and only if
its kernels are not in the disk cache.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dcn_tvm import compat, nn, reference
from dcn_tvm.bundles import load as load_bundle
from dcn_tvm.functional import (
    deform_conv2d,
    deform_ps_roi_pool,
    deform_roi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
)
from dcn_tvm.nn.conversion import convert
from dcn_tvm.workload import record_problems

if TYPE_CHECKING:
    from dcn_tvm import analysis, models, viz
    from dcn_tvm.tuning.session import tune

__all__ = [
    "analysis",
    "compat",
    "convert",
    "deform_conv2d",
    "deform_ps_roi_pool",
    "deform_roi_pool",
    "load_bundle",
    "models",
    "nn",
    "ps_roi_align",
    "ps_roi_pool",
    "record_problems",
    "reference",
    "roi_align",
    "roi_pool",
    "tune",
    "viz",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import where it is first named what needs TVM or torchvision, or is seldom needed."""
    if name == "tune":
        from dcn_tvm.tuning.session import tune

        return tune
    if name in ("analysis", "models", "viz"):
        return importlib.import_module(f"dcn_tvm.{name}")
    raise AttributeError(f"module 'dcn_tvm' has no attribute {name!r}")
