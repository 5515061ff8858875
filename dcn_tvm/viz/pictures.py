"""Pictures of sampling points, offset fields and bins, over the image that a network saw.

All positions are in pixels of the image. A map's pixel (i, j) is centred at `origin + stride * i`
and `origin + stride * j`: the stride is that of the map in the image, 16 for a ResNet's res5 that
the paper dilates, and the origin is 0 for convolutions of odd kernels padded by half their size, as
in torchvision's ResNet, or `(stride - 1) / 2` where every pixel of the map stands for a square of
the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcn_tvm.viz.bins import SampledBins, bin_boxes
from dcn_tvm.viz.layers import Pair, SampledLayer, sampling_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.quiver import Quiver

RED, GREEN, YELLOW = "#e6194b", "#3cff00", "#ffe119"
ARROWS = 18  # along the longer side of an offset field


def draw_sampling_points(
    axes: Axes,
    photo: Tensor,
    layers: Sequence[SampledLayer],
    pixels: Sequence[Pair],
    *,
    stride: float = 1.0,
    origin: float = 0.0,
    image: int = 0,
    offset_group: int = 0,
    goals: Sequence[Sequence[float]] = (),
) -> None:
    """Draw what output pixels read through stacked layers: red points, and the pixels in green.

    A green square stands where the output pixel's centre is in the image, before offsets move
    anything.

    Args:
        axes: where to draw.
        photo: the image `[3, H, W]` in [0, 1].
        layers: from the first to the last, as `record_offsets` gives them.
        pixels: (row, column) of each output pixel in the last layer's output.
        stride: of the first layer's input in the image.
        origin: where in the image the first pixel of that map is centred, along both axes.
        image: index in the batch.
        offset_group: which group's offsets to follow in every layer.
        goals: positions (y, x) in the image to mark with yellow crosses.

    Raises:
        ValueError: there are no layers, or a pixel, the image or the group does not exist.

    Source: Dai et al., Deformable Convolutional Networks, figures 5 and 6.

    Example:
        >>> from matplotlib.figure import Figure
        >>> layer, photo = SampledLayer(torch.zeros(1, 18, 8, 8)), torch.rand(3, 128, 128)
        >>> draw_sampling_points(Figure().subplots(), photo, [layer] * 3, [(4, 4)], stride=16)
    """
    _draw_photo(axes, photo)
    for pixel in pixels:
        points = sampling_points(layers, pixel, image=image, offset_group=offset_group)
        cloud = origin + stride * points
        axes.scatter(cloud[:, 1], cloud[:, 0], s=5, c=RED, linewidths=0, alpha=0.6)
        centre = torch.tensor(pixel, dtype=torch.float64)
        for layer in reversed(layers):
            centre = layer.centres(centre)
        _mark(axes, (origin + stride * centre).tolist(), "s", GREEN)
    for goal in goals:
        _mark(axes, goal, "x", YELLOW)


def draw_offsets(
    axes: Axes,
    photo: Tensor,
    layer: SampledLayer,
    *,
    stride: float = 1.0,
    origin: float = 0.0,
    image: int = 0,
    offset_group: int = 0,
    tap: Pair | None = None,
    every: int | None = None,
) -> Quiver:
    """Draw a layer's offset field: an arrow from each filter's centre to where its points moved.

    Without `tap` an arrow is the mean offset of the kernel's points and its colour their mean
    length, so that a filter that only spreads is a short arrow of a dark colour. Arrows are as
    long as the way in the image.

    Args:
        axes: where to draw.
        photo: the image `[3, H, W]` in [0, 1]; drawn in grey.
        layer: what the layer sampled.
        stride: of the layer's input in the image.
        origin: where in the image the first pixel of that map is centred, along both axes.
        image: index in the batch.
        offset_group: which group's offsets.
        tap: (row, column) of the kernel's point whose offsets to draw; None for the mean.
        every: draw each so many-th output pixel; None for at most 18 arrows along a side.

    Returns:
        matplotlib's arrows, for a colour bar in pixels of the image.

    Raises:
        ValueError: there is no such image, group or tap, or `every` is not positive.

    Example:
        >>> from matplotlib.figure import Figure
        >>> layer, photo = SampledLayer(torch.randn(1, 18, 8, 8)), torch.rand(3, 128, 128)
        >>> figure = Figure()
        >>> arrows = draw_offsets(figure.subplots(), photo, layer, stride=16)
        >>> bar = figure.colorbar(arrows, label="pixels of the image")
    """
    if every is None:
        every = -(-max(layer.offset.shape[2:]) // ARROWS)
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    moves = stride * layer.moves(image, offset_group).double().cpu()
    if tap is not None:
        moves = moves[_tap_index(layer.kernel_size, tap)][None]
    first, rows, columns = every // 2, *moves.shape[2:]
    lines = [torch.arange(min(first, n - 1), n, every).double() for n in (rows, columns)]
    grid = torch.cartesian_prod(*lines)
    y, x = (origin + stride * layer.centres(grid)).T
    picked = moves[:, :, grid[:, 0].long(), grid[:, 1].long()]
    (v, u), length = picked.mean(0), torch.linalg.vector_norm(picked, dim=1).mean(0)
    _draw_photo(axes, photo.mean(0, keepdim=True).expand(3, -1, -1) * 0.4 + 0.6)
    style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "cmap": "plasma_r"}
    return axes.quiver(x, y, u, v, length, **style, width=0.006, pivot="tail", zorder=2)


def draw_bins(
    axes: Axes,
    photo: Tensor,
    bins: SampledBins,
    index: int,
    *,
    offset_class: int = 0,
    origin: float | None = None,
) -> None:
    """Draw the bins that deformable RoI pooling moved: red, from their dashed places in the box.

    All three are labelled for `axes.legend()`.

    Args:
        axes: where to draw.
        photo: the image `[3, H, W]` in [0, 1] in whose pixels the boxes are.
        bins: what the layer did, as `record_offsets` gives it.
        index: of the box, drawn in yellow.
        offset_class: whose offsets to follow where classes move apart.
        origin: where in the image the map's first pixel is centred, along both axes; None: where
            the layer's sampling takes it to be, so that the regular bins fill the box.

    Raises:
        ValueError: there is no such box or class.

    Source: Dai et al., Deformable Convolutional Networks, figure 7.

    Example:
        >>> from matplotlib.figure import Figure
        >>> box, offset = torch.tensor([[0, 16.0, 16, 100, 90]]), torch.randn(1, 2, 3, 3)
        >>> bins = SampledBins(box, offset, (8, 8), (3, 3), 1 / 16, 0.1, "rfcn")
        >>> draw_bins(Figure().subplots(), torch.rand(3, 128, 128), bins, 0)
    """
    start, stride = bins.origin if origin is None else origin, 1 / bins.spatial_scale
    width = 0.6 + 2.4 / max(bins.output_size)  # 49 bins need thinner lines than 9
    still: dict[str, Any] = {"color": "white", "linestyle": (0, (3, 3)), "alpha": 0.8}
    _draw_photo(axes, photo)
    for moved, style in (
        (False, {**still, "label": "regular bins"}),
        (True, {"color": RED, "label": "moved bins"}),
    ):
        edges = bin_boxes(bins, index, offset_class=offset_class, moved=moved)
        _outline(axes, start + stride * edges.view(-1, 4), linewidth=width, **style)
    # Pixel x of the image extends from x - 1/2 to x + 1/2. The last pixel belongs to a box, but
    # mmcv's corners lie between pixels.
    last = -0.5 if bins.sampling == "mmcv" else 0.5
    box = bins.boxes[index, 1:].cpu() + torch.tensor([-0.5, -0.5, last, last])
    _outline(axes, box[None], color=YELLOW, linewidth=2.2, label="box")


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


def _draw_photo(axes: Axes, photo: Tensor) -> None:
    axes.imshow(photo.detach().cpu().permute(1, 2, 0).clamp(0, 1).numpy())
    axes.set(xlim=(-0.5, photo.shape[2] - 0.5), ylim=(photo.shape[1] - 0.5, -0.5))
    axes.autoscale(False)
    axes.set_axis_off()


def _mark(axes: Axes, place: Sequence[float], marker: str, colour: str) -> None:
    y, x = place
    edge: dict[str, Any] = {"edgecolors": "black"} if marker == "s" else {}
    axes.scatter([x], [y], s=48, c=colour, marker=marker, linewidths=1.5, zorder=3, **edge)


def _outline(axes: Axes, boxes: Tensor, **style: Any) -> None:
    """Draw `[P, 4]` boxes (x1, y1, x2, y2) as one line that is lifted between them."""
    x1, y1, x2, y2 = boxes.double().unbind(1)
    lift = torch.full_like(x1, torch.nan)
    x, y = torch.stack([x1, x2, x2, x1, x1, lift], 1), torch.stack([y1, y1, y2, y2, y1, lift], 1)
    axes.plot(x.flatten(), y.flatten(), **style)


def _tap_index(kernel_size: Pair, tap: Pair) -> int:
    if not (0 <= tap[0] < kernel_size[0] and 0 <= tap[1] < kernel_size[1]):
        raise ValueError(f"tap must lie in the kernel {kernel_size}, got {tap}")
    return tap[0] * kernel_size[1] + tap[1]
