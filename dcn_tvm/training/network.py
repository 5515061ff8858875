"""A backbone small enough to be trained on a CPU in a minute, with the paper's conv5 on top."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from dcn_tvm.nn import convert

BLOCKS = ("res5a", "res5b", "res5c")
_WIDTH = 128
_NORM_GROUPS = 8


class DigitBackbone(nn.Module):
    """Bottleneck blocks to stride 4, then three with dilation 2: a `dcn_tvm.models.Backbone`.

    Group normalisation, unlike that of batches, computes the same however a batch is cut over
    processes. Deformable layers start as the plain ones that they replace, so the networks with and
    without them begin equal if they are made with the same seed.

    Args:
        dcn: which of "res5a", "res5b" and "res5c" have a deformable 3 x 3 layer.

    Example:
        >>> import torch
        >>> maps = DigitBackbone(dcn=BLOCKS)(torch.zeros(1, 1, 64, 64))
        >>> {name: tuple(m.shape) for name, m in maps.items()}
        {'res4': (1, 128, 16, 16), 'res5': (1, 128, 16, 16)}
    """

    stride = 4

    def __init__(self, dcn: Iterable[str] = ()) -> None:
        super().__init__()
        self.out_channels = {"res4": _WIDTH, "res5": _WIDTH}
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1, bias=False), _norm(32), nn.ReLU())
        self.res2 = nn.Sequential(_block(32, 64, stride=2), _block(64, 64))
        self.res4 = _block(64, _WIDTH)
        for name in BLOCKS:
            self.add_module(name, _block(_WIDTH, _WIDTH, dilation=2))
        layers = [f"{name}.conv2" for name in dcn]
        if layers:
            convert(self, layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Turn images `[N, 1, H, W]` into the maps "res4" and "res5", a quarter as large."""
        res4 = x = self.res4(self.res2(self.stem(images)))
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return {"res4": res4, "res5": x}


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_NORM_GROUPS, channels)


def _block(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> Bottleneck:
    change = None
    if stride > 1 or inputs != outputs:
        change = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs))
    # torchvision multiplies the width by 4 at the end, and scales it by base_width / 64.
    return Bottleneck(
        inputs,
        outputs // 4,
        stride,
        change,
        base_width=128,
        dilation=dilation,
        norm_layer=_norm,
    )
