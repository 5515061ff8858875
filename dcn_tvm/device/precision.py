"""Precisions: dtypes, and TF32, which is a manner of float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dcn_tvm.agreement import TOLERANCES

PRECISIONS = ("float32", "tf32", "float64", "float16", "bfloat16")


def dtype_of(precision: str) -> str:
    """Return the tensors' dtype."""
    return "float32" if precision == "tf32" else precision


def tolerance(precision: str) -> float:
    """Return the relative error that a right answer stays below.

    TF32 keeps as many digits of a factor as float16.
    """
    return TOLERANCES["float16" if precision == "tf32" else precision]


@contextmanager
def allowed(precision: str) -> Iterator[None]:
    """Let torch, and so our kernels, round products of float32 to TF32 only where it is asked."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
