"""RoI pooling and RoI align, plain and position-sensitive, as layers."""

from typing import Any, ClassVar

from torch import Tensor

from dcn_tvm.functional import checks, ps_roi_align, ps_roi_pool, roi_align, roi_pool
from dcn_tvm.functional.boxes import Boxes, check_ratio
from dcn_tvm.nn.box_pool import BoxPool, one_of
from dcn_tvm.ops.ps_roi_pool import CONVENTIONS
from dcn_tvm.ops.roi_pool import MODES


class RoIPool(BoxPool):
    """The maximum, or the mean, of the pixels of each bin of each box.

    A drop-in for `torchvision.ops.RoIPool`. The mathematics: `dcn_tvm.roi_pool`.

    Args:
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        mode: "max", or "avg" for the paper's mean.

    Raises:
        ValueError: a size or the scale is not positive, or the mode is unknown.

    Source: Girshick, Fast R-CNN (2015); mode "avg": Dai et al., Deformable Convolutional Networks,
    eq. 5.

    Example:
        >>> boxes = torch.tensor([[0, 0.0, 0, 64, 64], [1, 32, 0, 80, 48]])
        >>> dcn_tvm.nn.RoIPool(3, 1 / 16)(torch.randn(2, 4, 6, 6), boxes).shape
        torch.Size([2, 4, 3, 3])
    """

    _defaults: ClassVar[dict[str, Any]] = {"mode": "max"}

    def __init__(
        self, output_size: checks.Pair, spatial_scale: float = 1.0, mode: str = "max"
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.mode = one_of("mode", mode, MODES)

    def forward(self, input: Tensor, boxes: Boxes) -> Tensor:
        """Pool `[N, C, H, W]` to `[K, C, rows, columns]`.

        Args:
            input: feature map `[N, C, H, W]`.
            boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of
                N tensors `[L, 4]`.
        """
        return roi_pool(input, boxes, self.output_size, self.spatial_scale, self.mode)


class RoIAlign(BoxPool):
    """The mean of bilinear samples on a grid in each bin of each box.

    A drop-in for `torchvision.ops.RoIAlign`. The mathematics: `dcn_tvm.roi_align`.

    Args:
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        sampling_ratio: samples along each side of a bin; 0 or less: `ceil` of the bin's length.
        aligned: whether a pixel's centre is at its middle; else boxes are half a pixel off.

    Raises:
        TypeError: the ratio is not a whole number.
        ValueError: a size or the scale is not positive.

    Source: He et al., Mask R-CNN (2017).

    Example:
        >>> pool = dcn_tvm.nn.RoIAlign((2, 3), 1 / 16, sampling_ratio=2, aligned=True)
        >>> pool(torch.randn(1, 4, 6, 6), [torch.tensor([[0.0, 0, 64, 64]])]).shape
        torch.Size([1, 4, 2, 3])
    """

    _defaults: ClassVar[dict[str, Any]] = {"sampling_ratio": -1, "aligned": False}

    def __init__(
        self,
        output_size: checks.Pair,
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = False,
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = check_ratio(sampling_ratio)
        self.aligned = aligned

    def forward(self, input: Tensor, boxes: Boxes) -> Tensor:
        """Pool `[N, C, H, W]` to `[K, C, rows, columns]`; boxes as in `RoIPool`."""
        return roi_align(
            input, boxes, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )


class PSRoIPool(BoxPool):
    """The mean of the pixels of each bin of each box, every bin from channels of its own.

    A drop-in for `torchvision.ops.PSRoIPool`. The mathematics: `dcn_tvm.ps_roi_pool`.

    Args:
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        convention: where boxes begin and end: "torchvision", or "rfcn" for the released code.

    Raises:
        ValueError: a size or the scale is not positive, or the convention is unknown.

    Source: Dai et al., R-FCN (2016).

    Example:
        >>> boxes = torch.tensor([[0, 0.0, 0, 64, 64], [1, 32, 0, 80, 48]])
        >>> dcn_tvm.nn.PSRoIPool(3, 1 / 16)(torch.randn(2, 18, 6, 6), boxes).shape
        torch.Size([2, 2, 3, 3])
    """

    _defaults: ClassVar[dict[str, Any]] = {"convention": "torchvision"}

    def __init__(
        self,
        output_size: checks.Pair,
        spatial_scale: float = 1.0,
        convention: str = "torchvision",
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.convention = one_of("convention", convention, CONVENTIONS)

    def forward(self, input: Tensor, boxes: Boxes) -> Tensor:
        """Pool `[N, C * rows * columns, H, W]` to `[K, C, rows, columns]`; boxes as `RoIPool`."""
        return ps_roi_pool(input, boxes, self.output_size, self.spatial_scale, self.convention)


class PSRoIAlign(BoxPool):
    """The mean of bilinear samples of each bin of each box, every bin from channels of its own.

    A drop-in for `torchvision.ops.PSRoIAlign`. The mathematics: `dcn_tvm.ps_roi_align`.

    Args:
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        sampling_ratio: samples along each side of a bin; 0 or less: `ceil` of the bin's length.

    Raises:
        TypeError: the ratio is not a whole number.
        ValueError: a size or the scale is not positive.

    Source: Li et al., Light-Head R-CNN (2017).

    Example:
        >>> boxes = torch.tensor([[0, 0.0, 0, 64, 64], [1, 32, 0, 80, 48]])
        >>> dcn_tvm.nn.PSRoIAlign(3, 1 / 16, 2)(torch.randn(2, 18, 6, 6), boxes).shape
        torch.Size([2, 2, 3, 3])
    """

    _defaults: ClassVar[dict[str, Any]] = {"sampling_ratio": -1}

    def __init__(
        self, output_size: checks.Pair, spatial_scale: float = 1.0, sampling_ratio: int = -1
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = check_ratio(sampling_ratio)

    def forward(self, input: Tensor, boxes: Boxes) -> Tensor:
        """Pool `[N, C * rows * columns, H, W]` to `[K, C, rows, columns]`; boxes as `RoIPool`."""
        return ps_roi_align(input, boxes, self.output_size, self.spatial_scale, self.sampling_ratio)
