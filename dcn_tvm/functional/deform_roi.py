"""Deformable RoI pooling, plain and position-sensitive."""

from __future__ import annotations

import torch
from torch import Tensor

from dcn_tvm.functional import checks
from dcn_tvm.functional.boxes import Boxes, Common, check_common, check_group, check_ratio
from dcn_tvm.ops.deform_ps_roi_pool import SAMPLINGS


def deform_roi_pool(
    input: Tensor,
    boxes: Boxes,
    offset: Tensor | None,
    output_size: checks.Pair,
    spatial_scale: float = 1.0,
    sampling_ratio: int | None = None,
    gamma: float = 0.1,
) -> Tensor:
    """Average each bin of a box after moving it by a learned offset.

    `y[k,c,i,j] = 1/n sum_p X[n,c](p + D_ij)` over the pixels p of bin (i, j), X bilinear with 0
    outside the map, `D_ij = gamma * offset_ij * (w, h)` for a box of w x h pixels of the map.

    Types, memory formats and determinism are those of `roi_pool`. Differentiable once, in input and
    offset. The gradient at a whole position is that of the cell that begins there.

    Args:
        input: feature map `[N, C, H, W]`.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of `[L, 4]`.
        offset: `[K, 2, rows, columns]` in fractions of the box, x first, of the input's type; None
            for none: then this is `roi_pool(mode="avg")`.
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        sampling_ratio: None for the paper's eq. 6, whose bins are the whole pixels of `roi_pool`;
            a number for mmcv's variant, the mean of that many samples along each side of a bin of
            the unrounded box (`x1 * scale - 1/2`), sampled as in `roi_align`; 0 or less: as many
            as the bin is long.
        gamma: scale of the offsets.

    Returns:
        `[K, C, rows, columns]` of the input's type; an empty bin is 0. A box with a coordinate that
        is not finite, or an offset that is NaN, gives NaN; an infinite offset leads outside.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: sizes do not fit, or a box names an image that is not there.
        NotImplementedError: the device has no kernels, or a second derivative is asked.

    Source: Dai et al., Deformable Convolutional Networks (2017), eq. 6. Peer: mmcv's
    DeformRoIPool, which runs on CUDA only.

    Example:
        >>> x, box = torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[0, 0, 0, 1.0, 1]])
        >>> offset = torch.tensor([0.5, 0.0]).reshape(1, 2, 1, 1)
        >>> dcn_tvm.deform_roi_pool(x, box, offset, 1, gamma=1.0).item()
        3.5
    """
    common = check_common(input, boxes, output_size, spatial_scale)
    ratio = None if sampling_ratio is None else check_ratio(sampling_ratio)
    _check_offset(input, offset, common, 1, common.bins)
    result: Tensor = torch.ops.dcn_tvm.deform_roi_pool(
        input, common.boxes, offset, common.spatial_scale, common.bins, float(gamma), ratio
    )
    return result


def deform_ps_roi_pool(
    input: Tensor,
    boxes: Boxes,
    offset: Tensor | None,
    output_size: checks.Pair,
    spatial_scale: float = 1.0,
    output_dim: int | None = None,
    group_size: int | None = None,
    part_size: int | None = None,
    sample_per_part: int = 4,
    gamma: float = 0.1,
    sampling: str = "grid",
) -> Tensor:
    """Average each bin over channels of its own, after moving it by a learned offset.

    `y[k,c,i,j] = 1/n sum_s X[n, (c G + g_i) G + g_j](p_s + D)` with G groups along each side,
    `g_i = floor(i G / rows)`, and `D = gamma * offset[class of c, part of (i, j)] * (w, h)`.

    Types, memory formats and determinism are those of `roi_pool`. Differentiable once, in input and
    offset; where a sample is moved onto the map the slope is 0, at a whole position it is that of
    the cell that begins there.

    Args:
        input: position-sensitive maps `[N, output_dim * group_size**2, H, W]`.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of `[L, 4]`.
        offset: `[K, 2 * classes, part_size, part_size]` in fractions of the box, x first, of the
            input's type; None for none. Each class moves a run of output_dim / classes channels.
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        output_dim: channels C of the output; None: what the input's channels give.
        group_size: None: as output_size.
        part_size: None or 0: as output_size.
        sample_per_part: samples along each side of a bin, for sampling "grid".
        gamma: scale of the offsets, `trans_std` in the released code.
        sampling: "grid", the released R-FCN code: boxes from `round(x1) * scale - 1/2` to
            `(round(x2) + 1) * scale - 1/2`, samples from the edge of each part, those further than
            half a pixel outside left out of the mean; "paper": every pixel of the bins of
            `roi_pool`, moved, as eq. 6.

    Returns:
        `[K, output_dim, rows, columns]` of the input's type; a bin without samples is 0. A box with
        a coordinate that is not finite, or an offset that is NaN, gives NaN.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: sizes do not fit, a box names an image that is not there, the sampling is
            unknown.
        NotImplementedError: the device has no kernels, or a second derivative is asked.

    Source: Dai et al., Deformable Convolutional Networks (2017), section 2.2 and its released code.
    Peer: OpenVINO DeformablePSROIPooling, without gradients.

    Example:
        >>> x, box = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 4, 4), [[0, 0, 0, 2.0, 2]]
        >>> dcn_tvm.deform_ps_roi_pool(x, torch.tensor(box), None, 2).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    common = check_common(input, boxes, output_size, spatial_scale)
    groups = _grid("group_size", group_size, common.bins)
    parts = _grid("part_size", part_size or None, common.bins)
    (samples, _) = checks.pair("sample_per_part", sample_per_part, 1)
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling must be one of {SAMPLINGS}, got {sampling!r}")
    check_group(input, *groups)
    channels = input.shape[1] // (groups[0] * groups[1])
    if output_dim is not None and output_dim != channels:
        raise ValueError(
            f"output_dim must be {channels}, the input's {input.shape[1]} channels over "
            f"{groups[0]} x {groups[1]} groups, got {output_dim}"
        )
    _check_offset(input, offset, common, channels, parts)
    result: Tensor = torch.ops.dcn_tvm.deform_ps_roi_pool(
        input,
        common.boxes,
        offset,
        common.spatial_scale,
        common.bins,
        float(gamma),
        groups,
        parts,
        samples,
        sampling,
    )
    return result


def _grid(name: str, size: int | None, bins: tuple[int, int]) -> tuple[int, int]:
    return bins if size is None else checks.pair(name, size, 1)


def _check_offset(
    input: Tensor, offset: Tensor | None, common: Common, channels: int, parts: tuple[int, int]
) -> None:
    """An offset has two channels for each class, and classes divide the output's channels."""
    if offset is None:
        return
    checks.check_kind("offset", offset, 4, input)
    moves = offset.shape[1]
    if moves < 2 or moves % 2 or channels % (moves // 2):
        raise ValueError(
            f"the offset's channels must be 2 for each class, the classes dividing {channels}, "
            f"got {moves}"
        )
    checks.check_shape("offset", offset, (common.boxes.shape[0], moves, *parts))
