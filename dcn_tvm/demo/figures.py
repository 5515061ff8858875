"""The pictures of the demonstration's report, each as a `data:` URI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from dcn_tvm.demo.lesson import STRIDE, Lesson
from dcn_tvm.demo.pooling import Moved
from dcn_tvm.report import inline_png
from dcn_tvm.viz import SampledLayer, draw_bins, draw_offsets, draw_sampling_points, draw_times

matplotlib.use("Agg")  # pictures go to a file: no display is needed

# Units whose sampling points are drawn, (row, column) in the map: a star, the eyes, the ribbons.
UNITS = ((14, 12), (24, 33), (62, 48))


def draw_points(
    lesson: Lesson, before: Sequence[SampledLayer], after: Sequence[SampledLayer]
) -> str:
    """Draw what three units read before and after training over the tilted photograph."""
    figure = Figure(figsize=(11, 6.2))
    goals = [(STRIDE * lesson.origin[unit]).tolist() for unit in UNITS]
    titles = ("before training: the regular grid", "after: the points moved to the content")
    for axes, layers, title in zip(figure.subplots(1, 2), (before, after), titles, strict=True):
        draw_sampling_points(axes, lesson.seen[0], layers, UNITS, stride=STRIDE, goals=goals)
        axes.set_title(title, fontsize=11)
    return inline_png(figure)


def draw_fields(lesson: Lesson, layers: Sequence[SampledLayer]) -> str:
    """Draw the offset field of every layer over the tilted photograph."""
    figure = Figure(figsize=(11, 4.2), layout="compressed")
    numbered = enumerate(zip(figure.subplots(1, len(layers)), layers, strict=True), 1)
    for number, (axes, layer) in numbered:
        arrows = draw_offsets(axes, lesson.seen[0], layer, stride=STRIDE)
        axes.set_title(f"layer {number}", fontsize=11)
        bar = figure.colorbar(arrows, ax=axes, orientation="horizontal", pad=0.02, shrink=0.9)
        bar.set_label("mean length of the offsets, pixels", fontsize=9)
    return inline_png(figure)


def draw_pooling(lesson: Lesson, moved: Moved) -> str:
    """Draw the moved bins over the tilted photograph, and what they hold."""
    figure = Figure(figsize=(11, 3.4), layout="compressed")
    panels = figure.subplots(1, 1 + len(moved.pooled), width_ratios=[1.2, 1, 1, 1])
    draw_bins(panels[0], lesson.seen[0], moved.bins, 0)
    panels[0].set_title("deformable RoI pooling", fontsize=11)
    for axes, (title, picture) in zip(panels[1:], moved.pooled.items(), strict=True):
        axes.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy())
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, facecolor="0.6")
    return inline_png(figure)


def draw_pictures(lesson: Lesson, pictures: Mapping[str, Tensor]) -> str:
    """Draw what the network sees, what it must give, and what it gives, in this order."""
    small = functional.interpolate(lesson.seen, size=lesson.wanted.shape[2:], mode="area")
    shown = {"seen": small, "wanted": lesson.wanted, **pictures}
    figure = Figure(figsize=(11, 3.4))
    for axes, (title, picture) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        visible = torch.where(lesson.visible | (title == "seen"), picture[0], 1.0)
        axes.imshow(visible.permute(1, 2, 0).clamp(0, 1).numpy())
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    return inline_png(figure)


def draw_losses(losses: Mapping[str, Sequence[float]]) -> str:
    """Draw the loss at every step."""
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    for name, values in losses.items():
        axes.plot(values, label=name)
    axes.set(xlabel="step", ylabel="mean absolute difference", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return inline_png(figure)


def draw_bars(times_ms: Mapping[str, Mapping[str, float]]) -> str:
    """Draw the times."""
    figure = Figure(figsize=(9, 4.5))
    draw_times(figure.subplots(), times_ms)
    return inline_png(figure)
