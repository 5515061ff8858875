"""Where deformable convolutions sample: one layer's positions, and those of layers on each other.

Source: Dai et al., Deformable Convolutional Networks, figures 5 and 6: three stacked 3×3 layers
give 9³ = 729 sampling points for one activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dcn_tvm.nn import DeformConv2dPack

Pair = tuple[int, int]


@dataclass(frozen=True)
class SampledLayer:
    """A deformable convolution's geometry with the offsets that it used.

    Args:
        offset: `[N, 2*G*Kh*Kw, Ho, Wo]` in pixels of the layer's input, ordered (g, a, b, (y, x)).
        kernel_size: (Kh, Kw).
        stride: step of the output grid in pixels of the input.
        padding: pixels by which the grid starts outside the input.
        dilation: distance of the kernel's points before they move.

    Raises:
        ValueError: the offset's shape does not fit the kernel.

    Example:
        >>> SampledLayer(torch.zeros(1, 4 * 18, 5, 5)).offset_groups
        4
    """

    offset: Tensor
    kernel_size: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)

    def __post_init__(self) -> None:
        taps, shape = self.kernel_size[0] * self.kernel_size[1], tuple(self.offset.shape)
        if len(shape) != 4 or shape[1] == 0 or shape[1] % (2 * taps):
            raise ValueError(
                f"offset must be [N, G * {2 * taps}, Ho, Wo] for a kernel of {taps} points, "
                f"got {shape}"
            )

    @classmethod
    def of(cls, layer: DeformConv2dPack, input: Tensor) -> SampledLayer:
        """Return what `layer` samples when it is given `input [N, C, H, W]`."""
        with torch.no_grad():
            moves = layer.conv_offset(input)[:, : layer.offset_channels]
        return cls(moves, layer.kernel_size, layer.stride, layer.padding, layer.dilation)

    @property
    def offset_groups(self) -> int:
        """The groups of channels that move apart, G."""
        return self.offset.shape[1] // (2 * self.kernel_size[0] * self.kernel_size[1])

    def moves(self, image: int, offset_group: int) -> Tensor:
        """Return `[Kh*Kw, 2, Ho, Wo]`, how far every point of the kernel moved, (y, x).

        Raises:
            ValueError: there is no such image or group.
        """
        for name, value, count in (
            ("image", image, self.offset.shape[0]),
            ("offset_group", offset_group, self.offset_groups),
        ):
            if not 0 <= value < count:
                raise ValueError(f"{name} must be from 0 to {count - 1}, got {value}")
        groups: Tensor = self.offset[image].unflatten(0, (self.offset_groups, -1, 2))
        return groups[offset_group]

    def centres(self, positions: Tensor) -> Tensor:
        """Return the `[..., 2]` centres in the input of the filters at `[..., 2]` of the output.

        The centre is that of the kernel before its points move.
        """
        kernel, stride, padding, dilation = (
            torch.tensor(pair, dtype=positions.dtype)
            for pair in (self.kernel_size, self.stride, self.padding, self.dilation)
        )
        return positions * stride - padding + (kernel - 1) / 2 * dilation

    def read(self, positions: Tensor, image: int, offset_group: int) -> Tensor:
        """Return the `[P*K, 2]` positions in the input that `[P, 2]` output positions depend on.

        Between pixels the offsets are interpolated, as a layer above reads this one's output.
        """
        offset = self.moves(image, offset_group).flatten(0, 1).to(positions)
        moves: Tensor = _interpolate(offset, positions).unflatten(1, (-1, 2))
        grid = torch.cartesian_prod(*(torch.arange(size) for size in self.kernel_size)).view(-1, 2)
        start = positions * torch.tensor(self.stride) - torch.tensor(self.padding)
        regular = start[:, None] + grid * torch.tensor(self.dilation)
        return (regular + moves).view(-1, 2)


def sampling_points(
    layers: Sequence[SampledLayer], pixel: Pair, *, image: int = 0, offset_group: int = 0
) -> Tensor:
    """Return the positions in the first layer's input that one output pixel of the last reads.

    Args:
        layers: from the first to the last; every layer's output is the next one's input, perhaps
            through pointwise operations.
        pixel: (row, column) in the last layer's output.
        image: index in the batch.
        offset_group: which group's offsets to follow in every layer.

    Returns:
        `[K1 * ... * KL, 2]` float64, (y, x) in pixels of the first layer's input.

    Raises:
        ValueError: there are no layers, the pixel lies outside the last one's output, or a layer
            has no such image or offset group.

    Source: Dai et al., Deformable Convolutional Networks, figures 5 and 6.

    Example:
        >>> layer = SampledLayer(torch.zeros(1, 18, 5, 5))
        >>> sampling_points([layer] * 3, (2, 2)).shape
        torch.Size([729, 2])
    """
    if not layers:
        raise ValueError("sampling_points needs at least one layer, got none")
    size = tuple(layers[-1].offset.shape[2:])
    if not (0 <= pixel[0] < size[0] and 0 <= pixel[1] < size[1]):
        raise ValueError(f"pixel must lie in the last layer's output {size}, got {pixel}")
    positions = torch.tensor([pixel], dtype=torch.float64)
    for layer in reversed(layers):
        positions = layer.read(positions, image, offset_group)
    return positions


def _interpolate(map_: Tensor, positions: Tensor) -> Tensor:
    """Return `map_ [C, H, W]` at `positions [P, 2]` as `[P, C]`; the edge continues outside."""
    size = torch.tensor(map_.shape[1:], dtype=positions.dtype)
    normalised = positions / (size - 1).clamp(min=1) * 2 - 1
    grid = normalised.flip(-1)[None, None]  # grid_sample wants (x, y) in [-1, 1]
    read = functional.grid_sample(map_[None], grid, align_corners=True, padding_mode="border")
    return read[0, :, 0].T
