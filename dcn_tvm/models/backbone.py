"""What a backbone is to the heads, and the layer with which every head begins."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Backbone(Protocol):
    """A `torch.nn.Module` that turns images into named maps: "res5" for the heads, "res4" for RPNs.

    Any network fits every head that has these attributes and returns a mapping of maps. Without
    "res4" a region proposal network reads "res5" too.
    """

    @property
    def out_channels(self) -> Mapping[str, int]:
        """Channels of each map by its name."""

    @property
    def stride(self) -> int:
        """Pixels of the image for one pixel of "res5"."""

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the maps of images `[N, 3, H, W]`."""


def check_backbone(backbone: Backbone) -> None:
    """Refuse what is no backbone, and say what is missing.

    Raises:
        TypeError: it is no module, or lacks an attribute of `Backbone`.
        ValueError: it makes no map "res5", or its stride is not positive.
    """
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone must be a torch.nn.Module, got {type(backbone).__name__}")
    channels = getattr(backbone, "out_channels", None)
    stride = getattr(backbone, "stride", None)
    if not isinstance(channels, Mapping) or not isinstance(stride, int):
        raise TypeError(
            "backbone must have out_channels, a mapping of names of maps to channels, and stride, "
            f"a whole number, got out_channels={channels!r}, stride={stride!r}"
        )
    if "res5" not in channels:
        raise ValueError(f"backbone must make a map 'res5', got {list(channels)}")
    if stride < 1:
        raise ValueError(f"backbone must have a stride of at least 1, got {stride}")


def proposal_map(backbone: Backbone) -> str:
    """Return the name of the map from which regions are proposed: conv4, as in the paper."""
    return "res4" if "res4" in backbone.out_channels else "res5"


def reduction(backbone: Backbone, reduced: int) -> nn.Sequential:
    """Return the new 1 x 1 convolution on top of "res5" and its ReLU, with which heads begin.

    Source: Dai et al., Deformable Convolutional Networks, section 3; ReLU: its released code.
    """
    if reduced < 1:
        raise ValueError(f"reduced must be at least 1, got {reduced}")
    return nn.Sequential(nn.Conv2d(backbone.out_channels["res5"], reduced, 1), nn.ReLU())


def check_classes(num_classes: int) -> int:
    """Return a number of classes, the background counted, of which there are at least two."""
    if num_classes < 2:
        raise ValueError(
            f"num_classes must count the background and at least one class, got {num_classes}"
        )
    return num_classes
