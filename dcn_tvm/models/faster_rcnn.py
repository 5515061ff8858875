"""Faster R-CNN with RoI pooling as the last layer of the features, plain or deformable."""

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from dcn_tvm.models.backbone import Backbone, check_backbone, check_classes, reduction
from dcn_tvm.models.detection import (
    Detector,
    check_pool,
    region_proposals,
    roi_heads,
)
from dcn_tvm.models.options import DetectionOptions
from dcn_tvm.nn import DeformRoIPoolPack, RoIPool

_DEFAULT = DetectionOptions()


class _PooledFeatures(nn.Module):
    """The maps on top of "res5", pooled in each proposal."""

    def __init__(
        self, backbone: Backbone, reduced: int, pooled: int, bins: int, deformable: bool
    ) -> None:
        super().__init__()
        if pooled < 1:
            raise ValueError(f"pooled must be at least 1, got {pooled}")
        self.reduce = reduction(backbone, reduced)
        self.narrow = nn.Sequential(nn.Conv2d(reduced, pooled, 1), nn.ReLU())
        scale = 1 / backbone.stride
        self.pool = (
            DeformRoIPoolPack(pooled, bins, scale)
            if deformable
            else RoIPool(bins, scale, mode="avg")
        )

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        pooled: Tensor = self.pool(self.narrow(self.reduce(features["res5"])), proposals)
        return pooled


class FasterRCNN(Detector):
    """Faster R-CNN of the paper: proposals on conv4, pooling on conv5, two fully connected layers.

    Called as torchvision's: see `forward`. Plain pooling takes the mean of a bin (eq. 5 of the
    paper), and not the maximum as Fast R-CNN, so that the deformable network (eq. 6), whose offsets
    start at zero, starts as the plain one. Its offsets' fully connected layer has 1.229 million
    parameters and learns at 0.01 of the other layers' rate:
    `dcn_tvm.nn.parameter_groups(model, lr, {DeformRoIPoolPack: 0.01})`.

    Args:
        backbone: a `Backbone`; its deformable layers and `pool` are chosen apart.
        num_classes: classes with the background.
        pool: "plain" or "deformable" RoI pooling.
        reduced: channels to which "res5" is reduced first.
        pooled: channels that are pooled, by another 1 x 1 convolution; the paper's 12544 inputs are
            256 channels of 7 x 7 bins.
        bins: bins along each side of a proposal.
        hidden: units of each of the two fully connected layers.
        options: sizes, thresholds and numbers.

    Raises:
        TypeError: the backbone is none.
        ValueError: an argument is out of range, or the backbone has no "res5".

    Source: Dai et al., Deformable Convolutional Networks, section 3; Ren et al., Faster R-CNN.
    Peer: torchvision.models.detection.FasterRCNN.

    Example:
        >>> from dcn_tvm.models import DetectionOptions, FasterRCNN, resnet18
        >>> small = DetectionOptions(min_size=64, max_size=64, anchor_sizes=(32,), proposals=8)
        >>> model = FasterRCNN(resnet18(), 3, pool="deformable", hidden=16, options=small).eval()
        >>> sorted(model([torch.rand(3, 48, 64)])[0])
        ['boxes', 'labels', 'scores']
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        pool: str = "plain",
        reduced: int = 1024,
        pooled: int = 256,
        bins: int = 7,
        hidden: int = 1024,
        options: DetectionOptions = _DEFAULT,
    ) -> None:
        check_backbone(backbone)
        features = _PooledFeatures(backbone, reduced, pooled, bins, check_pool(pool))
        heads = roi_heads(
            features,
            TwoMLPHead(pooled * bins**2, hidden),
            FastRCNNPredictor(hidden, check_classes(num_classes)),
            options,
        )
        super().__init__(backbone, num_classes, region_proposals(backbone, options), heads, options)
