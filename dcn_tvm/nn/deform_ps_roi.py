"""Position-sensitive deformable RoI pooling with given offsets, and with its own."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import init

from dcn_tvm.functional import checks, deform_ps_roi_pool
from dcn_tvm.functional.boxes import Boxes
from dcn_tvm.nn.box_pool import BoxPool, count, finite, one_of
from dcn_tvm.ops.deform_ps_roi_pool import SAMPLINGS


class _DeformPSPool(BoxPool):
    """The sampling that both layers of position-sensitive deformable pooling share."""

    _defaults: ClassVar[dict[str, Any]] = {
        "output_dim": None,
        "group_size": None,
        "part_size": None,
        "sample_per_part": 4,
        "gamma": 0.1,
        "sampling": "grid",
    }

    def __init__(
        self,
        output_size: checks.Pair,
        spatial_scale: float = 1.0,
        output_dim: int | None = None,
        group_size: int | None = None,
        part_size: int | None = None,
        sample_per_part: int = 4,
        gamma: float = 0.1,
        sampling: str = "grid",
    ) -> None:
        super().__init__(output_size, spatial_scale)
        self.output_dim = None if output_dim is None else count("output_dim", output_dim)
        self.group_size = None if group_size is None else count("group_size", group_size)
        self.part_size = count("part_size", part_size) if part_size else None
        self.sample_per_part = count("sample_per_part", sample_per_part)
        self.gamma = finite("gamma", gamma)
        self.sampling = one_of("sampling", sampling, SAMPLINGS)

    def _pool(self, input: Tensor, boxes: Boxes, offset: Tensor | None) -> Tensor:
        return deform_ps_roi_pool(
            input,
            boxes,
            offset,
            self.output_size,
            self.spatial_scale,
            self.output_dim,
            self.group_size,
            self.part_size,
            self.sample_per_part,
            self.gamma,
            self.sampling,
        )


class DeformPSRoIPool(_DeformPSPool):
    """The mean of each bin of each box from channels of its own, moved by a given offset.

    The mathematics: `dcn_tvm.deform_ps_roi_pool`.

    Args:
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        output_dim: channels C of the output; None: what the input's channels give.
        group_size: groups of channels along each side; None: as output_size.
        part_size: offsets along each side of a box; None or 0: as output_size.
        sample_per_part: samples along each side of a bin, for sampling "grid".
        gamma: scale of the offsets.
        sampling: "grid", the released R-FCN code, or "paper", every pixel of a bin.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: a count, a size or the scale is not positive, gamma is not finite, or the
            sampling is unknown.

    Source: Dai et al., Deformable Convolutional Networks, section 2.2, and its released code.

    Example:
        >>> boxes = torch.tensor([[0, 0.0, 0, 64, 64], [1, 32, 0, 80, 48]])
        >>> pool = dcn_tvm.nn.DeformPSRoIPool(3, 1 / 16, output_dim=2)
        >>> pool(torch.randn(2, 18, 6, 6), boxes, torch.randn(2, 4, 3, 3)).shape
        torch.Size([2, 2, 3, 3])
    """

    def forward(self, input: Tensor, boxes: Boxes, offset: Tensor | None = None) -> Tensor:
        """Pool score maps to `[K, C, rows, columns]` from the bins that the offset moves.

        Args:
            input: position-sensitive maps `[N, C * group_size**2, H, W]`.
            boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of
                N tensors `[L, 4]`.
            offset: `[K, 2 * classes, part_size, part_size]` in fractions of the box, x first; each
                class moves a run of C / classes channels. None for none.
        """
        return self._pool(input, boxes, offset)


class DeformPSRoIPoolPack(_DeformPSPool):
    """Position-sensitive deformable pooling that makes its own offsets (figure 4 of the paper).

    A 1 x 1 convolution `conv_offset` of the features writes offset maps, one for each direction,
    class and part; their position-sensitive pooling, without offsets and with the layer's own
    samples, gives offsets `[K, 2 * classes, parts, parts]` in fractions of the box, x first; those
    move the bins in which the scores are pooled. The convolution starts at zero, so that the new
    layer pools as without offsets. The scores are yours, mostly another 1 x 1 convolution.

    The head has 2 * classes * parts**2 * (in_channels + 1) parameters: 2.11 million for 1024
    channels, 21 classes and 7 x 7 parts. It may learn at its own rate: see `parameter_groups`.

    Args:
        in_channels: channels of the features.
        output_dim: channels C of the output, the classes with the background.
        output_size: bins along y and x, one number or two.
        spatial_scale: pixels of the map for one pixel of the image.
        offset_classes: classes that move apart, each a run of C / offset_classes channels; None: C,
            as the paper; 1: all move alike, as in the released code's box regression.
        group_size: groups of score channels along each side; None: as output_size.
        part_size: offsets along each side of a box; None or 0: as output_size.
        sample_per_part: samples along each side of a bin, for sampling "grid".
        gamma: scale of the offsets.
        sampling: "grid", the released R-FCN code, or "paper", every pixel of a bin.

    Raises:
        TypeError: a count is not a whole number.
        ValueError: a count, a size or the scale is not positive, offset_classes does not divide
            output_dim, gamma is not finite, or the sampling is unknown.

    Source: Dai et al., Deformable Convolutional Networks, section 2.2, figure 4, and its released
    code.

    Example:
        >>> pool = dcn_tvm.nn.DeformPSRoIPoolPack(4, 2, 3, 1 / 16)
        >>> scores, features = torch.randn(2, 18, 6, 6), torch.randn(2, 4, 6, 6)
        >>> boxes = torch.tensor([[0, 0.0, 0, 64, 64], [1, 32, 0, 80, 48]])
        >>> same = dcn_tvm.deform_ps_roi_pool(scores, boxes, None, 3, 1 / 16)
        >>> torch.allclose(pool(scores, boxes, features), same, atol=1e-6)
        True
    """

    _defaults: ClassVar[dict[str, Any]] = {
        name: value for name, value in _DeformPSPool._defaults.items() if name != "output_dim"
    }
    output_dim: int

    def __init__(
        self,
        in_channels: int,
        output_dim: int,
        output_size: checks.Pair,
        spatial_scale: float = 1.0,
        offset_classes: int | None = None,
        group_size: int | None = None,
        part_size: int | None = None,
        sample_per_part: int = 4,
        gamma: float = 0.1,
        sampling: str = "grid",
    ) -> None:
        super().__init__(
            output_size,
            spatial_scale,
            count("output_dim", output_dim),
            group_size,
            part_size,
            sample_per_part,
            gamma,
            sampling,
        )
        classes = output_dim if offset_classes is None else offset_classes
        self.offset_classes = count("offset_classes", classes)
        if output_dim % classes:
            raise ValueError(
                "output_dim must be a multiple of offset_classes, "
                f"got output_dim={output_dim}, offset_classes={classes}"
            )
        self.in_channels = count("in_channels", in_channels)
        part = self.part_size
        self.parts = self.output_size if part is None else (part, part)
        self.conv_offset = nn.Conv2d(in_channels, 2 * classes * math.prod(self.parts), 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the offset head to zero."""
        for parameter in self.conv_offset.parameters():
            init.zeros_(parameter)

    def forward(self, scores: Tensor, boxes: Boxes, features: Tensor) -> Tensor:
        """Pool score maps to `[K, C, rows, columns]` from bins that the features move.

        Args:
            scores: position-sensitive maps `[N, C * group_size**2, H, W]`.
            boxes: `[K, 5]` rows (image, x1, y1, x2, y2) in pixels of the image, or a list of
                N tensors `[L, 4]`.
            features: `[N, in_channels, H, W]`, a map of the same scale.
        """
        maps: Tensor = self.conv_offset(features)
        offset = deform_ps_roi_pool(
            maps,
            boxes,
            None,
            self.parts,
            self.spatial_scale,
            2 * self.offset_classes,
            sample_per_part=self.sample_per_part,
            sampling=self.sampling,
        )
        return self._pool(scores, boxes, offset)

    def offset_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the offset head, for `parameter_groups`."""
        return self.conv_offset.parameters()

    def extra_repr(self) -> str:
        """Return the channels, the bins, the scale and what differs from the defaults."""
        parts = [f"{self.in_channels}, {self.output_dim}", super().extra_repr()]
        if self.offset_classes != self.output_dim:
            parts.append(f"offset_classes={self.offset_classes}")
        return ", ".join(parts)
