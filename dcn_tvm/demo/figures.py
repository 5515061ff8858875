"""The pictures of the demonstration's report, each as a `data:` URI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from dcn_tvm.demo.lesson import STRIDE, Lesson
from dcn_tvm.report import inline_png
from dcn_tvm.viz import SampledLayer, draw_sampling_points, draw_times, sampling_points

matplotlib.use("Agg")  # pictures go to a file: no display is needed

# Units whose sampling points are drawn, (row, column) in the map: a star, the eyes, the ribbons.
UNITS = ((14, 12), (24, 33), (62, 48))


def draw_points(
    lesson: Lesson, before: Sequence[SampledLayer], after: Sequence[SampledLayer]
) -> str:
    """Draw what three units read before and after training over the tilted photograph."""
    figure = Figure(figsize=(11, 6.2))
    pixels = [[STRIDE * y, STRIDE * x] for y, x in UNITS]
    goals = [(STRIDE * lesson.origin[unit]).tolist() for unit in UNITS]
    titles = ("before training: the regular grid", "after: the points moved to the content")
    for axes, layers, title in zip(figure.subplots(1, 2), (before, after), titles, strict=True):
        points = [STRIDE * sampling_points(layers, unit) for unit in UNITS]
        draw_sampling_points(axes, lesson.seen[0], points, pixels, goals)
        axes.set_title(title, fontsize=11)
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
