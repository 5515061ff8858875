"""R-FCN: position-sensitive score maps whose bins vote, plain or deformable."""

from torch import Tensor, nn

from dcn_tvm.models.backbone import Backbone, check_backbone, check_classes, reduction
from dcn_tvm.models.detection import (
    Detector,
    check_pool,
    predictor,
    region_proposals,
    roi_heads,
)
from dcn_tvm.models.options import DetectionOptions
from dcn_tvm.nn import DeformPSRoIPool, DeformPSRoIPoolPack

_DEFAULT = DetectionOptions()
_Pooled = tuple[Tensor, Tensor]


class _ScoreMaps(nn.Module):
    """Position-sensitive maps of classes and of boxes, pooled in each proposal."""

    def __init__(
        self, backbone: Backbone, num_classes: int, reduced: int, bins: int, deformable: bool
    ) -> None:
        super().__init__()
        self.reduce = reduction(backbone, reduced)
        self.class_maps = predictor(reduced, num_classes * bins**2)
        self.box_maps = predictor(reduced, 4 * bins**2)
        self.deformable = deformable
        scale = 1 / backbone.stride
        self.class_pool: nn.Module
        self.box_pool: nn.Module
        if deformable:
            self.class_pool = DeformPSRoIPoolPack(reduced, num_classes, bins, scale)
            self.box_pool = DeformPSRoIPoolPack(reduced, 4, bins, scale, offset_classes=1)
        else:
            self.class_pool = DeformPSRoIPool(bins, scale, num_classes)
            self.box_pool = DeformPSRoIPool(bins, scale, 4)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> _Pooled:
        x = self.reduce(features["res5"])
        own = (x,) if self.deformable else ()
        return (
            self.class_pool(self.class_maps(x), proposals, *own),
            self.box_pool(self.box_maps(x), proposals, *own),
        )


class _Vote(nn.Module):
    """The mean over the bins; one box for all classes, written once for each of them."""

    def forward(self, pooled: _Pooled) -> _Pooled:
        scores, boxes = (x.mean(dim=(2, 3)) for x in pooled)
        return scores, boxes.repeat(1, scores.shape[1])


class RFCN(Detector):
    """R-FCN of the paper: all layers are convolutions, and the bins of a proposal vote.

    Called as torchvision's detectors: see `forward`. Plain pooling is the deformable one's without
    offsets, 4 x 4 samples in each bin as in the released code, so that the deformable network,
    whose offsets start at zero, starts as the plain one; R-FCN's own pooling takes whole pixels
    (`dcn_tvm.nn.PSRoIPool`). Classes move apart; the box, one for all classes, by offsets of its
    own. The offsets have 2.2 million parameters at 21 classes, and their own learning rate in
    `dcn_tvm.nn.parameter_groups`.

    Args:
        backbone: a `Backbone`; its deformable layers and `pool` are chosen apart.
        num_classes: classes with the background.
        pool: "plain" or "deformable" position-sensitive RoI pooling.
        reduced: channels to which "res5" is reduced first.
        bins: bins k along each side of a proposal; there are k * k maps for each class.
        options: sizes, thresholds and numbers.

    Raises:
        TypeError: the backbone is none.
        ValueError: an argument is out of range, or the backbone has no "res5".

    Source: Dai et al., Deformable Convolutional Networks, section 3; Dai et al., R-FCN.

    Example:
        >>> from dcn_tvm.models import RFCN, DetectionOptions, resnet18
        >>> small = DetectionOptions(min_size=64, max_size=64, anchor_sizes=(32,), proposals=8)
        >>> model = RFCN(resnet18(), 3, pool="deformable", reduced=64, bins=3, options=small)
        >>> sorted(model.eval()([torch.rand(3, 48, 64)])[0])
        ['boxes', 'labels', 'scores']
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        pool: str = "plain",
        reduced: int = 1024,
        bins: int = 7,
        options: DetectionOptions = _DEFAULT,
    ) -> None:
        check_backbone(backbone)
        check_classes(num_classes)
        maps = _ScoreMaps(backbone, num_classes, reduced, bins, check_pool(pool))
        heads = roi_heads(maps, nn.Identity(), _Vote(), options)
        super().__init__(backbone, num_classes, region_proposals(backbone, options), heads, options)
