"""What the public functions check alike: types, devices, ranks, pairs, shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from dcn_tvm.binding import DTYPES

_DTYPES = tuple(DTYPES)
Pair = int | tuple[int, int]


def check_kind(name: str, tensor: Tensor, rank: int, input: Tensor) -> None:
    """Type, device and rank of an argument, mostly relative to the input's."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    dtype, device = tensor.dtype, input.device
    if dtype not in _DTYPES:
        known = ", ".join(str(known).removeprefix("torch.") for known in _DTYPES)
        raise TypeError(f"{name} must have one of the floating types {known}, got {dtype}")
    if dtype != input.dtype and not _autocasts(dtype, input.dtype, device.type):
        raise TypeError(f"{name} must have the input's type {input.dtype}, got {dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on the input's device {device}, got {tensor.device}")
    if tensor.dim() != rank:
        raise ValueError(
            f"{name} must have {rank} dimensions, got {tensor.dim()}: {tuple(tensor.shape)}"
        )


def _autocasts(dtype: torch.dtype, other: torch.dtype, device_type: str) -> bool:
    """Whether autocast makes the two one; it leaves float64 alone."""
    return torch.is_autocast_enabled(device_type) and torch.float64 not in (dtype, other)


def pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Return two whole numbers of at least `least`; one stands for both."""
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or not (isinstance(pair[0], int) and isinstance(pair[1], int))
    ):
        raise TypeError(f"{name} must be a whole number or two of them, got {value!r}")
    if pair[0] < least or pair[1] < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return pair[0], pair[1]


def check_shape(name: str, tensor: Tensor, required: tuple[int, ...]) -> None:
    """Refuse any shape but the one required."""
    if tensor.shape != required:
        raise ValueError(f"{name} must have shape {required}, got {tuple(tensor.shape)}")
