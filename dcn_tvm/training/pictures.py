"""The pictures of the training's report, each as a `data:` URI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from dcn_tvm.analysis import SIZES, DilationRow
from dcn_tvm.report import inline_png
from dcn_tvm.training.digits import Scenes
from dcn_tvm.training.loop import Outcome
from dcn_tvm.training.network import DigitBackbone
from dcn_tvm.training.tasks import LABELS, look
from dcn_tvm.viz import (
    SampledBins,
    SampledLayer,
    draw_bins,
    draw_offsets,
    draw_sampling_points,
    record_offsets,
)

matplotlib.use("Agg")  # pictures go to a file: no display is needed

COLOURS = {"plain": "#4363d8", "deformable": "#e6194b"}
SHOWN_SCORE = 0.3


def draw_losses(outcomes: Sequence[Outcome]) -> str:
    """Draw the loss of each run, smoothed, one panel for each task."""
    tasks = list(dict.fromkeys(o.run.task for o in outcomes))
    figure = Figure(figsize=(3.8 * len(tasks), 3), layout="compressed")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for outcome in (o for o in outcomes if o.run.task == task):
            side = outcome.run.variant
            label = side if outcome.run.seed == 0 else None
            axes.plot(_smooth(outcome.losses), color=COLOURS[side], lw=1.2, label=label)
        axes.set(title=task.replace("_", " "), xlabel="step", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return inline_png(figure)


def draw_segmentations(networks: Mapping[str, nn.Module], scenes: Scenes, which: list[int]) -> str:
    """Draw scenes, what is on them, and what the networks see on them."""
    rows: dict[str, Tensor] = {"scene": scenes.images[which][:, 0], "truth": scenes.labels[which]}
    rows |= {name: look(net, scenes, which).argmax(1) for name, net in networks.items()}
    figure = Figure(figsize=(1.75 * len(which), 1.8 * len(rows)), layout="compressed")
    grid = figure.subplots(len(rows), len(which), squeeze=False)
    for line, (title, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            classes: dict[str, object] = {"cmap": _palette(), "vmin": 0, "vmax": LABELS}
            grey = {"cmap": "gray", "vmin": 0, "vmax": 1.2}
            axes.imshow(
                picture.numpy(), interpolation="nearest", **(grey if title == "scene" else classes)
            )
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=11)
    colours = [_palette()((digit + 1.5) / LABELS) for digit in range(LABELS - 1)]
    marks = [Line2D([], [], marker="s", ls="", color=c) for c in colours]
    names = [str(digit) for digit in range(LABELS - 1)]
    figure.legend(marks, names, loc="outside lower center", ncols=10, frameon=False, fontsize=9)
    return inline_png(figure)


def draw_detections(networks: Mapping[str, nn.Module], scenes: Scenes, which: list[int]) -> str:
    """Draw the boxes that networks find with some certainty: right ones green, others red."""
    figure = Figure(figsize=(2.1 * len(which), 2.2 * len(networks)), layout="compressed")
    grid = figure.subplots(len(networks), len(which), squeeze=False)
    for line, (title, network) in zip(grid, networks.items(), strict=True):
        for axes, number, found in zip(line, which, look(network, scenes, which), strict=True):
            axes.imshow(scenes.images[number][0].numpy(), cmap="gray", vmin=0, vmax=1.2)
            axes.set(xticks=[], yticks=[])
            certain = found["scores"] > SHOWN_SCORE
            for box, label in zip(found["boxes"][certain], found["labels"][certain], strict=True):
                _draw_box(axes, box, int(label), scenes, number)
        line[0].set_ylabel(title, fontsize=11)
    return inline_png(figure)


def draw_reach(network: nn.Module, scenes: Scenes, number: int) -> str:
    """Draw figures 5 and 6: what one filter on the background, a small and a large digit reads."""
    layers = convolutions(network, scenes, number)
    boxes = scenes.boxes[number]
    order = torch.argsort(_areas(boxes))
    places = {"background": _empty_place(boxes, scenes.images.shape[-1])}
    places |= {"small digit": _middle(boxes[order[0]]), "large digit": _middle(boxes[order[-1]])}
    figure = Figure(figsize=(11, 3.9), layout="compressed")
    for axes, (title, (y, x)) in zip(figure.subplots(1, 3), places.items(), strict=True):
        rows, columns = layers[-1].offset.shape[2:]
        row = min(round(y / DigitBackbone.stride), rows - 1)
        column = min(round(x / DigitBackbone.stride), columns - 1)
        draw_sampling_points(
            axes, _photo(scenes, number), layers, [(row, column)], stride=DigitBackbone.stride
        )
        axes.set_title(f"a filter on: {title}", fontsize=11)
    return inline_png(figure)


def draw_fields(network: nn.Module, scenes: Scenes, number: int) -> str:
    """Draw the offset field of every deformable convolution."""
    layers = convolutions(network, scenes, number)
    figure = Figure(figsize=(11, 4.3), layout="compressed")
    panels = zip(figure.subplots(1, len(layers)), layers, "abc", strict=True)
    for axes, layer, letter in panels:
        arrows = draw_offsets(axes, _photo(scenes, number), layer, stride=DigitBackbone.stride)
        axes.set_title(f"res5{letter}", fontsize=11)
        bar = figure.colorbar(arrows, ax=axes, orientation="horizontal", pad=0.02, shrink=0.9)
        bar.set_label("mean length of the offsets, pixels", fontsize=9)
    return inline_png(figure)


def draw_pooling(network: nn.Module, scenes: Scenes, which: list[int]) -> str:
    """Draw figure 7: the moved bins of the best detection's proposal in each scene."""
    figure = Figure(figsize=(2.7 * len(which), 3), layout="compressed")
    for axes, number in zip(figure.subplots(1, len(which), squeeze=False)[0], which, strict=True):
        with record_offsets(network) as recorded:
            found = look(network, scenes, [number])[0]
        pools = [r for r in recorded.values() if isinstance(r, SampledBins)]
        bins = max(pools, key=lambda pool: pool.classes)
        label = int(found["labels"][0]) if len(found["labels"]) else 0
        nearest = _nearest(bins.boxes[:, 1:], found["boxes"][:1], scenes.boxes[number])
        moving = min(label, bins.classes - 1)
        draw_bins(axes, _photo(scenes, number), bins, nearest, offset_class=moving)
        axes.set_title(f"taken for a {label - 1}" if label else "no detection", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, facecolor="0.6")
    return inline_png(figure)


def draw_dilation(rows: Mapping[str, Sequence[DilationRow]]) -> str:
    """Draw the effective dilation by layer and size of object, one panel for each network."""
    figure = Figure(figsize=(3.8 * len(rows), 3), layout="compressed")
    panels = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
    for axes, (title, found) in zip(panels, rows.items(), strict=True):
        layers = list(dict.fromkeys(row.layer for row in found))
        for index, layer in enumerate(layers):
            own = {row.size: row for row in found if row.layer == layer}
            means, spread = ([getattr(own[s], k) for s in SIZES] for k in ("mean", "std"))
            places = [place + 0.12 * (index - 1) for place in range(len(SIZES))]
            axes.errorbar(places, means, spread, fmt="o", capsize=3, label=short_name(layer))
        axes.axhline(2, color="grey", lw=0.8, ls=":")
        axes.set_xticks(range(len(SIZES)), SIZES)
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("effective dilation, pixels of the map")
    panels[0].set_ylim(bottom=0)
    return inline_png(figure)


def convolutions(network: nn.Module, scenes: Scenes, number: int) -> list[SampledLayer]:
    """Return what the deformable convolutions do on one scene, from the first to the last."""
    with record_offsets(network) as recorded:
        look(network, scenes, [number])
    return [record for record in recorded.values() if isinstance(record, SampledLayer)]


def short_name(layer: str) -> str:
    """Return the block's name of a layer: "res5a" of "backbone.res5a.conv2"."""
    return next(part for part in layer.split(".") if part.startswith("res"))


def _photo(scenes: Scenes, number: int) -> Tensor:
    return scenes.images[number].expand(3, -1, -1).clamp(0, 1)


def _draw_box(axes: Axes, box: Tensor, label: int, scenes: Scenes, number: int) -> None:
    from torchvision.ops import box_iou

    truth, digits = scenes.boxes[number], scenes.digits[number]
    right = len(truth) > 0 and bool(
        ((box_iou(box[None], truth)[0] > 0.5) & (digits == label)).any()
    )
    colour = "#3cb44b" if right else "#e6194b"
    x1, y1, x2, y2 = box.tolist()
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.5))
    axes.text(x1 + 1, y1 + 1, str(label - 1), color=colour, fontsize=9, va="top", weight="bold")


def _nearest(boxes: Tensor, found: Tensor, truth: Tensor) -> int:
    """Return which of the pooled boxes lies closest on a detection, or on the first digit."""
    from torchvision.ops import box_iou

    goal = found if len(found) else truth[:1]
    return int(box_iou(boxes, goal)[:, 0].argmax())


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _middle(box: Tensor) -> tuple[float, float]:
    x1, y1, x2, y2 = box.tolist()
    return (y1 + y2) / 2, (x1 + x2) / 2


def _empty_place(boxes: Tensor, size: int) -> tuple[float, float]:
    """Return the place of a coarse grid that is furthest from all digits and not at the border."""
    grid = torch.cartesian_prod(*(torch.arange(size // 8, size, size // 8).float(),) * 2)
    low, high = boxes[:, None, [1, 0]] - grid, grid - boxes[:, None, [3, 2]]
    distance = torch.maximum(low, high).clamp(min=0).norm(dim=2).amin(0)
    y, x = grid[distance.argmax()].tolist()
    return y, x


def _palette() -> Colormap:
    digits = matplotlib.colormaps["tab10"]
    return ListedColormap(["#202020", *(digits(number) for number in range(LABELS - 1))])


def _smooth(losses: Sequence[float], memory: float = 0.95) -> list[float]:
    """Return a running mean that forgets."""
    smooth: list[float] = []
    for loss in losses:
        smooth.append(memory * smooth[-1] + (1 - memory) * loss if smooth else loss)
    return smooth
