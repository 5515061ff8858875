"""The public functions: what they compute, what they refuse, what their defaults are."""

from __future__ import annotations

import torch
from torch import Tensor

from dcn_tvm import bridge  # defines torch.ops.dcn_tvm
from dcn_tvm.ops.deform_conv2d import BOUNDARIES, OP

__all__ = ["deform_conv2d"]

_DTYPES = tuple(bridge.DTYPES)
_Pair = int | tuple[int, int]


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    mask: Tensor | None = None,
    *,
    boundary: str = "zeros",
) -> Tensor:
    """Convolve the input sampled at learned offsets: a drop-in for torchvision's function.

    `y[n,o,i,j] = bias[o] + sum_cab w[o,c,a,b] mask[n,g,a,b,i,j] X[n,c](p)` with the position
    `p = (i s - pad + a d + offset_y, j s - pad + b d + offset_x)` and X(p) the bilinear sample at p.

    Sums are at least float32, coordinates too. Differentiable once, in every tensor. A call gives
    bitwise the same result every time, with any number of threads; so does each image of a batch.

    Args:
        input: feature map `[N, C, H, W]`, float32, float64, float16 or bfloat16. The result has its
            memory format; channels_last is the fastest.
        offset: displacements in pixels `[N, 2*G*Kh*Kw, Ho, Wo]`, channels ordered (g, a, b, (y, x)).
            G, the number of offset groups, follows from its channels and must divide C.
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
    tensors = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    _check_kind(tensors)
    options = {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}
    geometry = [_pair(name, value, least) for name, (value, least) in options.items()]
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}")
    _check_sizes(input, offset, weight, bias, mask, geometry)
    result: Tensor = torch.ops.dcn_tvm.deform_conv2d(
        input, offset, weight, bias, mask, *geometry, boundary
    )
    return result


def _check_kind(tensors: dict[str, Tensor | None]) -> None:
    """Types, devices and ranks; every tensor but a bias has four dimensions."""
    first = tensors["input"]
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        assert first is not None
        if tensor.dtype not in _DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise TypeError(f"{name} must have one of the floating types {known}, got {tensor.dtype}")
        if tensor.dtype != first.dtype and not torch.is_autocast_enabled(tensor.device.type):
            raise TypeError(f"{name} must have the input's type {first.dtype}, got {tensor.dtype}")
        if tensor.device != first.device:
            raise ValueError(f"{name} must be on the input's device {first.device}, got {tensor.device}")
        rank = 1 if name == "bias" else 4
        if tensor.dim() != rank:
            raise ValueError(
                f"{name} must have {rank} dimensions, got {tensor.dim()}: {tuple(tensor.shape)}"
            )


def _pair(name: str, value: _Pair, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or not all(isinstance(number, int) for number in pair)
    ):
        raise TypeError(f"{name} must be a whole number or two of them, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return pair[0], pair[1]


def _check_sizes(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: list[tuple[int, int]],
) -> None:
    channels, (out_channels, group_channels, kh, kw) = input.shape[1], weight.shape
    if min(out_channels, group_channels, kh, kw) < 1:
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")
    if channels < 1 or channels % group_channels:
        raise ValueError(
            f"the input's channels must be a multiple of the weight's {group_channels}, got {channels}"
        )
    groups = channels // group_channels
    if out_channels % groups:
        raise ValueError(
            f"the weight's filters must be a multiple of {groups} groups "
            f"({channels} channels / {group_channels}), got {out_channels}"
        )
    offset_groups = offset.shape[1] // (2 * kh * kw)
    if offset.shape[1] % (2 * kh * kw) or offset_groups < 1 or channels % offset_groups:
        raise ValueError(
            f"the offset's channels must be 2*{kh}*{kw} = {2 * kh * kw} for each offset group, the "
            f"groups dividing the input's {channels} channels, got {offset.shape[1]} channels"
            f" ({offset_groups} groups)"
        )
    size = _output_size(input, weight, geometry)
    expected = {"offset": (offset, 2 * kh * kw * offset_groups)}
    if mask is not None:
        expected["mask"] = (mask, kh * kw * offset_groups)
    for name, (tensor, wanted) in expected.items():
        required = (input.shape[0], wanted, *size)
        if tensor.shape != required:
            raise ValueError(f"{name} must have shape {required}, got {tuple(tensor.shape)}")
    if bias is not None and bias.shape[0] != out_channels:
        raise ValueError(f"bias must have shape ({out_channels},), got {tuple(bias.shape)}")


def _output_size(
    input: Tensor, weight: Tensor, geometry: list[tuple[int, int]]
) -> tuple[int, int]:
    shape = OP.shape((input, None, weight, None, None), geometry)
    if shape[2] < 1 or shape[3] < 1:
        raise ValueError(
            f"the output must have at least one row and column, got {shape[2]} x {shape[3]} from an "
            f"input of {input.shape[2]} x {input.shape[3]} and a kernel of {weight.shape[2]} x "
            f"{weight.shape[3]}"
        )
    return shape[2], shape[3]
