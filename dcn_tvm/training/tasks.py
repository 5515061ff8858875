"""What the networks learn, and how well they did: segmentation and detection of digits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcn_tvm.models import RFCN, DeepLab, DetectionOptions, FasterRCNN
from dcn_tvm.nn import DeformConv2dPack, DeformPSRoIPoolPack, DeformRoIPoolPack
from dcn_tvm.training.digits import CLASSES, Scenes
from dcn_tvm.training.network import BLOCKS, DigitBackbone
from dcn_tvm.training.plan import Run, TaskName

LABELS = CLASSES + 1  # with the background
JUDGED_AT_ONCE = 20

# The paper's multiplier for the fully connected layer is 0.01, with SGD and many more steps; this
# one is a choice for few steps of Adam, which divides a gradient by its size.
FC_RATE = 0.1


class Task(ABC):
    """A network, what it is taught with, and what it is judged by.

    Attributes:
        score: the name of the number, of those of `judge`, that tells best.
    """

    score: str

    @abstractmethod
    def network(self, deformable: bool) -> nn.Module:
        """Return a new network, with random weights but for the offset heads, which are zero."""

    @abstractmethod
    def losses(self, network: nn.Module, scenes: Scenes, indices: list[int]) -> dict[str, Tensor]:
        """Return the losses on some scenes, to be added up."""

    @abstractmethod
    def judge(self, network: nn.Module, scenes: Scenes) -> dict[str, float]:
        """Return what the network achieves on scenes that it never saw."""

    def offset_rates(self, rate: float) -> dict[type, float]:
        """Return the multipliers of the learning rate for the layers that make offsets."""
        return {
            DeformConv2dPack: rate,
            DeformPSRoIPoolPack: rate,
            DeformRoIPoolPack: rate * FC_RATE,
        }


class Segmentation(Task):
    """DeepLab: a digit or the background for each pixel; judged by the mean IoU of all classes."""

    score = "mean IoU"

    def network(self, deformable: bool) -> nn.Module:
        """Return a DeepLab."""
        return DeepLab(DigitBackbone(BLOCKS if deformable else ()), LABELS, reduced=128)

    def losses(self, network: nn.Module, scenes: Scenes, indices: list[int]) -> dict[str, Tensor]:
        """Return the cross entropy."""
        found: dict[str, Tensor] = network(scenes.images[indices], scenes.labels[indices])
        return found

    def judge(self, network: nn.Module, scenes: Scenes) -> dict[str, float]:
        """Return the mean intersection over union, and the share of ink named rightly."""
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        alone = {"sync_on_compute": False}  # one process judges while the others wait
        overlap = MulticlassJaccardIndex(LABELS, **alone)
        ink = MulticlassAccuracy(LABELS, average="micro", ignore_index=0, **alone)
        for part in portions(len(scenes)):
            classes = look(network, scenes, part).argmax(1)
            overlap.update(classes, scenes.labels[part])
            ink.update(classes, scenes.labels[part])
        return {"mean IoU": float(overlap.compute()), "ink named rightly": float(ink.compute())}


class Detection(Task):
    """A detector, its backbone and RoI pooling both plain or both deformable; judged by mAP."""

    score = "mAP@.5"

    def __init__(self, name: TaskName, size: int) -> None:
        self.name = name
        self.options = DetectionOptions(
            min_size=size,
            max_size=size,
            image_mean=(0.2,),
            image_std=(0.3,),
            anchor_sizes=(12.0, 24.0, 44.0),
            anchor_ratios=(1.0, 1.6),
            rpn_channels=96,
            rpn_batch_per_image=64,
            proposals_before_nms=300,
            proposals=60,
            roi_batch_per_image=32,  # which nearly every image fills: see `World.mean`
            score_threshold=0.02,
            detections_per_image=20,
        )

    def network(self, deformable: bool) -> nn.Module:
        """Return an R-FCN or a Faster R-CNN."""
        backbone = DigitBackbone(BLOCKS if deformable else ())
        pool = "deformable" if deformable else "plain"
        if self.name == "rfcn":
            return RFCN(backbone, LABELS, pool=pool, reduced=128, bins=3, options=self.options)
        return FasterRCNN(
            backbone,
            LABELS,
            pool=pool,
            reduced=128,
            pooled=64,
            bins=5,
            hidden=256,
            options=self.options,
        )

    def losses(self, network: nn.Module, scenes: Scenes, indices: list[int]) -> dict[str, Tensor]:
        """Return the losses of the proposals, and of the classes and boxes."""
        found: dict[str, Tensor] = network(
            list(scenes.images[indices].unbind()), scenes.targets(indices)
        )
        return found

    def judge(self, network: nn.Module, scenes: Scenes) -> dict[str, float]:
        """Return COCO's average precision, and that at overlaps of 0.5 and 0.75."""
        from torchmetrics.detection import MeanAveragePrecision

        precision = MeanAveragePrecision(backend="pycocotools", sync_on_compute=False)
        for part in portions(len(scenes)):
            precision.update(look(network, scenes, part), scenes.targets(part))
        values = precision.compute()
        keys = {"mAP@.5": "map_50", "mAP@.75": "map_75", "mAP@[.5:.95]": "map"}
        return {name: float(values[key]) for name, key in keys.items()}


def task_of(run: Run) -> Task:
    """Return what a run is about."""
    return Segmentation() if run.task == "segmentation" else Detection(run.task, run.size)


@torch.no_grad()
def look(network: nn.Module, scenes: Scenes, indices: list[int]) -> Any:
    """Return what a network in inference says of some scenes: scores, or detections of each."""
    images = scenes.images[indices]
    return network(images if isinstance(network, DeepLab) else list(images.unbind()))


def portions(count: int, most: int = JUDGED_AT_ONCE) -> Sequence[list[int]]:
    """Return the numbers below `count` in lists of at most so many."""
    return [chunk.tolist() for chunk in torch.arange(count).split(most)]
