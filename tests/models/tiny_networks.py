"""Networks small enough to train in a test, with and without deformable layers."""

from typing import Any

import torch
from torch import Tensor, nn

from dcn_tvm.models import RFCN, ClassAwareRPN, DeepLab, DetectionOptions, FasterRCNN
from dcn_tvm.nn import DeformConv2dPack

SIZE = 48
EVERY = 10**6  # a batch so large that all boxes are drawn, and chance has no part

# Every anchor and every proposal takes part.
OPTIONS = DetectionOptions(
    min_size=SIZE,
    max_size=SIZE,
    anchor_sizes=(12.0, 24.0),
    anchor_ratios=(1.0,),
    rpn_channels=8,
    rpn_batch_per_image=EVERY,
    rpn_positive_fraction=0.5,
    proposals_before_nms=50,
    proposals=12,
    roi_batch_per_image=EVERY,
    score_threshold=0.01,
)


class TinyBackbone(nn.Module):
    """A backbone of one's own: three convolutions, stride 8."""

    def __init__(self, deformable: bool = False, maps: tuple[str, ...] = ("res4", "res5")) -> None:
        super().__init__()
        self.out_channels = dict.fromkeys(maps, 8)
        self.stride = 8
        self.stem = nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.conv4 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        layer: Any = DeformConv2dPack if deformable else nn.Conv2d
        self.conv5 = layer(8, 8, 3, padding=2, dilation=2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        res4 = self.conv4(self.stem(images).relu()).relu()
        maps = {"res4": res4, "res5": self.conv5(res4).relu()}
        return {name: maps[name] for name in self.out_channels}


HEADS: dict[str, Any] = {
    "deeplab": lambda backbone, _: DeepLab(backbone, 3, reduced=8),
    "rpn": lambda backbone, _: ClassAwareRPN(backbone, 3, reduced=8, options=OPTIONS),
    "faster_rcnn": lambda backbone, pool: FasterRCNN(
        backbone, 3, pool=pool, reduced=8, pooled=8, bins=2, hidden=8, options=OPTIONS
    ),
    "rfcn": lambda backbone, pool: RFCN(backbone, 3, pool=pool, reduced=8, bins=2, options=OPTIONS),
}
DETECTORS = ("rpn", "faster_rcnn", "rfcn")


def network(head: str, conv: bool = False, pool: bool = False) -> Any:
    """Return a head on a tiny backbone; the same plain weights for the same seed."""
    torch.manual_seed(3)
    model = HEADS[head](TinyBackbone(), "deformable" if pool else "plain")
    if conv:
        plain = model.state_dict()
        model = HEADS[head](TinyBackbone(deformable=True), "deformable" if pool else "plain")
        model.load_state_dict(plain, strict=False)
    return model


def boxes_of(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).reshape(-1, 4)


def batch(head: str) -> tuple[Any, Any]:
    """Return images and targets, as the head takes them: a bright square of each class."""
    images = torch.rand(2, 3, SIZE, SIZE) * 0.3
    images[0, :, 6:18, 8:20] += 0.7
    images[1, 0, 20:44, 16:40] += 0.7
    if head == "deeplab":
        labels = torch.zeros(2, SIZE, SIZE, dtype=torch.int64)
        labels[0, 6:18, 8:20], labels[1, 20:44, 16:40], labels[:, :2] = 1, 2, 255
        return images, labels
    targets = [
        {"boxes": boxes_of((8.0, 6, 20, 18)), "labels": torch.tensor([1])},
        {"boxes": boxes_of((16.0, 20, 40, 44)), "labels": torch.tensor([2])},
    ]
    return list(images), targets
