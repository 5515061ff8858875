"""Table 4 of the paper: parameters and forward time of whole networks, plain and deformable.

ResNet-101, res5a to res5c with one offset group; the detectors' RoI pooling is deformable too. Both
networks have the same random weights, batch normalisation has the statistics of the image, so that
a detector proposes as many regions as a trained one, and the offsets are scaled to a spread of two
pixels, so that samples lie between pixels and apart. A third contender is the deformable network
with torchvision's deformable convolution in the place of ours; RoI pooling stays ours, for
torchvision has no deformable one.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import ops

from dcn_tvm import measure
from dcn_tvm.agreement import TOLERANCES, relative_error
from dcn_tvm.models import (
    RFCN,
    ClassAwareRPN,
    DeepLab,
    DetectionOptions,
    FasterRCNN,
    ResNet,
    resnet101,
)
from dcn_tvm.nn import DeformPSRoIPoolPack, DeformRoIPoolPack, conv
from dcn_tvm.report import Machine

BLOCKS = ("res5a", "res5b", "res5c")
OFFSET_PIXELS = 2.0  # standard deviation; the paper's filters spread by 2 to 8 pixels
OFFSET_FRACTION = 1.0  # of RoI offsets, before gamma: a tenth of the box
VOC_CLASSES, CITYSCAPES_CLASSES = 21, 20  # the background counted

Build = Callable[[ResNet, str, DetectionOptions], nn.Module]


@dataclass(frozen=True)
class Network:
    """A network of the paper's table 4 and what the table says of it.

    Attributes:
        name: as in the table.
        size: (height, width) of the image, its shorter side the paper's.
        build: makes it from a backbone, "plain" or "deformable" RoI pooling and options.
        paper_parameters: of the plain and of the deformable network, in millions.
        paper_seconds: net forward times of both on a Tesla K40; None where the table's row is cut.
    """

    name: str
    size: tuple[int, int]
    build: Build
    paper_parameters: tuple[float, float]
    paper_seconds: tuple[float, float] | None


NETWORKS = (
    Network(
        "DeepLab, Cityscapes",
        (1024, 2048),
        lambda backbone, _, __: DeepLab(backbone, CITYSCAPES_CLASSES),
        (46.0, 46.1),
        None,
    ),
    Network(
        "DeepLab, VOC",
        (360, 480),
        lambda backbone, _, __: DeepLab(backbone, VOC_CLASSES),
        (46.0, 46.1),
        (0.084, 0.088),
    ),
    Network(
        "class-aware RPN",
        (600, 1000),
        lambda backbone, _, options: ClassAwareRPN(backbone, VOC_CLASSES, options=options),
        (46.0, 46.1),
        (0.142, 0.152),
    ),
    Network(
        "Faster R-CNN",
        (600, 1000),
        lambda backbone, pool, options: FasterRCNN(
            backbone, VOC_CLASSES, pool=pool, options=options
        ),
        (58.3, 59.9),
        (0.147, 0.192),
    ),
    Network(
        "R-FCN",
        (600, 1000),
        lambda backbone, pool, options: RFCN(backbone, VOC_CLASSES, pool=pool, options=options),
        (47.1, 49.5),
        (0.143, 0.169),
    ),
)


@dataclass(frozen=True)
class NetworkRow:
    """What was found of one network; times are medians, ratios medians of the rounds' own.

    Attributes:
        network: its name.
        image: its (height, width).
        parameters: of the plain and of the deformable network.
        paper_parameters: the paper's, in millions.
        ms: provider → milliseconds of a forward pass: "plain", "dcn_tvm", "torchvision".
        ratios: provider → time over the plain network's.
        paper_ratio: the paper's deformable over plain.
        proposals: of the detectors with RoI pooling, in the plain and the deformable network.
        rounds: of the rotation.
        machine: where it was measured.
        date: and when.
    """

    network: str
    image: tuple[int, int]
    parameters: tuple[int, int]
    paper_parameters: tuple[float, float]
    ms: dict[str, float]
    ratios: dict[str, float]
    paper_ratio: float | None
    proposals: tuple[int, int] | None
    rounds: int
    machine: Machine
    date: str

    @property
    def increment_millions(self) -> float:
        """Parameters that the deformable network has more."""
        return (self.parameters[1] - self.parameters[0]) / 1e6


def run(
    *, seconds: float = 60.0, min_rounds: int = 3, scale: float = 1.0, report: Callable[[str], None]
) -> list[NetworkRow]:
    """Return a row for each network.

    Args:
        seconds: for each network, once it is built; more if `min_rounds` need more.
        min_rounds: turns of each contender.
        scale: factor of the images' sides, to see in little time whether it all works.
        report: is told what is being measured.

    Raises:
        RuntimeError: with torchvision's operator the backbone computes something else.

    Source: Dai et al., Deformable Convolutional Networks, table 4.
    """
    machine = Machine.here()
    rows = []
    for network in NETWORKS:
        report(network.name)
        rows.append(_measure(network, machine, seconds, min_rounds, scale))
    return rows


@torch.no_grad()
def _measure(
    network: Network, machine: Machine, seconds: float, min_rounds: int, scale: float
) -> NetworkRow:
    torch.manual_seed(0)
    height, width = (max(32, round(side * scale)) for side in network.size)
    options = DetectionOptions(min_size=height, max_size=width)
    image = torch.rand(3, height, width)
    plain = network.build(resnet101(), "plain", options)
    _settle(plain, image)
    deformable = network.build(resnet101(BLOCKS), "deformable", options).eval()
    deformable.load_state_dict(plain.state_dict(), strict=False)
    _spread_offsets(deformable, functools.partial(_forward, deformable, image))
    _compare(deformable, image[None])
    calls = {
        "plain": functools.partial(_forward, plain, image),
        "dcn_tvm": functools.partial(_forward, deformable, image),
        "torchvision": functools.partial(_forward_torchvision, deformable, image),
    }
    timings = measure.rotate(calls, seconds=seconds, min_rounds=min_rounds)
    paper = network.paper_seconds
    return NetworkRow(
        network.name,
        (height, width),
        (_count(plain), _count(deformable)),
        network.paper_parameters,
        {name: timing.median_us / 1e3 for name, timing in timings.items()},
        {name: measure.ratio(timing, timings["plain"]) for name, timing in timings.items()},
        None if paper is None else paper[1] / paper[0],
        _proposals(plain, deformable, image),
        min(len(timing.rounds) for timing in timings.values()),
        machine,
        datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _settle(network: Any, image: Tensor) -> None:
    """Give batch normalisation the statistics of the image, and leave the network in inference."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    seen = image[None] if isinstance(network, DeepLab) else network.transform([image])[0].tensors
    network.train().backbone(seen)
    network.eval()


def _proposals(plain: Any, deformable: Any, image: Tensor) -> tuple[int, int] | None:
    """Return how many regions both networks propose, None if they pool none."""
    found = []
    for network in (plain, deformable):
        if not isinstance(network, FasterRCNN | RFCN):
            return None
        network.roi_heads.register_forward_pre_hook(
            lambda _, arguments: found.append(sum(len(boxes) for boxes in arguments[1]))
        )
        _forward(network, image)
    return found[0], found[1]


def _forward(network: nn.Module, image: Tensor) -> object:
    with torch.no_grad():
        return network(image[None] if isinstance(network, DeepLab) else [image])


def _forward_torchvision(network: nn.Module, image: Tensor) -> object:
    with torchvisions_op():
        return _forward(network, image)


@contextmanager
def torchvisions_op() -> Iterator[None]:
    """Let the layers of `dcn_tvm.nn` that convolve use torchvision's operator."""

    def op(*arguments: Any, boundary: str) -> Tensor:
        assert boundary == "zeros", "torchvision knows no other"
        result: Tensor = ops.deform_conv2d(*arguments)
        return result

    layers: Any = conv
    ours = layers.deform_conv2d
    layers.deform_conv2d = op
    try:
        yield
    finally:
        layers.deform_conv2d = ours


def _spread_offsets(network: nn.Module, forward: Callable[[], object]) -> None:
    """Draw the weights of all offset heads, and scale them by what they give on the image."""
    heads = [pack for pack in network.modules() if hasattr(pack, "offset_parameters")]
    hooks = []
    for pack in heads:
        rois = isinstance(pack, DeformRoIPoolPack | DeformPSRoIPoolPack)
        last: Any = pack.offset_fc if isinstance(pack, DeformRoIPoolPack) else pack.conv_offset
        last = last[-1] if isinstance(last, nn.Sequential) else last
        nn.init.normal_(last.weight)
        wanted = OFFSET_FRACTION if rois else OFFSET_PIXELS
        hooks.append(last.register_forward_hook(functools.partial(_rescale, wanted)))
    forward()
    for hook in hooks:
        hook.remove()


def _rescale(wanted: float, layer: Any, _: object, output: Tensor) -> Tensor:
    """Scale a layer's weights, and what it has just given, to a standard deviation."""
    if output.numel() < 2:  # no proposals
        return output
    factor = wanted / output.std().clamp(min=1e-12)
    layer.weight.mul_(factor)
    return output * factor


def _compare(network: Any, image: Tensor) -> None:
    ours = network.backbone(image)["res5"]
    with torchvisions_op():
        theirs = network.backbone(image)["res5"]
    error, limit = relative_error([ours], [theirs]), 10 * TOLERANCES["float32"]
    if (
        not error <= limit
    ):  # wider than for one op: each layer's roundings move the next one's points
        raise RuntimeError(
            f"res5 with torchvision's operator is {error:.1e} off, required {limit:.1e}"
        )


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
