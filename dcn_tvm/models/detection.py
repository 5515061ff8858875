"""What the three detectors share; the one place that knows torchvision's detection parts.

torchvision documents few of them: its transform, anchors, proposal network, heads and box coder are
used as they are, and only what differs is here: the maps that are read, the sampler, the checks.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dcn_tvm.models.backbone import Backbone, proposal_map
from dcn_tvm.models.options import DetectionOptions
from dcn_tvm.models.sampling import RepeatableSampler

Target = dict[str, Tensor]
Losses = dict[str, Tensor]

POOLS = ("plain", "deformable")


class Detector(GeneralizedRCNN):
    """torchvision's frame of a detector: scaling, backbone, proposals, heads, boxes scaled back."""

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        rpn: nn.Module,
        roi_heads: nn.Module,
        options: DetectionOptions,
    ) -> None:
        transform = GeneralizedRCNNTransform(
            options.min_size,
            options.max_size,
            list(options.image_mean),
            list(options.image_std),
            # Padded so, the map's pixels are the stride apart; 32 is torchvision's.
            size_divisible=math.lcm(32, backbone.stride),
        )
        super().__init__(backbone, rpn, roi_heads, transform)
        self.num_classes = num_classes
        self.options = options

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> Losses | list[Target]:
        """Return losses in training and detections else.

        Args:
            images: `[3, H, W]` in [0, 1], each of its own size.
            targets: for each image "boxes" `[L, 4]`, rows (x1, y1, x2, y2) in its pixels, and
                "labels" `[L]` of int64, 1 to num_classes - 1; L may be 0. Needed in training.

        Returns:
            In training named losses, to be added up; else for each image "boxes" `[D, 4]`, "labels"
            `[D]` and "scores" `[D]`, the best first.

        Raises:
            ValueError: targets are missing in training, or do not fit the images or the classes.
        """
        if targets is not None:
            check_targets(images, targets, self.num_classes)
        elif self.training:
            raise ValueError("targets must be given in training, got None")
        result: Losses | list[Target] = super().forward(list(images), targets)
        return result


def check_targets(images: Sequence[Tensor], targets: Sequence[Target], num_classes: int) -> None:
    """Refuse targets that do not fit, and say which.

    Raises:
        ValueError: one is missing, has other shapes or types, an empty box or an unknown class.
    """
    if len(images) != len(targets):
        raise ValueError(f"targets must be as many as {len(images)} images, got {len(targets)}")
    for number, target in enumerate(targets):
        missing = {"boxes", "labels"} - target.keys()
        if missing:
            raise ValueError(
                f"target {number} must have boxes and labels, got no {sorted(missing)}"
            )
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
            raise ValueError(
                f"boxes of target {number} must be [L, 4] of a floating type, "
                f"got {tuple(boxes.shape)} of {boxes.dtype}"
            )
        if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"labels of target {number} must be [{boxes.shape[0]}] of int64, "
                f"got {tuple(labels.shape)} of {labels.dtype}"
            )
        if not (boxes[:, 2:] > boxes[:, :2]).all():
            raise ValueError(
                f"boxes of target {number} must have x1 < x2 and y1 < y2, got {boxes.tolist()}"
            )
        if ((labels < 1) | (labels >= num_classes)).any():
            raise ValueError(
                f"labels of target {number} must be 1 to {num_classes - 1}, got {labels.tolist()}"
            )


class AnchorHead(nn.Module):
    """A 3 x 3 convolution, then for each anchor its scores and the encoding of its box.

    torchvision's `RPNHead` with a width and classes of its own.
    """

    def __init__(self, in_channels: int, classes: int, options: DetectionOptions) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, options.rpn_channels, 3, padding=1), nn.ReLU()
        )
        self.scores = predictor(options.rpn_channels, options.anchors * classes)
        self.boxes = predictor(options.rpn_channels, options.anchors * 4)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return scores `[N, anchors * classes, H, W]` and boxes `[N, anchors * 4, H, W]`."""
        hidden = [self.conv(x) for x in maps]
        return [self.scores(x) for x in hidden], [self.boxes(x) for x in hidden]


def predictor(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 1 x 1 convolution that starts near zero, as in torchvision and the released code."""
    layer = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class _Anchors(AnchorGenerator):
    """torchvision's anchors, never coarser than float32: bfloat16 has no odd number above 256."""

    def forward(self, images: Any, maps: list[Tensor]) -> list[Tensor]:
        like = [m.new_empty(m.shape[-2:], dtype=_at_least_float32(m)) for m in maps]
        anchors: list[Tensor] = super().forward(images, like)
        return anchors


class _Coder(BoxCoder):
    """torchvision's encoding of boxes, which else decodes in the type of the network's output."""

    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        decoded: Tensor = super().decode(rel_codes.to(_at_least_float32(rel_codes)), boxes)
        return decoded


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def anchor_generator(options: DetectionOptions) -> AnchorGenerator:
    """Return the anchors of one map."""
    return _Anchors((options.anchor_sizes,), (options.anchor_ratios,))


class _ProposalsFrom(RegionProposalNetwork):
    """torchvision's region proposal network, on one of the backbone's maps."""

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.map = name

    def forward(
        self, images: Any, features: dict[str, Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Tensor], Losses]:
        result: tuple[list[Tensor], Losses] = super().forward(
            images, {self.map: features[self.map]}, targets
        )
        return result


def region_proposals(backbone: Backbone, options: DetectionOptions) -> RegionProposalNetwork:
    """Return torchvision's region proposal network on conv4, with the repeatable sampler."""
    name = proposal_map(backbone)
    rpn = _ProposalsFrom(
        name,
        anchor_generator(options),
        AnchorHead(backbone.out_channels[name], 1, options),
        options.rpn_positive_iou,
        options.rpn_negative_iou,
        options.rpn_batch_per_image,
        options.rpn_positive_fraction,
        dict.fromkeys(("training", "testing"), options.proposals_before_nms),
        dict.fromkeys(("training", "testing"), options.proposals),
        options.proposal_nms,
    )
    rpn.box_coder = _Coder(rpn.box_coder.weights)
    rpn.fg_bg_sampler = RepeatableSampler(
        options.rpn_batch_per_image, options.rpn_positive_fraction
    )
    return rpn


def roi_heads(
    pool: nn.Module, head: nn.Module, predictor: nn.Module, options: DetectionOptions
) -> RoIHeads:
    """Return torchvision's heads, which pool, judge and learn, with the repeatable sampler."""
    heads = RoIHeads(
        pool,
        head,
        predictor,
        options.roi_iou,
        options.roi_iou,
        options.roi_batch_per_image,
        options.roi_positive_fraction,
        options.box_weights,
        options.score_threshold,
        options.nms,
        options.detections_per_image,
    )
    heads.box_coder = _Coder(options.box_weights)
    heads.fg_bg_sampler = RepeatableSampler(
        options.roi_batch_per_image, options.roi_positive_fraction
    )
    return heads


def check_pool(pool: str) -> bool:
    """Return whether a head's pooling is deformable."""
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {POOLS}, got {pool!r}")
    return pool == "deformable"


def anchor_matching(heads: RoIHeads, options: DetectionOptions) -> None:
    """Let heads judge anchors: match, sample and encode them as a proposal network does."""
    heads.proposal_matcher = Matcher(
        options.rpn_positive_iou, options.rpn_negative_iou, allow_low_quality_matches=True
    )
    heads.fg_bg_sampler = RepeatableSampler(
        options.rpn_batch_per_image, options.rpn_positive_fraction
    )
    heads.box_coder = _Coder((1.0, 1.0, 1.0, 1.0))
