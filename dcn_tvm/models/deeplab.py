"""DeepLab: a class for each pixel."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from dcn_tvm.models.backbone import Backbone, check_backbone, check_classes, reduction

IGNORED = 255  # the label of pixels without a class in Pascal VOC and Cityscapes


class DeepLab(nn.Module):
    """Scores of the classes for each pixel: a 1 x 1 convolution, and bilinear upsampling.

    Args:
        backbone: a `Backbone`; deformable or not, the head is the same.
        num_classes: classes with the background.
        reduced: channels to which "res5" is reduced first.

    Raises:
        TypeError: the backbone is none.
        ValueError: num_classes or reduced is too small, or the backbone has no "res5".

    Source: Dai et al., Deformable Convolutional Networks, section 3; Chen et al., DeepLab.

    Example:
        >>> from dcn_tvm.models import DeepLab, resnet18
        >>> model, images = DeepLab(resnet18(dcn=["res5b"]), 21), torch.randn(2, 3, 64, 64)
        >>> model(images).shape
        torch.Size([2, 21, 64, 64])
        >>> sorted(model(images, torch.zeros(2, 64, 64, dtype=torch.int64)))
        ['loss_segmentation']
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, reduced: int = 1024) -> None:
        super().__init__()
        check_backbone(backbone)
        self.num_classes = check_classes(num_classes)
        self.backbone = backbone
        self.reduce = reduction(backbone, reduced)
        self.scores = nn.Conv2d(reduced, num_classes, 1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Return scores, or in training with labels the loss.

        Args:
            images: normalised images `[N, 3, H, W]`.
            labels: classes `[N, H, W]` of int64, 255 for pixels to leave out; read in training
                only.

        Returns:
            Scores before the softmax `[N, num_classes, H, W]`; in training with labels
            `{"loss_segmentation": ...}`, the mean cross entropy of the pixels that have a class.

        Raises:
            TypeError: labels are not int64.
            ValueError: labels have another shape than the images, or name no class.
        """
        size = images.shape[-2:]
        low = self.scores(self.reduce(self.backbone(images)["res5"]))
        logits = interpolate(low, size=size, mode="bilinear", align_corners=False)
        if labels is None or not self.training:
            return logits
        self._check_labels(labels, (images.shape[0], *size))
        total = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        pixels = (labels != IGNORED).sum().clamp(min=1)  # none at all: zero, and not 0 / 0
        return {"loss_segmentation": total / pixels}

    def _check_labels(self, labels: Tensor, shape: tuple[int, ...]) -> None:
        if labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64, got {labels.dtype}")
        if tuple(labels.shape) != shape:
            raise ValueError(f"labels must have shape {shape}, got {tuple(labels.shape)}")
        wrong = labels[((labels < 0) | (labels >= self.num_classes)) & (labels != IGNORED)]
        if wrong.numel():
            raise ValueError(
                f"labels must be 0 to {self.num_classes - 1}, or {IGNORED}, got {int(wrong[0])}"
            )
