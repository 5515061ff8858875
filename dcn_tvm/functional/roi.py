"""RoI pooling and RoI align, plain and position-sensitive."""

from __future__ import annotations

import torch
from torch import Tensor

from dcn_tvm.functional import checks
from dcn_tvm.functional.boxes import Boxes, check_common, check_group, check_ratio
from dcn_tvm.ops.ps_roi_pool import CONVENTIONS
from dcn_tvm.ops.roi_pool import MODES


def roi_pool(
    input: Tensor,
    boxes: Boxes,
    output_size: checks.Pair,
    spatial_scale: float = 1.0,
    mode: str = "max",
) -> Tensor:
    """Pool each box into a grid of bins of whole pixels: a drop-in for torchvision's function.

    `y[k,c,i,j] = max, or mean, of x[n,c,p]` over the pixels p of bin (i, j): rows from
    `floor(i h / rows)` to before `ceil((i + 1) h / rows)` of a box of h rows that starts at
    `round(y1 scale)`, `h = max(round(y2 scale) - round(y1 scale) + 1, 1)`, cut at the map's border.

    Sums and coordinates are at least float32. Differentiable once, in the input; the gradient of a
    maximum goes to the first of equal pixels. A call gives bitwise the same result every time, with
    any number of threads.

    Args:
        input: feature map `[N, C, H, W]`, float32, float64, float16 or bfloat16; channels_last is
            the fastest, and the result is so too.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2), in pixels of the image, of any floating type,
            or a list of N tensors `[L, 4]`. Get no gradient.
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        mode: "max", or "avg" for the paper's mean.

    Returns:
        `[K, C, rows, columns]` of the input's type. An empty bin is 0. A box with a coordinate that
        is not finite gives NaN; in a maximum so does a pixel that is NaN.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: sizes do not fit, a box names an image that is not there, the mode is unknown.
        NotImplementedError: the device has no kernels, or a second derivative is asked.

    Source: Girshick, Fast R-CNN (2015); mode "avg": Dai et al., Deformable Convolutional Networks
    (2017), eq. 5. Peer: torchvision.ops.roi_pool.

    Example:
        >>> x, box = torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[0, 0, 0, 3.0, 3]])
        >>> dcn_tvm.roi_pool(x, box, 2).flatten().tolist()
        [5.0, 7.0, 13.0, 15.0]
    """
    common = check_common(input, boxes, output_size, spatial_scale)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    result: Tensor = torch.ops.dcn_tvm.roi_pool(
        input, common.boxes, common.spatial_scale, common.bins, mode
    )
    return result


def roi_align(
    input: Tensor,
    boxes: Boxes,
    output_size: checks.Pair,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Average bilinear samples on a grid in each bin: a drop-in for torchvision's function.

    `y[k,c,i,j] = 1/n sum_s X[n,c](y1 + (i + (s + 1/2) / r) h / rows, ...)`, X bilinear. A sample
    further than a pixel outside the map counts as 0, a nearer one is moved onto it.

    Types, memory formats and determinism are those of `roi_pool`. Samples of a bin share the pixels
    that they touch, so results differ from sample-by-sample sums by roundings.

    Args:
        input: feature map `[N, C, H, W]`.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of `[L, 4]`.
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        sampling_ratio: samples r along each side of a bin; 0 or less: `ceil` of the bin's length.
        aligned: whether a pixel's centre is at its middle, as it should; else boxes are half a
            pixel off and at least one pixel long, as in older detectors.

    Returns:
        `[K, C, rows, columns]` of the input's type. A box with a coordinate that is not finite
        gives NaN.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: sizes do not fit, or a box names an image that is not there.
        NotImplementedError: the device has no kernels, or a second derivative is asked.

    Source: He et al., Mask R-CNN (2017). Peer: torchvision.ops.roi_align.

    Example:
        >>> x, box = torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[0, 0, 0, 2.0, 2]])
        >>> dcn_tvm.roi_align(x, box, 1, sampling_ratio=2).item()
        5.0
    """
    common = check_common(input, boxes, output_size, spatial_scale)
    result: Tensor = torch.ops.dcn_tvm.roi_align(
        input,
        common.boxes,
        common.spatial_scale,
        common.bins,
        check_ratio(sampling_ratio),
        bool(aligned),
    )
    return result


def ps_roi_pool(
    input: Tensor,
    boxes: Boxes,
    output_size: checks.Pair,
    spatial_scale: float = 1.0,
    convention: str = "torchvision",
) -> Tensor:
    """Average each bin over channels of its own (R-FCN): a drop-in for torchvision's function.

    `y[k,c,i,j] = mean of x[n, (c rows + i) columns + j, p]` over the pixels p of bin (i, j).

    Types, memory formats and determinism are those of `roi_pool`. Unlike torchvision's, the
    gradient is that of the result also for boxes at the last row or column.

    Args:
        input: position-sensitive maps `[N, C * rows * columns, H, W]`.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of `[L, 4]`.
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        convention: "torchvision": corners `round(box * scale)`, the last one outside, and bins end
            before the last row and column of the map; "rfcn": from `round(x1) * scale` to
            `(round(x2) + 1) * scale`, at least 0.1 pixels, bins cut at the map's border.

    Returns:
        `[K, C, rows, columns]` of the input's type; an empty bin is 0. A box with a coordinate that
        is not finite gives NaN.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: sizes do not fit, a box names an image that is not there, the convention is
            unknown.
        NotImplementedError: the device has no kernels, or a second derivative is asked.

    Source: Dai et al., R-FCN (2016). Peers: torchvision.ops.ps_roi_pool; OpenVINO PSROIPooling.

    Example:
        >>> x, box = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 4, 4), [[0, 0, 0, 2.0, 2]]
        >>> dcn_tvm.ps_roi_pool(x, torch.tensor(box), 2).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    common = check_common(input, boxes, output_size, spatial_scale)
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {CONVENTIONS}, got {convention!r}")
    check_group(input, *common.bins)
    result: Tensor = torch.ops.dcn_tvm.ps_roi_pool(
        input, common.boxes, common.spatial_scale, common.bins, convention
    )
    return result


def ps_roi_align(
    input: Tensor,
    boxes: Boxes,
    output_size: checks.Pair,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Tensor:
    """Average bilinear samples of each bin's own channels: a drop-in for torchvision's function.

    `y[k,c,i,j] = 1/n sum_s X[n, (c rows + i) columns + j](p_s)`, samples as in `roi_align` with
    `aligned`.

    Types, memory formats and determinism are those of `roi_pool`.

    Args:
        input: position-sensitive maps `[N, C * rows * columns, H, W]`.
        boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of `[L, 4]`.
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        sampling_ratio: samples along each side of a bin; 0 or less: `ceil` of the bin's length.

    Returns:
        `[K, C, rows, columns]` of the input's type. Where torchvision divides by no samples (a box
        of no size), the result is 0. A box with a coordinate that is not finite gives NaN.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: sizes do not fit, or a box names an image that is not there.
        NotImplementedError: the device has no kernels, or a second derivative is asked.

    Source: Li et al., Light-Head R-CNN (2017). Peer: torchvision.ops.ps_roi_align.

    Example:
        >>> x, box = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 4, 4), [[0, 0, 0, 2.0, 2]]
        >>> dcn_tvm.ps_roi_align(x, torch.tensor(box), 2).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    common = check_common(input, boxes, output_size, spatial_scale)
    check_group(input, *common.bins)
    result: Tensor = torch.ops.dcn_tvm.ps_roi_align(
        input, common.boxes, common.spatial_scale, common.bins, check_ratio(sampling_ratio)
    )
    return result
