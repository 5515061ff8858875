"""mmcv as a peer: its functions, which take positions, with the arguments of ours.

Only functions that are ours are here. mmcv's `roi_pool` ends boxes at `(x2 + 1) s` and rounds no
corner, so that its bins are others; its `prroi_pool` integrates where ours sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from dcn_tvm.bench.contender import Call, Contender, Mode, Setting, settings
from dcn_tvm.suites import Case

# PyPI has its source only, whose setup.py imports what setuptools 82 dropped and asks for C++17,
# which the headers of torch 2.15 refuse.
INSTALL = (
    "pip install 'setuptools<81' wheel ninja && "
    "pip download --no-deps --no-build-isolation --no-binary mmcv mmcv==2.2.0 && "
    "tar xf mmcv-2.2.0.tar.gz && sed -i s/c++17/c++20/ mmcv-2.2.0/setup.py && "
    "pip install --no-build-isolation ./mmcv-2.2.0"
)

Pair = tuple[int, int]


def mmcv_peer(
    prepare: Callable[[Case, Setting], Call],
    modes: Sequence[Mode],
    dtypes: Sequence[str],
    serves: Callable[[Case], bool] = lambda case: True,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Contender:
    """Return mmcv's function that `prepare` calls.

    Args:
        prepare: makes the call of a case in a setting.
        modes: those it takes part in.
        dtypes: those in which it computes the same function.
        serves: the cases in which it computes the same function.
        devices: the types of devices for which mmcv has kernels.
    """
    offered = settings(modes, dtypes, ("contiguous",))
    imports = ("mmcv.ops",)  # fails in mmcv-lite, which has no kernels
    return Contender("mmcv", "peer", "mmcv", offered, prepare, INSTALL, imports, serves, devices)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask: Tensor | None,
) -> Tensor:
    """Return mmcv's convolution of v2 if there is a mask, else of v1, which has no bias of its own.

    Args:
        input: `[N, C, H, W]`.
        offset: `[N, 2*G*Kh*Kw, Ho, Wo]`, ordered (g, a, b, (y, x)).
        weight: `[O, C/groups, Kh, Kw]`.
        bias: `[O]`, or None.
        stride: pixels, (y, x).
        padding: pixels, (y, x).
        dilation: pixels, (y, x).
        mask: `[N, G*Kh*Kw, Ho, Wo]`, or None.

    Returns:
        `[N, O, Ho, Wo]`.
    """
    from mmcv import ops

    groups = input.shape[1] // weight.shape[1]
    offset_groups = offset.shape[1] // (2 * math.prod(weight.shape[2:]))
    geometry = (stride, padding, dilation, groups, offset_groups)
    if mask is not None:
        modulated: Tensor = ops.modulated_deform_conv2d(
            input, offset, mask, weight, bias, *geometry
        )
        return modulated
    output: Tensor = ops.deform_conv2d(input, offset, weight, *geometry)
    return output if bias is None else output + bias[:, None, None]


def roi_align(
    input: Tensor,
    boxes: Tensor,
    output_size: Pair,
    spatial_scale: float,
    *,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return mmcv's RoI align with the mean of the samples.

    Args:
        input: `[N, C, H, W]`.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, of the input's dtype.
        output_size: number of bins, (y, x).
        spatial_scale: map pixels per image pixel.
        sampling_ratio: samples per bin and axis; 0: about one per pixel.
        aligned: whether boxes are shifted by half a pixel.

    Returns:
        `[K, C, Kh, Kw]`.
    """
    from mmcv import ops

    pooled: Tensor = ops.roi_align(
        input, boxes, output_size, spatial_scale, sampling_ratio, "avg", aligned
    )
    return pooled


def deform_roi_pool(
    input: Tensor,
    boxes: Tensor,
    offset: Tensor | None,
    output_size: Pair,
    spatial_scale: float,
    *,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """Return mmcv's deformable RoI pooling.

    Args:
        input: `[N, C, H, W]`.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, of the input's dtype.
        offset: `[K, 2, Kh, Kw]`, channel 0 is x and 1 is y, as shares of the box; None for 0.
        output_size: number of bins, (y, x).
        spatial_scale: map pixels per image pixel.
        sampling_ratio: samples per bin and axis; 0: about one per pixel.
        gamma: the factor of all offsets.

    Returns:
        `[K, C, Kh, Kw]`.
    """
    from mmcv import ops

    pooled: Tensor = ops.deform_roi_pool(
        input, boxes, offset, output_size, spatial_scale, sampling_ratio, gamma
    )
    return pooled
