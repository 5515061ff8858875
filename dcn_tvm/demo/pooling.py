"""Deformable RoI pooling on the same photograph: bins that find the content of an upright box.

The bins of a box in the tilted photograph are moved, by the gradient of their offsets alone, until
they hold what the bins of the same box hold in the upright one. Where each bin's content really is,
is known. Blurred copies of the photograph, as channels, tell a bin the way from afar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dcn_tvm.demo.lesson import STRIDE, Lesson
from dcn_tvm.functional import deform_roi_pool
from dcn_tvm.viz import SampledBins, bin_boxes

BOX = (0, 60.0, 24.0, 200.0, 176.0)  # her head: (image, x1, y1, x2, y2) in the photograph's pixels
BINS = 5
GAMMA = 0.1
BLURS = (1.0, 3.0, 6.0, 10.0)  # pixels of the map
LEARNING_RATE = 0.1  # of an offset, which is ten times the move in sides of the box


@dataclass(frozen=True)
class Moved:
    """What learning brought.

    Attributes:
        bins: where they are after it.
        pooled: what the bins hold, pictures `[3, BINS, BINS]`: wanted, before and after.
        misplacement_before: how far the bins were from their content, on average, in pixels.
        misplacement_after: how far they are.
    """

    bins: SampledBins
    pooled: dict[str, Tensor]
    misplacement_before: float
    misplacement_after: float


def move_bins(lesson: Lesson, step_done: Callable[[], None], steps: int) -> Moved:
    """Let the offsets of deformable RoI pooling learn where the box's content is.

    Source: Dai et al., Deformable Convolutional Networks, section 2.2 and figure 7.
    """
    small = functional.avg_pool2d(  # centred as the upright one is: see `make_lesson`
        lesson.seen, STRIDE + 1, STRIDE, STRIDE // 2, count_include_pad=False
    )
    seen = _blurred(small)
    box = torch.tensor([BOX])
    offset = torch.zeros(1, 2, BINS, BINS, requires_grad=True)
    pooled = {
        "wanted": deform_roi_pool(_blurred(lesson.wanted), box, None, BINS, 1 / STRIDE),
        "before": deform_roi_pool(seen, box, None, BINS, 1 / STRIDE),
    }
    before = _misplacement(_look(offset, lesson), lesson)
    optimiser = torch.optim.Adam([offset], LEARNING_RATE)
    for _ in range(steps):
        found = deform_roi_pool(seen, box, offset, BINS, 1 / STRIDE, gamma=GAMMA)
        optimiser.zero_grad()
        torch.autograd.backward((found - pooled["wanted"]).abs().sum())
        optimiser.step()
        step_done()
    pooled["after"] = deform_roi_pool(seen, box, offset, BINS, 1 / STRIDE, gamma=GAMMA).detach()
    moved = _look(offset, lesson)
    pictures = {title: values[0, :3] for title, values in pooled.items()}
    return Moved(moved, pictures, before, _misplacement(moved, lesson))


def _look(offset: Tensor, lesson: Lesson) -> SampledBins:
    height, width = lesson.wanted.shape[2:]
    moves = offset.detach().clone()
    scale = 1 / STRIDE
    box = torch.tensor([BOX])
    return SampledBins(box, moves, (height, width), (BINS, BINS), scale, GAMMA, "paper")


def _misplacement(bins: SampledBins, lesson: Lesson) -> float:
    """Return how far the bins are, on average, from their content, in pixels."""
    regular, moved = (_centres(bin_boxes(bins, 0, moved=m)) for m in (False, True))
    row, column = regular.round().long().unbind(-1)
    # Within half a pixel the content moves as the pixel does.
    goal = lesson.origin[row, column] + regular - regular.round()
    return STRIDE * float((moved - goal).norm(dim=-1).mean())


def _centres(edges: Tensor) -> Tensor:
    """Return the centres (y, x) of boxes `[..., 4]`."""
    return (edges[..., [1, 0]] + edges[..., [3, 2]]) / 2


def _blurred(picture: Tensor) -> Tensor:
    """Return blurred copies of a picture `[1, 3, H, W]` as channels, the sharpest first."""
    return torch.cat([_blur(picture, sigma) for sigma in BLURS], 1)


def _blur(picture: Tensor, sigma: float) -> Tensor:
    reach = round(3 * sigma)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    row = (bell / bell.sum()).expand(picture.shape[1], 1, 1, -1)
    padded = functional.pad(picture, (reach,) * 4, mode="replicate")
    lines = functional.conv2d(padded, row, groups=picture.shape[1])
    return functional.conv2d(lines, row.transpose(2, 3), groups=picture.shape[1])
