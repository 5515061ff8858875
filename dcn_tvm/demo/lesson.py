"""What the demonstration teaches a small network: to look through a camera held askew.

A camera held askew took the photograph; a small network sees the tilted picture and must give the
upright one. Its three deformable layers can do that only by looking elsewhere, by up to a dozen
pixels of their map, so training moves the sampling points to where each pixel's content is, and
because the tilt is known the distance that remains can be told. The same network with plain
convolutions learns what it can.

The photograph, Grace Hopper's portrait by the United States Navy (public domain), ships with
matplotlib; she wrote the first compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcn_tvm.nn import DeformConv2dPack, parameter_groups
from dcn_tvm.viz import SampledLayer, record_offsets

SIZE = (288, 256)
STRIDE = 4  # pixels of the photograph per pixel of the feature map
CHANNELS = 62  # with the two coordinates a deformable layer reads 64
LAYERS = 3
TILT_DEGREES = 12.0
ZOOM = 1.1
LEARNING_RATE = 3e-3
OFFSET_RATE = 0.4
COORDINATE_RANGE = 4.0  # with less the offsets learn a tilt slowly, from features instead

Op = Callable[..., Tensor]


class Extractor(nn.Module):
    """Two strided convolutions, three deformable 3×3 layers, and a head that paints.

    Every deformable layer is told where it is by two channels of coordinates, so that a tilt is
    within reach of its offset convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1),
            nn.ReLU(),
        )
        self.layers = nn.ModuleList(
            DeformConv2dPack(CHANNELS + 2, CHANNELS, 3, padding=1) for _ in range(LAYERS)
        )
        self.head = nn.Conv2d(CHANNELS, 3, 1)

    def forward(self, image: Tensor, op: Op | None = None) -> Tensor:
        """Return the picture `[N, 3, H/4, W/4]`; `op` stands in for the layers' own operator."""
        picture: Tensor = self.head(self.run_layers(image, op)[-1][:, :CHANNELS])
        return picture

    @property
    def packs(self) -> list[DeformConv2dPack]:
        """The deformable layers."""
        return [layer for layer in self.layers if isinstance(layer, DeformConv2dPack)]

    def run_layers(self, image: Tensor, op: Op | None = None) -> list[Tensor]:
        """Return the input of every deformable layer and, last, of what comes after them."""
        maps = [_with_coordinates(self.stem(image))]
        for layer in self.packs:
            maps.append(_with_coordinates(_apply(layer, maps[-1], op).relu()))
        return maps

    @torch.no_grad()
    def sampled(self, image: Tensor) -> list[SampledLayer]:
        """Return the deformable layers with the offsets that they make of `image`."""
        with record_offsets(self) as recorded:
            self.run_layers(image)
        return [layer for layer in recorded.values() if isinstance(layer, SampledLayer)]


def _apply(layer: DeformConv2dPack, input: Tensor, op: Op | None) -> Tensor:
    if op is None:
        own: Tensor = layer(input)
        return own
    return op(input, layer.conv_offset(input), layer.weight, layer.bias, padding=layer.padding)


def plain_convolution(
    input: Tensor, _: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]
) -> Tensor:
    """Convolve where the layer is, whatever the offsets say."""
    return functional.conv2d(input, weight, bias, padding=padding)


def _with_coordinates(map_: Tensor) -> Tensor:
    axes = [
        torch.linspace(-COORDINATE_RANGE, COORDINATE_RANGE, size).to(map_)
        for size in map_.shape[2:]
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.cat([map_, grid.expand(len(map_), -1, -1, -1)], dim=1)


class Lesson(NamedTuple):
    """What the network sees and what it must give.

    Attributes:
        seen: the tilted photograph `[1, 3, H, W]`.
        wanted: the upright one at the map's size `[1, 3, H/4, W/4]`.
        origin: where each pixel of the map is found in the map of the tilted photograph,
            `[H/4, W/4, 2]`, (y, x).
        visible: whether that lies inside, `[H/4, W/4]`.
    """

    seen: Tensor
    wanted: Tensor
    origin: Tensor
    visible: Tensor


def load_photo() -> Tensor:
    """Return the photograph, `[1, 3, H, W]` in [0, 1]."""
    import matplotlib
    from PIL import Image

    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    image = Image.open(path).convert("RGB")
    image = image.resize((SIZE[1], round(image.height * SIZE[1] / image.width)))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    photo = pixels.view(image.height, image.width, 3).permute(2, 0, 1)
    return photo[None, :, : SIZE[0]].float() / 255


def make_lesson(photo: Tensor) -> Lesson:
    """Tilt the photograph about its centre and zoom out."""
    seen = functional.grid_sample(
        photo, _turned(SIZE, TILT_DEGREES, ZOOM), align_corners=True, padding_mode="border"
    )
    wanted = functional.avg_pool2d(photo, STRIDE + 1, STRIDE, STRIDE // 2, count_include_pad=False)
    height, width = size = tuple(wanted.shape[2:])
    back = _turned(SIZE, -TILT_DEGREES, 1 / ZOOM)[0, ::STRIDE, ::STRIDE].flip(-1)
    origin = (back + 1) / 2 * (torch.tensor(SIZE) - 1) / STRIDE
    visible = ((origin >= 1) & (origin <= torch.tensor(size) - 2)).all(-1)
    assert origin.shape == (height, width, 2)
    return Lesson(seen, wanted, origin, visible)


def _turned(size: tuple[int, int], degrees: float, zoom: float) -> Tensor:
    """Return, for every pixel, (x, y) in [-1, 1] of the place turned about the centre."""
    y, x = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    cosine, sine = (zoom * f(math.radians(degrees)) for f in (math.cos, math.sin))
    turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)
    return turned[None] / ((torch.tensor(size).flip(0) - 1) / 2)


def lesson_loss(picture: Tensor, lesson: Lesson) -> Tensor:
    """Return the mean absolute difference over what can be known."""
    return (picture - lesson.wanted).abs()[..., lesson.visible].mean()


def train(
    network: Extractor, lesson: Lesson, op: Op | None, step_done: Callable[[], None], steps: int
) -> list[float]:
    """Train with Adam, the offsets at a lower rate, and return the loss at every step."""
    optimiser = torch.optim.Adam(parameter_groups(network, LEARNING_RATE, OFFSET_RATE))
    losses = []
    for _ in range(steps):
        loss = lesson_loss(network(lesson.seen, op), lesson)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
        step_done()
    return losses
