"""Deformable convolution: checks, defaults, and the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dcn_tvm import bridge  # defines torch.ops.dcn_tvm
from dcn_tvm.functional import checks
from dcn_tvm.ops.deform_conv2d import BOUNDARIES, OP

_shortcut = bridge.Shortcut(OP)
_Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: checks.Pair = 1,
    padding: checks.Pair = 0,
    dilation: checks.Pair = 1,
    mask: Tensor | None = None,
    *,
    boundary: str = "zeros",
) -> Tensor:
    """Convolve the input sampled at learned offsets: a drop-in for torchvision's function.

    `y[n,o,i,j] = bias[o] + sum_cab w[o,c,a,b] mask[n,g,a,b,i,j] X[n,c](p)` with X(p) the bilinear
    sample at the position `p = (i s - pad + a d + offset_y, j s - pad + b d + offset_x)`.

    Sums are at least float32, coordinates too. Differentiable once, in every tensor. A call gives
    bitwise the same result every time, with any number of threads; so does each image of a batch.

    Args:
        input: feature map `[N, C, H, W]`, float32, float64, float16 or bfloat16. The result has its
            memory format; channels_last is the fastest.
        offset: displacements in pixels `[N, 2*G*Kh*Kw, Ho, Wo]`, ordered (g, a, b, (y, x)). G, the
            number of offset groups, follows from its channels and must divide C.
        weight: `[O, C/groups, Kh, Kw]`; the number of groups follows from C.
        bias: `[O]`, or None.
        stride: step of the output grid in pixels, one number or (y, x).
        padding: pixels by which the grid starts outside the map.
        dilation: distance of neighbouring kernel points in pixels.
        mask: modulation (v2) `[N, G*Kh*Kw, Ho, Wo]`, or None for 1 (v1).
        boundary: "zeros": corners outside the map are 0 (the paper, torchvision); "msra": 0 unless
            0 <= y < H and 0 <= x < W, and the corner missing beyond the last row or column is that
            row or column again (released v1 code, MXNet). Infinite positions are outside; NaN
            gives NaN.

    Returns:
        `[N, O, Ho, Wo]` of the input's type, `Ho = (H + 2 pad - d (Kh - 1) - 1) // s + 1`.

    Raises:
        TypeError: an argument is no tensor, or their types differ or are not floating.
        ValueError: ranks, sizes, devices or options do not fit; the text says what was required.
        NotImplementedError: the tensors' device has no kernels, or a second derivative is asked.

    Source: Dai et al., Deformable Convolutional Networks (2017), eq. 2-4; v2: Zhu et al. (2019).

    Example:
        >>> x, offset = torch.ones(1, 1, 3, 3), torch.zeros(1, 2, 3, 3)
        >>> dcn_tvm.deform_conv2d(x, offset, torch.full((1, 1, 1, 1), 2.0)).sum().item()
        18.0
    """
    tensors, options = (input, offset, weight, bias, mask), (stride, padding, dilation, boundary)
    output = _shortcut(tensors, options)
    if output is None:
        attributes = _checked(tensors, options)
        output = torch.ops.dcn_tvm.deform_conv2d(*tensors, *attributes)
        _shortcut.learn(tensors, options, attributes, output)
    return output


def _checked(tensors: Sequence[Any], options: Sequence[Any]) -> tuple[Any, ...]:
    """The operator's attributes, if all arguments fit."""
    input, offset, weight, bias, mask = tensors
    stride, padding, dilation, boundary = options
    ranks = {"input": 4, "offset": 4, "weight": 4, "bias": 1, "mask": 4}
    for (name, rank), tensor in zip(ranks.items(), tensors, strict=True):
        if tensor is not None or name not in ("bias", "mask"):
            checks.check_kind(name, tensor, rank, input)
    geometry = (
        checks.pair("stride", stride, 1),
        checks.pair("padding", padding, 0),
        checks.pair("dilation", dilation, 1),
    )
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}")
    _check_sizes(input, offset, weight, bias, mask, geometry)
    return (*geometry, boundary)


def _check_sizes(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: _Geometry,
) -> None:
    """Every size follows from the shapes of input and weight and the number of offset groups."""
    (batch, channels, height, width), (filters, group_channels, kh, kw) = input.shape, weight.shape
    if height < 1 or width < 1:
        raise ValueError(f"input must have at least one row and column, got {tuple(input.shape)}")
    if filters < 1 or group_channels < 1 or kh < 1 or kw < 1:
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")
    _check_groups(channels, filters, group_channels)
    size = OP.shape((input, offset, weight, bias, mask), geometry)[2:]
    if size[0] < 1 or size[1] < 1:
        raise ValueError(
            f"the output must have at least one row and column, got {size[0]} x {size[1]} from an "
            f"input of {height} x {width} and a kernel of {kh} x {kw}"
        )
    taps = kh * kw
    offset_groups = offset.shape[1] // (2 * taps)
    if offset.shape[1] % (2 * taps) or offset_groups < 1 or channels % offset_groups:
        raise ValueError(
            f"the offset's channels must be 2*{kh}*{kw} = {2 * taps} for each offset group, the "
            f"groups dividing the input's {channels} channels, got {offset.shape[1]} channels"
        )
    checks.check_shape("offset", offset, (batch, 2 * taps * offset_groups, *size))
    if mask is not None:
        checks.check_shape("mask", mask, (batch, taps * offset_groups, *size))
    if bias is not None:
        checks.check_shape("bias", bias, (filters,))


def _check_groups(channels: int, filters: int, group_channels: int) -> None:
    if channels < 1 or channels % group_channels:
        raise ValueError(
            f"the input's channels must be a multiple of the weight's {group_channels}, "
            f"got {channels}"
        )
    groups = channels // group_channels
    if filters % groups:
        raise ValueError(
            f"the weight's filters must be a multiple of {groups} groups "
            f"({channels} channels / {group_channels}), got {filters}"
        )
