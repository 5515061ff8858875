"""The class-aware region proposal network: a detector of one stage."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers

from dcn_tvm.models.backbone import Backbone, check_backbone, check_classes, reduction
from dcn_tvm.models.detection import (
    AnchorHead,
    Detector,
    Losses,
    Target,
    anchor_generator,
    anchor_matching,
)
from dcn_tvm.models.options import DetectionOptions

_DEFAULT = DetectionOptions()


class _Anchors(nn.Module):
    """Every anchor is a proposal, and nothing is learned before the head."""

    def __init__(self, options: DetectionOptions) -> None:
        super().__init__()
        self.anchor_generator = anchor_generator(options)

    def forward(
        self, images: Any, features: dict[str, Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Tensor], Losses]:
        return self.anchor_generator(images, [features["res5"]]), {}


class _AnchorHeads(RoIHeads):
    """torchvision's heads on anchors: nothing is pooled, and the anchors' own scores are judged."""

    def __init__(
        self, backbone: Backbone, num_classes: int, reduced: int, options: DetectionOptions
    ) -> None:
        super().__init__(
            None,
            None,
            None,
            options.rpn_positive_iou,
            options.rpn_negative_iou,
            options.rpn_batch_per_image,
            options.rpn_positive_fraction,
            None,
            options.score_threshold,
            options.nms,
            options.detections_per_image,
        )
        anchor_matching(self, options)
        self.judged = options.proposals_before_nms
        self.num_classes = num_classes
        self.reduce = reduction(backbone, reduced)
        self.head = AnchorHead(reduced, num_classes, options)

    def forward(
        self,
        features: dict[str, Tensor],
        anchors: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[Target], Losses]:
        predicted = concat_box_prediction_layers(*self.head([self.reduce(features["res5"])]))
        logits, codes = (x.unflatten(0, (len(anchors), -1)) for x in predicted)
        if self.training:
            assert targets is not None
            return [], self._losses(logits, codes, anchors, targets)
        return self._detections(logits, codes, anchors, image_shapes), {}

    def _losses(
        self, logits: Tensor, codes: Tensor, anchors: list[Tensor], targets: list[Target]
    ) -> Losses:
        boxes = [target["boxes"].to(anchors[0]) for target in targets]
        matched, labels = self.assign_targets_to_proposals(
            anchors, boxes, [target["labels"] for target in targets]
        )
        sampled = self.subsample(labels)
        # An image without objects has no box to encode: any will do, for its anchors are negative.
        known = [image if image.numel() else anchors[0][:1] for image in boxes]
        encoded = self.box_coder.encode(
            [b[m[s]] for b, m, s in zip(known, matched, sampled, strict=True)],
            [a[s] for a, s in zip(anchors, sampled, strict=True)],
        )
        own_logits = torch.cat([x[s] for x, s in zip(logits, sampled, strict=True)])
        own_codes = torch.cat([x[s] for x, s in zip(codes, sampled, strict=True)])
        own_labels = [x[s] for x, s in zip(labels, sampled, strict=True)]
        classes, regression = fastrcnn_loss(
            own_logits, own_codes.repeat(1, self.num_classes), own_labels, encoded
        )
        return {"loss_classifier": classes, "loss_box_reg": regression}

    def _detections(
        self,
        logits: Tensor,
        codes: Tensor,
        anchors: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[Target]:
        background = logits.softmax(-1)[..., 0]
        best = background.topk(min(self.judged, logits.shape[1]), largest=False).indices
        own_logits = torch.cat([x[b] for x, b in zip(logits, best, strict=True)])
        own_codes = torch.cat([x[b] for x, b in zip(codes, best, strict=True)])
        boxes, scores, labels = self.postprocess_detections(
            own_logits,
            own_codes.repeat(1, self.num_classes),
            [a[b] for a, b in zip(anchors, best, strict=True)],
            image_shapes,
        )
        return [
            {"boxes": b, "labels": n, "scores": s}
            for b, n, s in zip(boxes, labels, scores, strict=True)
        ]


class ClassAwareRPN(Detector):
    """A region proposal network whose classifier knows all classes, as a detector of one stage.

    On "res5", reduced: a 3 x 3 convolution, then for each anchor a softmax over the classes and one
    box for all classes; losses and detections are torchvision's. The paper calls it a simplified
    SSD and gives no more: which anchors are positive and how they are sampled and encoded is that
    of its proposal networks, what is suppressed and returned that of its other detectors.

    Called as torchvision's detectors: see `forward`.

    Args:
        backbone: a `Backbone`; deformable or not, the head is the same.
        num_classes: classes with the background.
        reduced: channels to which "res5" is reduced first.
        options: sizes, thresholds and numbers; those named `roi_*` and `box_weights` do nothing.

    Raises:
        TypeError: the backbone is none.
        ValueError: an argument is out of range, or the backbone has no "res5".

    Source: Dai et al., Deformable Convolutional Networks, section 3 ("category-aware RPN").

    Example:
        >>> from dcn_tvm.models import ClassAwareRPN, DetectionOptions, resnet18
        >>> small = DetectionOptions(min_size=64, max_size=64, anchor_sizes=(16, 32))
        >>> model = ClassAwareRPN(resnet18(), 3, options=small)
        >>> target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([2])}
        >>> sorted(model([torch.rand(3, 64, 64)], [target]))
        ['loss_box_reg', 'loss_classifier']
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        reduced: int = 1024,
        options: DetectionOptions = _DEFAULT,
    ) -> None:
        check_backbone(backbone)
        heads = _AnchorHeads(backbone, check_classes(num_classes), reduced, options)
        super().__init__(backbone, num_classes, _Anchors(options), heads, options)
