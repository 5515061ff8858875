"""Deformable convolution (v1 and v2) as whole-tensor torch operations.

Source: Dai et al., Deformable Convolutional Networks, eq. 2-4; Zhu et al., Deformable ConvNets v2,
eq. 1.

Pattern: positions -> four gathered corners -> bilinear columns -> one einsum with the weight. The
column tensor is materialised, which no kernel of ours does; here clarity is worth the memory.
"""

import torch
from torch import Tensor

BOUNDARIES = ("zeros", "msra")


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
    *,
    boundary: str = "zeros",
) -> Tensor:
    """Sum `weight * mask * X(p)` over the kernel; X samples the input at the moved positions p.

    `y[n,o,i,j] = bias[o] + sum_cab w[o,c,a,b] mask[n,g,a,b,i,j] X[n,c](i s - p + a d + offset)`.
    Half types are computed in float32 and rounded once; float32 and float64 in their own precision.
    A NaN coordinate makes the sample and both slopes NaN but touches no pixel of the gradient for
    the input; any other position outside the map, infinite ones included, gives 0 and slope 0.

    Args:
        input: feature map `[N, C, H, W]`, any floating dtype.
        offset: displacements in pixels `[N, 2*G*Kh*Kw, Ho, Wo]`, ordered (g, a, b, (y, x)).
        weight: `[O, C/groups, Kh, Kw]`; the number of groups follows from C.
        bias: `[O]` or None.
        stride: step of the output grid in pixels, one number or (y, x).
        padding: pixels by which the grid starts outside the map.
        dilation: distance of the kernel's points in pixels.
        mask: modulation `[N, G*Kh*Kw, Ho, Wo]` or None for 1 (v1).
        boundary: "zeros" (missing corners are 0) or "msra" (0 outside [0, H) x [0, W), and the
            missing corner beyond the last row or column is that row or column again).

    Returns:
        `[N, O, Ho, Wo]` in the input's dtype.

    Raises:
        ValueError: the boundary is unknown.

    Example:
        >>> x, offset = torch.ones(1, 1, 3, 3), torch.zeros(1, 2, 3, 3)
        >>> deform_conv2d(x, offset, torch.full((1, 1, 1, 1), 2.0)).sum().item()
        18.0
    """
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}")
    compute_dtype = torch.promote_types(input.dtype, torch.float32)
    columns = _columns(
        input.to(compute_dtype),
        offset.to(compute_dtype),
        None if mask is None else mask.to(compute_dtype),
        (weight.shape[2], weight.shape[3]),
        (_pair(stride), _pair(padding), _pair(dilation)),
        boundary,
    )
    output = _contract(columns, weight.to(compute_dtype))
    if bias is not None:
        output = output + bias.to(compute_dtype)[:, None, None]
    return output.to(input.dtype)


def _columns(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    kernel: tuple[int, int],
    grid: tuple[tuple[int, int], ...],
    boundary: str,
) -> Tensor:
    """Return the sampled and modulated values `[N, C, K, Ho, Wo]`."""
    batch, channels, height, width = input.shape
    points = kernel[0] * kernel[1]
    offset_groups = offset.shape[1] // (2 * points)
    out_size = offset.shape[2:]
    y, x = _positions(offset, offset_groups, kernel, grid)
    maps = input.reshape(batch, offset_groups, channels // offset_groups, height * width)
    columns = _sample(maps, (height, width), y, x, boundary)
    if mask is not None:
        columns = columns * mask.reshape(batch, offset_groups, 1, points, *out_size)
    return columns.reshape(batch, channels, points, *out_size)


def _positions(
    offset: Tensor,
    offset_groups: int,
    kernel: tuple[int, int],
    grid: tuple[tuple[int, int], ...],
) -> tuple[Tensor, Tensor]:
    """Return the sampling positions y and x, in pixels, each `[N, G, K, Ho, Wo]`."""
    batch, _, *out_size = offset.shape
    moved = offset.reshape(batch, offset_groups, *kernel, 2, *out_size)
    (stride, padding, dilation) = grid

    def line(axis: int) -> tuple[Tensor, Tensor]:
        out = torch.arange(out_size[axis], dtype=offset.dtype, device=offset.device)
        tap = torch.arange(kernel[axis], dtype=offset.dtype, device=offset.device)
        return out * stride[axis] - padding[axis], tap * dilation[axis]

    out_y, tap_y = line(0)
    out_x, tap_x = line(1)
    y = (tap_y[:, None, None, None] + out_y[:, None]) + moved[:, :, :, :, 0]
    x = (tap_x[:, None, None] + out_x) + moved[:, :, :, :, 1]
    shape = (batch, offset_groups, kernel[0] * kernel[1], *out_size)
    return y.reshape(shape), x.reshape(shape)


def _sample(maps: Tensor, size: tuple[int, int], y: Tensor, x: Tensor, boundary: str) -> Tensor:
    """Return the bilinear values of `maps [N, G, Cg, H*W]` at (y, x): `[N, G, Cg, K, Ho, Wo]`."""
    height, width = size
    # Position -1 itself belongs to the cell [-1, 0): its value is 0 either way, and its slope, like
    # that of every integer position, is the slope of the cell that begins there (as torchvision).
    lowest = -1 if boundary == "zeros" else 0
    inside = (y >= lowest) & (y < height) & (x >= lowest) & (x < width)
    # `where` before and after the arithmetic: autograd multiplies the zero gradient of an excluded
    # position with whatever was computed there, so that must be finite.
    safe_y, safe_x = torch.where(inside, y, 0), torch.where(inside, x, 0)
    low_y, low_x = safe_y.detach().floor(), safe_x.detach().floor()
    high_y, high_x = low_y + 1, low_x + 1
    frac_y, frac_x = safe_y - low_y, safe_x - low_x
    if boundary == "msra":
        high_y, high_x = high_y.clamp(max=height - 1), high_x.clamp(max=width - 1)

    def corner(row: Tensor, column: Tensor, share: Tensor) -> Tensor:
        return _gather(maps, size, row.long(), column.long()) * share.unsqueeze(2)

    value = (
        corner(low_y, low_x, (1 - frac_y) * (1 - frac_x))
        + corner(low_y, high_x, (1 - frac_y) * frac_x)
        + corner(high_y, low_x, frac_y * (1 - frac_x))
        + corner(high_y, high_x, frac_y * frac_x)
    )
    # On the edge -1 the share of row 0 is 0, which an infinite pixel would turn into NaN.
    edge = ((y == -1) | (x == -1)).unsqueeze(2) & ~value.isfinite()
    value = torch.where(inside.unsqueeze(2) & ~edge, value, 0)
    return value + _poison(y, x).unsqueeze(2)


def _gather(maps: Tensor, size: tuple[int, int], row: Tensor, column: Tensor) -> Tensor:
    """Return the pixels (row, column) of every channel, 0 for a pixel that is not on the map."""
    height, width = size
    on_map = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    flat = torch.where(on_map, row * width + column, 0)
    batch, groups, channels, _ = maps.shape
    index = flat.reshape(batch, groups, 1, flat.shape[2:].numel()).expand(-1, -1, channels, -1)
    pixels = maps.gather(3, index).reshape(batch, groups, channels, *flat.shape[2:])
    return torch.where(on_map.unsqueeze(2), pixels, 0)


def _poison(y: Tensor, x: Tensor) -> Tensor:
    """Return NaN, with NaN slopes, where a coordinate is NaN, else 0 with slope 0."""
    unknown = y.isnan() | x.isnan()
    # The square has slope 2 * NaN where it is NaN and 2 * 0 elsewhere.
    return torch.where(unknown, y + x, 0).square()


def _contract(columns: Tensor, weight: Tensor) -> Tensor:
    """Return `sum_ck weight[o, c, k] columns[n, c, k, i, j]`, each group with its own channels."""
    batch, channels, points, *out_size = columns.shape
    group_channels = weight.shape[1]
    groups = channels // group_channels
    grouped = columns.reshape(batch, groups, group_channels, points, *out_size)
    filters = weight.reshape(groups, weight.shape[0] // groups, group_channels, points)
    output = torch.einsum("ngckij,gock->ngoij", grouped, filters)
    return output.reshape(batch, weight.shape[0], *out_size)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
