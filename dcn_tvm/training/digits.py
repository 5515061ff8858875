"""Scenes of handwritten digits: real strokes, many sizes, rotations and shears, no network needed.

The digits are scikit-learn's (1797 of 8 x 8 pixels, from the UCI repository). The scenes of one
split use digits of that split only. A scene is a function of its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

CLASSES = 10  # digit d has label d + 1, the background 0
TRAIN_DIGITS = 1347  # the first three quarters; scenes to judge by show the others
MOST_DIGITS = 5
INK = 0.35  # coverage from which a pixel belongs to a digit
NOISE = 0.04
TRIES = 24


@dataclass(frozen=True)
class Variation:
    """How digits differ in a scene.

    Attributes:
        sides: pixels of a digit's frame, the least and the most, log-uniform.
        turn_degrees: the most that a digit is turned, either way; beyond 45 a 6 would be a 9.
        shear: the most that a digit is sheared, either way.
    """

    sides: tuple[float, float]
    turn_degrees: float
    shear: float


UPRIGHT = Variation((22.0, 30.0), 0.0, 0.0)
VARIED = Variation((12.0, 58.0), 45.0, 0.6)


@dataclass(frozen=True)
class Scenes:
    """Canvases with what is on them.

    Attributes:
        images: `[N, 1, S, S]`, mostly within [0, 1].
        labels: `[N, S, S]` int64: digit + 1 where there is ink, 0 elsewhere.
        boxes: for each canvas `[L, 4]`, the rows (x1, y1, x2, y2) around each digit's ink.
        digits: for each canvas `[L]` int64, digit + 1.
    """

    images: Tensor
    labels: Tensor
    boxes: list[Tensor]
    digits: list[Tensor]

    def __len__(self) -> int:
        """Return the number of canvases."""
        return len(self.images)

    def targets(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """Return what torchvision's detectors are taught with."""
        return [{"boxes": self.boxes[i], "labels": self.digits[i]} for i in indices]


@cache
def load(train: bool) -> tuple[Tensor, Tensor]:
    """Return the digits of a split, `[M, 1, 8, 8]` in [0, 1], and their classes `[M]`."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    pictures = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    split = slice(None, TRAIN_DIGITS) if train else slice(TRAIN_DIGITS, None)
    return pictures[split], torch.from_numpy(classes).long()[split]


@cache
def make_scenes(
    count: int, size: int, *, train: bool, seed: int, variation: Variation = VARIED
) -> Scenes:
    """Return `count` canvases of `size` x `size` pixels.

    Kept in memory: runs of a plan share them.

    Args:
        count: canvases.
        size: side S of a canvas in pixels.
        train: which digits to take.
        seed: of everything random; canvas i depends on seed and i only.
        variation: how digits differ.
    """
    seeds = range(seed * 1_000_003, seed * 1_000_003 + count)
    made = [_make_scene(size, train, variation, seed) for seed in seeds]
    images, labels, boxes, digits = zip(*made, strict=True)
    return Scenes(torch.stack(images), torch.stack(labels), list(boxes), list(digits))


def _make_scene(
    size: int, train: bool, variation: Variation, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    pictures, classes = load(train)
    wanted = int(torch.randint(1, MOST_DIGITS + 1, (), generator=random))
    image, labels = torch.zeros(size, size), torch.zeros(size, size, dtype=torch.int64)
    boxes: list[Tensor] = []
    digits: list[Tensor] = []
    for _ in range(TRIES):
        which = int(torch.randint(len(pictures), (), generator=random))
        ink = _place(pictures[which], size, variation, random)
        inside = ink > INK
        box = _box(inside)
        if box is None or any(_touch(box, other) for other in boxes):
            continue
        image = torch.maximum(image, ink)
        labels[inside] = classes[which] + 1
        boxes.append(box)
        digits.append(classes[which] + 1)
        if len(boxes) == wanted:
            break
    image = image + _background(size, random)
    found = torch.stack(boxes) if boxes else torch.zeros(0, 4)
    named = torch.stack(digits) if digits else torch.zeros(0, dtype=torch.int64)
    return image[None], labels, found, named


def _place(picture: Tensor, size: int, variation: Variation, random: torch.Generator) -> Tensor:
    """Return a digit at a random place, size, rotation and shear: coverage `[S, S]`."""
    draw = torch.rand(5, generator=random)
    least, most = variation.sides
    side = least * (min(most, size) / least) ** float(draw[0])
    angle = math.radians(variation.turn_degrees * float(2 * draw[1] - 1))
    shear = variation.shear * float(2 * draw[2] - 1)
    centre = side / 2 + draw[3:] * (size - side)
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cosine, sine], [-sine, cosine]])
    back = torch.tensor([[1.0, -shear], [0.0, 1.0]]) @ turn * (2 / side)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    grid = torch.stack([x - centre[0], y - centre[1]], -1) @ back.T
    ink = functional.grid_sample(picture[None], grid[None], mode="bicubic", align_corners=False)
    return ink[0, 0].clamp(0, 1)


def _background(size: int, random: torch.Generator) -> Tensor:
    """Return uneven light and noise `[S, S]`."""
    light = 0.3 * torch.rand(1, 1, 4, 4, generator=random)
    smooth = functional.interpolate(light, size=(size, size), mode="bicubic", align_corners=True)
    return smooth[0, 0] + NOISE * torch.randn(size, size, generator=random)


def _box(inside: Tensor) -> Tensor | None:
    """Return (x1, y1, x2, y2) around the pixels, the last ones outside, or None without any."""
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    if not len(rows):
        return None
    edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return torch.cat(edges).float()


def _touch(one: Tensor, other: Tensor) -> bool:
    corner, end = torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])
    return bool((end > corner).all())
