"""The second backbone of the paper, as far as it is publicly known; the rest is ours."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation


class InceptionResidualBlock(nn.Module):
    """Three branches of 1 x 1 and 3 x 3 convolutions, joined, and added to the input.

    A branch is a 1 x 1 convolution, followed by none, one or two of 3 x 3; their channels together
    go through a 1 x 1 convolution without ReLU, to the input's channels or new ones. Everything is
    padded alike on both sides, so that an output pixel stands at the centre of what it sees.

    Known: there are no 1 x n and n x 1 convolutions, one kind of block repeats, and it is residual.
    The branches and their widths are ours.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        width: channels of each convolution inside.
        stride: step of the output grid in pixels.
        dilation: distance of the points of the 3 x 3 kernels in pixels.

    Source: Dai et al., Deformable Convolutional Networks, appendix B, as reviews summarise it.

    Example:
        >>> InceptionResidualBlock(8, 16, width=4, stride=2)(torch.randn(1, 8, 8, 8)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, width, stride, dilation) < 1:
            raise ValueError(
                "channels, width, stride and dilation must be at least 1, got "
                f"{in_channels}, {out_channels}, {width}, {stride}, {dilation}"
            )

        def conv(channels: int, kernel: int, step: int = 1) -> Any:
            return Conv2dNormActivation(channels, width, kernel, step, dilation=dilation)

        self.branches = nn.ModuleList(
            [
                nn.Sequential(conv(in_channels, 1, stride)),
                nn.Sequential(conv(in_channels, 1), conv(width, 3, stride)),
                nn.Sequential(conv(in_channels, 1), conv(width, 3), conv(width, 3, stride)),
            ]
        )
        self.join = Conv2dNormActivation(3 * width, out_channels, 1, activation_layer=None)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity()
            if same
            else Conv2dNormActivation(in_channels, out_channels, 1, stride, activation_layer=None)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Turn `[N, in_channels, H, W]` into `[N, out_channels, H / stride, W / stride]`."""
        joined = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        result: Tensor = self.relu(joined + self.shortcut(x))
        return result


class AlignedInceptionResNet(nn.Module):
    """A backbone of inception residual blocks in which every pixel is where it looks.

    **Not the paper's network**: its table of layers is not to be had here. Known are what
    `InceptionResidualBlock` says, 64.3 million parameters, top-1 error 22.1 %, and, as for
    ResNet-101, that conv5 has stride 1 and dilation 2. The stem and the stages are ResNet's; the
    default widths are chosen to come near that number of parameters, which proves nothing more.
    There are no trained weights. Deformable layers: `dcn_tvm.nn.convert` with the names of 3 x 3
    convolutions, such as `"res5.2.branches.1.1.0"`.

    Args:
        blocks: blocks of the four stages conv2 to conv5.
        channels: channels that leave each stage.
        widths: channels inside the blocks of each stage.
        dilated: whether conv5 keeps the size of conv4's map.

    Raises:
        ValueError: there are not four of each.

    Source: Dai et al., Deformable Convolutional Networks, section 3 and appendix B; the rest ours.

    Example:
        >>> from dcn_tvm.models import AlignedInceptionResNet
        >>> backbone = AlignedInceptionResNet((1, 1, 1, 1), (8, 8, 16, 16), (4, 4, 8, 8))
        >>> backbone(torch.randn(1, 3, 64, 64))["res5"].shape
        torch.Size([1, 16, 4, 4])
    """

    res2: nn.Module
    res3: nn.Module
    res4: nn.Module
    res5: nn.Module

    def __init__(
        self,
        blocks: tuple[int, ...] = (3, 4, 23, 3),
        channels: tuple[int, ...] = (256, 512, 1024, 2048),
        widths: tuple[int, ...] = (40, 80, 160, 320),
        *,
        dilated: bool = True,
    ) -> None:
        super().__init__()
        if {len(blocks), len(channels), len(widths)} != {4} or min(blocks) < 1:
            raise ValueError(
                "blocks, channels and widths must be four numbers each, for conv2 to conv5, "
                f"got {blocks}, {channels}, {widths}"
            )
        self.stride = 16 if dilated else 32
        self.out_channels = {"res4": channels[2], "res5": channels[3]}
        stem = channels[0] // 4
        self.stem = nn.Sequential(
            Conv2dNormActivation(3, stem, 7, 2), nn.MaxPool2d(3, stride=2, padding=1)
        )
        steps = (1, 2, 2, 1 if dilated else 2)
        inputs = (stem, *channels[:3])
        for i, count in enumerate(blocks):
            dilation = 2 if dilated and i == 3 else 1
            first = InceptionResidualBlock(inputs[i], channels[i], widths[i], steps[i], dilation)
            rest = [
                InceptionResidualBlock(channels[i], channels[i], widths[i], 1, dilation)
                for _ in range(count - 1)
            ]
            self.add_module(f"res{i + 2}", nn.Sequential(first, *rest))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Turn normalised images `[N, 3, H, W]` into the maps "res4" and "res5"."""
        res4 = self.res4(self.res3(self.res2(self.stem(images))))
        return {"res4": res4, "res5": self.res5(res4)}
