"""Sizes, thresholds and numbers that the detectors share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DetectionOptions:
    """Sizes, thresholds and numbers of a detector; the released code's for Pascal VOC.

    Two differ: colours are scaled as torchvision's weights expect, and there is no lower bound of
    the overlap of negatives (the released Faster R-CNN has 0.1, its R-FCN none). R-FCN's online
    hard example mining is not here: it samples as Faster R-CNN.

    Args:
        min_size: pixels of the shorter side to which images are scaled.
        max_size: pixels that the longer side may then have.
        image_mean: mean of the channels of images in [0, 1].
        image_std: standard deviation of the channels.
        anchor_sizes: square roots of the anchors' areas, in pixels of the scaled image.
        anchor_ratios: heights over widths of the anchors.
        rpn_channels: channels of the 3 x 3 convolution before anchors are judged.
        rpn_positive_iou: overlap from which an anchor is positive.
        rpn_negative_iou: overlap below which an anchor is negative.
        rpn_batch_per_image: anchors that are sampled in training.
        rpn_positive_fraction: share of them that may be positive.
        proposals_before_nms: best proposals of an image that suppression sees; for `ClassAwareRPN`
            the best anchors.
        proposals: proposals of an image that remain.
        proposal_nms: overlap above which the worse of two proposals is dropped.
        roi_iou: overlap from which a proposal is positive; below it is negative.
        roi_batch_per_image: proposals that are sampled in training.
        roi_positive_fraction: share of them that may be positive.
        box_weights: factors of the encoded (x, y, width, height) of a proposal's box.
        score_threshold: score that a detection must exceed.
        nms: overlap above which the worse of two detections of a class is dropped.
        detections_per_image: best detections of an image that are returned.

    Raises:
        ValueError: a number is out of range.

    Source: the released code of Dai et al., resnet_v1_101_voc0712_rcnn_dcn_end2end.yaml.

    Example:
        >>> from dcn_tvm.models import DetectionOptions
        >>> DetectionOptions(min_size=128, max_size=128, anchor_sizes=(16, 32)).anchors
        6
    """

    min_size: int = 600
    max_size: int = 1000
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    anchor_sizes: tuple[float, ...] = (128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_channels: int = 512
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_batch_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    proposals_before_nms: int = 6000
    proposals: int = 300
    proposal_nms: float = 0.7
    roi_iou: float = 0.5
    roi_batch_per_image: int = 128
    roi_positive_fraction: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    score_threshold: float = 1e-3
    nms: float = 0.3
    detections_per_image: int = 300

    def __post_init__(self) -> None:
        counts = ("min_size", "max_size", "rpn_channels", "rpn_batch_per_image", "proposals")
        for name in (*counts, "proposals_before_nms", "roi_batch_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        shares = ("rpn_positive_iou", "rpn_negative_iou", "rpn_positive_fraction", "proposal_nms")
        for name in (*shares, "roi_iou", "roi_positive_fraction", "score_threshold", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.rpn_negative_iou > self.rpn_positive_iou:
            raise ValueError(
                "rpn_negative_iou must not exceed rpn_positive_iou, "
                f"got {self.rpn_negative_iou} and {self.rpn_positive_iou}"
            )
        if not self.anchor_sizes or not self.anchor_ratios:
            raise ValueError("anchor_sizes and anchor_ratios must not be empty, got an empty one")

    @property
    def anchors(self) -> int:
        """Anchors at each pixel of the map."""
        return len(self.anchor_sizes) * len(self.anchor_ratios)
