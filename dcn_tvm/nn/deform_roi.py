"""Deformable RoI pooling with given offsets, and with offsets that it makes itself."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import init

from dcn_tvm.functional import checks, deform_roi_pool
from dcn_tvm.functional.boxes import Boxes, check_ratio
from dcn_tvm.nn.box_pool import BoxPool, count, finite


class _DeformPool(BoxPool):
    """The sampling that both layers of deformable RoI pooling share."""

    _defaults: ClassVar[dict[str, Any]] = {"sampling_ratio": None, "gamma": 0.1}

    def __init__(
        self,
        output_size: checks.Pair,
        spatial_scale: float = 1.0,
        sampling_ratio: int | None = None,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.sampling_ratio = None if sampling_ratio is None else check_ratio(sampling_ratio)
        self.gamma = finite("gamma", gamma)

    def _pool(self, input: Tensor, boxes: Boxes, offset: Tensor | None) -> Tensor:
        return deform_roi_pool(
            input,
            boxes,
            offset,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.gamma,
        )


class DeformRoIPool(_DeformPool):
    """The mean of each bin of each box, after moving it by an offset given with every call.

    The mathematics: `dcn_tvm.deform_roi_pool`.

    Args:
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        sampling_ratio: None for the pixels of the bin, as the paper; a number for that many
            bilinear samples along each side of a bin, as mmcv; 0 or less: `ceil` of its length.
        gamma: scale of the offsets.

    Raises:
        TypeError: the ratio is not a whole number.
        ValueError: a size or the scale is not positive, or gamma is not finite.

    Source: Dai et al., Deformable Convolutional Networks, section 2.2, eq. 6.

    Example:
        >>> boxes = torch.tensor([[0, 0.0, 0, 64, 64], [1, 32, 0, 80, 48]])
        >>> pool = dcn_tvm.nn.DeformRoIPool(3, 1 / 16)
        >>> pool(torch.randn(2, 4, 6, 6), boxes, torch.randn(2, 2, 3, 3)).shape
        torch.Size([2, 4, 3, 3])
    """

    def forward(self, input: Tensor, boxes: Boxes, offset: Tensor | None = None) -> Tensor:
        """Pool `[N, C, H, W]` to `[K, C, rows, columns]` from the bins that the offset moves.

        Args:
            input: feature map `[N, C, H, W]`.
            boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of
                N tensors `[L, 4]`.
            offset: `[K, 2, rows, columns]` in fractions of the box, x first; None for none.
        """
        return self._pool(input, boxes, offset)


class DeformRoIPoolPack(_DeformPool):
    """Deformable RoI pooling that makes its own offsets (figure 3 of the paper).

    Plain pooling of the same input, `[K, C, rows, columns]`, with the same samples, goes through
    the fully connected `offset_fc` to offsets `[K, 2, rows, columns]` in fractions of the box, x
    first; those move the bins of a second pooling. The last layer starts at zero, so that the new
    layer pools as without offsets. With `hidden`, the state_dict has mmcv's names and shapes.

    For C = 256 and 7 x 7 bins one fully connected layer has 12544 * 98 weights and 98 biases,
    1.229 million parameters: the paper's. In Faster R-CNN it learns at 0.01 of the other layers'
    rate: see `parameter_groups`.

    Args:
        in_channels: channels C of the input.
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        hidden: None for one fully connected layer, as the paper; a number for three with ReLU
            between them and that many units in the two hidden ones, as mmcv, whose number is 1024.
        sampling_ratio: None for the pixels of the bin, as the paper; a number for that many
            bilinear samples along each side of a bin, as mmcv; 0 or less: `ceil` of its length.
        gamma: scale of the offsets.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: a count, a size or the scale is not positive, or gamma is not finite.

    Source: Dai et al., Deformable Convolutional Networks, section 2.2, figure 3. Peer: mmcv's
    DeformRoIPoolPack.

    Example:
        >>> pool, x = dcn_tvm.nn.DeformRoIPoolPack(4, 3, 1 / 16), torch.randn(2, 4, 6, 6)
        >>> boxes = torch.tensor([[0, 0.0, 0, 64, 64], [1, 32, 0, 80, 48]])
        >>> same = dcn_tvm.roi_pool(x, boxes, 3, 1 / 16, mode="avg")
        >>> torch.allclose(pool(x, boxes), same, atol=1e-6)
        True
    """

    def __init__(
        self,
        in_channels: int,
        output_size: checks.Pair,
        spatial_scale: float = 1.0,
        hidden: int | None = None,
        sampling_ratio: int | None = None,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma)
        self.in_channels = count("in_channels", in_channels)
        self.hidden = None if hidden is None else count("hidden", hidden)
        bins = math.prod(self.output_size)
        inner = [] if self.hidden is None else [self.hidden, self.hidden]
        widths = [in_channels * bins, *inner, 2 * bins]
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        self.offset_fc = nn.Sequential(*layers[:-1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the hidden layers as torch.nn.Linear does and set the last one to zero."""
        for layer in self.offset_fc:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        for parameter in self.offset_fc[-1].parameters():
            init.zeros_(parameter)

    def forward(self, input: Tensor, boxes: Boxes) -> Tensor:
        """Pool `[N, C, H, W]` to `[K, C, rows, columns]` from bins that the input moves.

        Args:
            input: feature map `[N, C, H, W]`.
            boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of
                N tensors `[L, 4]`.
        """
        still = self._pool(input, boxes, None)
        moves: Tensor = self.offset_fc(still.flatten(1))
        return self._pool(input, boxes, moves.unflatten(1, (2, *self.output_size)))

    def offset_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the offset head, for `parameter_groups`."""
        return self.offset_fc.parameters()

    def extra_repr(self) -> str:
        """Return the channels, the bins, the scale and what differs from the defaults."""
        return f"{self.in_channels}, {super().extra_repr()}"
