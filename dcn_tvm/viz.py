"""Pictures of what deformable layers do: where one output pixel looks, through one or more layers.

Source: Dai et al., Deformable Convolutional Networks, figures 5 and 6: three stacked 3×3 layers
give 9³ = 729 sampling points for one activation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from dcn_tvm.nn import DeformConv2dPack

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pair = tuple[int, int]


@dataclass(frozen=True)
class SampledLayer:
    """A deformable layer's geometry with the offsets that it used, `[N, 2*G*Kh*Kw, Ho, Wo]`."""

    offset: Tensor
    kernel_size: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)

    @classmethod
    def of(cls, layer: DeformConv2dPack, input: Tensor) -> SampledLayer:
        """Return what `layer` samples when it is given `input [N, C, H, W]`."""
        with torch.no_grad():
            moves = layer.conv_offset(input)[:, : layer.offset_channels]
        return cls(moves, layer.kernel_size, layer.stride, layer.padding, layer.dilation)

    def read(self, positions: Tensor, image: int, offset_group: int) -> Tensor:
        """Return the `[P*K, 2]` positions in the input that `[P, 2]` output positions depend on.

        Between pixels the offsets are interpolated, as a layer above reads this one's output.
        """
        taps = self.kernel_size[0] * self.kernel_size[1]
        first = 2 * taps * offset_group
        offset = self.offset[image, first : first + 2 * taps].to(positions)
        moves = _interpolate(offset, positions).view(-1, taps, 2)
        grid = torch.cartesian_prod(*(torch.arange(size) for size in self.kernel_size))
        start = positions * torch.tensor(self.stride) - torch.tensor(self.padding)
        regular = start[:, None] + (grid * torch.tensor(self.dilation)).view(1, taps, 2)
        return (regular + moves).view(-1, 2)


def sampling_points(
    layers: Sequence[SampledLayer], pixel: Pair, *, image: int = 0, offset_group: int = 0
) -> Tensor:
    """Return the positions in the first layer's input that one output pixel of the last reads.

    Args:
        layers: from the first to the last; every layer's output is the next one's input.
        pixel: (row, column) in the last layer's output.
        image: index in the batch.
        offset_group: which group's offsets to follow in every layer.

    Returns:
        `[K1 * ... * KL, 2]` float64, (y, x) in pixels of the first layer's input.

    Raises:
        ValueError: there are no layers, or the pixel lies outside the last one's output.

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


def draw_sampling_points(
    axes: Axes,
    photo: Tensor,
    points: Sequence[Tensor],
    pixels: Sequence[Sequence[float]],
    goals: Sequence[Sequence[float]] = (),
) -> None:
    """Draw `photo [3, H, W]` in [0, 1] and over it what each output pixel reads.

    Args:
        axes: where to draw.
        photo: the image.
        points: for every output pixel its `[P, 2]` sampling points, (y, x) in pixels of the photo.
        pixels: the output pixels themselves, drawn as squares.
        goals: positions to mark with crosses.
    """
    axes.imshow(photo.permute(1, 2, 0).clamp(0, 1).numpy())
    for cloud in points:
        axes.scatter(cloud[:, 1], cloud[:, 0], s=3, c="#e6194b", linewidths=0, alpha=0.6)
    for marks, style in ((pixels, "s"), (goals, "x")):
        colour = "#3cff00" if style == "s" else "#ffe119"
        for y, x in marks:
            axes.scatter([x], [y], s=48, c=colour, marker=style, linewidths=2, zorder=3)
    axes.set(xlim=(-0.5, photo.shape[2] - 0.5), ylim=(photo.shape[1] - 0.5, -0.5))
    axes.set_axis_off()


def draw_times(axes: Axes, times_ms: Mapping[str, Mapping[str, float]]) -> None:
    """Draw groups of horizontal bars: group → provider → milliseconds, on a logarithmic axis."""
    providers = list(dict.fromkeys(name for group in times_ms.values() for name in group))
    height = 0.8 / len(providers)
    for index, provider in enumerate(providers):
        rows = [
            (row, group[provider])
            for row, group in enumerate(times_ms.values())
            if provider in group
        ]
        places = [row + index * height for row, _ in rows]
        bars = axes.barh(places, [time for _, time in rows], height * 0.9, label=provider)
        axes.bar_label(bars, fmt="%.4g ms", padding=3, fontsize=9)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(times_ms))], list(times_ms))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("milliseconds, median (logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _interpolate(map_: Tensor, positions: Tensor) -> Tensor:
    """Return `map_ [C, H, W]` at `positions [P, 2]` as `[P, C]`; the edge continues outside."""
    size = torch.tensor(map_.shape[1:], dtype=positions.dtype)
    normalised = positions / (size - 1).clamp(min=1) * 2 - 1
    grid = normalised.flip(-1)[None, None]  # grid_sample wants (x, y) in [-1, 1]
    read = functional.grid_sample(map_[None], grid, align_corners=True, padding_mode="border")
    return read[0, :, 0].T
