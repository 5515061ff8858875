"""Calls of torchvision's ops, and what they answer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d, ps_roi_align, ps_roi_pool, roi_align, roi_pool

BOXES = torch.tensor(
    [[1, 1.0, 2, 30, 21], [0, 9.5, 0, 24, 36], [1, 20, 11, 23, 13], [0, -9, 3, 18, 30]]
)
SCALE = 0.25


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def convolution(
    dtype: torch.dtype = torch.float32, modulated: bool = True, **options: Any
) -> tuple[Callable[..., Any], list[Tensor]]:
    tensors = [
        maps(2, 4, 9, 8, dtype=dtype),
        maps(2, 36, 9, 8, dtype=dtype),
        maps(6, 4 // options.pop("groups", 1), 3, 3, dtype=dtype),
        maps(6, dtype=dtype),
    ]
    if modulated:
        tensors.append(maps(2, 18, 9, 8, dtype=dtype))

    def call(x: Tensor, offset: Tensor, w: Tensor, bias: Tensor, mask: Any = None) -> Tensor:
        return deform_conv2d(x, offset, w, bias, padding=1, mask=mask)

    return call, tensors


def pooling(
    function: Callable[..., Tensor], size: Any, *more: Any, dtype: Any = torch.float32
) -> Any:
    def call(x: Tensor) -> Tensor:
        return function(x, BOXES.to(dtype), size, SCALE, *more)

    return call, [maps(2, 12, 10, 11, dtype=dtype)]


CALLS: dict[str, Callable[[], tuple[Callable[..., Any], list[Tensor]]]] = {
    "deform_conv2d": convolution,
    "deform_conv2d_v1_groups": lambda: convolution(modulated=False, groups=2),
    "deform_conv2d_float64": lambda: convolution(torch.float64),
    "roi_pool": lambda: pooling(roi_pool, (2, 3)),
    "roi_align": lambda: pooling(roi_align, (2, 3), 2, True),
    "roi_align_adaptive": lambda: pooling(roi_align, 2),
    "roi_align_float64": lambda: pooling(roi_align, 2, dtype=torch.float64),
    "ps_roi_pool": lambda: pooling(ps_roi_pool, 2),
    "ps_roi_align": lambda: pooling(ps_roi_align, (2, 3), 2),
    "ps_roi_align_adaptive": lambda: pooling(ps_roi_align, 2, -1),
}


def answers(call: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The result and the gradients of all tensors."""
    result = call(*tensors)
    weight = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result, *torch.autograd.grad((result * weight).sum(), tensors)]


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        tolerance = 1e-9 if other.dtype == torch.float64 else 3e-5
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
        assert one.stride() == other.stride()
