"""Deformable convolution with given offsets, and with offsets that it makes itself."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import init

from dcn_tvm.functional.deform_conv2d import deform_conv2d

_Size = int | tuple[int, int]


class _Filter(nn.Module):
    """The parameters and the geometry that both layers share; initialised as torch.nn.Conv2d."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
        boundary: str = "zeros",
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or channels % groups:
                raise ValueError(
                    f"{name} must be a multiple of groups, got {name}={channels}, groups={groups}"
                )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.boundary = boundary
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-b, b) with b = 1 / sqrt(fan in), as torch.nn.Conv2d."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Return the arguments that differ from the defaults, as torch.nn.Conv2d prints them."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "boundary": "zeros"}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)

    def _convolve(self, input: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        return deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
            boundary=self.boundary,
        )


class DeformConv2d(_Filter):
    """Deformable convolution whose offsets, and mask, are given with every call.

    Same arguments, initial values and state_dict as `torchvision.ops.DeformConv2d`; the number of
    offset groups follows from the offset's channels. The mathematics: `dcn_tvm.deform_conv2d`.

    Args:
        in_channels: channels C of the input.
        out_channels: channels O of the output.
        kernel_size: one number or (height, width).
        stride: step of the output grid in pixels.
        padding: pixels by which the grid starts outside the map.
        dilation: distance of the kernel's points in pixels.
        groups: groups of channels that are convolved apart.
        bias: whether to add a learned `[O]`.
        boundary: "zeros" or "msra", what lies outside the map.

    Raises:
        ValueError: groups does not divide the channels.

    Source: Dai et al., Deformable Convolutional Networks, section 2.1; with a mask, Zhu et al.,
    Deformable ConvNets v2, section 3.2.

    Example:
        >>> layer = DeformConv2d(4, 8, 3, padding=1)
        >>> layer(torch.randn(2, 4, 6, 6), torch.zeros(2, 18, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
    """

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve `[N, C, H, W]` at the positions that the offset moves.

        Args:
            input: feature map `[N, C, H, W]`.
            offset: displacements in pixels `[N, 2*G*Kh*Kw, Ho, Wo]`, ordered (g, a, b, (y, x)).
            mask: modulation `[N, G*Kh*Kw, Ho, Wo]` or None.

        Returns:
            `[N, O, Ho, Wo]`.
        """
        return self._convolve(input, offset, mask)


class DeformConv2dPack(_Filter):
    """Deformable convolution that makes its own offsets (figure 2 of the paper).

    A plain convolution `conv_offset` with the layer's kernel, stride, padding and dilation reads
    the same input and writes 2*G*Kh*Kw channels of offsets, ordered (g, a, b, (y, x)). It starts at
    zero, so that the new layer computes what `torch.nn.Conv2d` computes. Modulated (v2), it writes
    3*G*Kh*Kw channels, offsets first; the rest through a sigmoid is the mask, which starts at 1/2
    and halves the response, as in the paper and in mmcv. The state_dict has mmcv's names.

    The offset head may learn at its own rate: see `parameter_groups`.

    Args:
        in_channels: channels C of the input.
        out_channels: channels O of the output.
        kernel_size: one number or (height, width).
        stride: step of the output grid in pixels.
        padding: pixels by which the grid starts outside the map.
        dilation: distance of the kernel's points in pixels.
        groups: groups of channels that are convolved apart; the offset head has one.
        bias: whether to add a learned `[O]`; the offset head always has one.
        offset_groups: groups of input channels G that move apart.
        modulated: whether to learn a mask too.
        boundary: "zeros" or "msra", what lies outside the map.

    Raises:
        ValueError: groups does not divide the channels, or offset_groups those of the input.

    Source: Dai et al., Deformable Convolutional Networks, section 2.1; Zhu et al., Deformable
    ConvNets v2, section 3.2.

    Example:
        >>> layer, x = DeformConv2dPack(4, 8, 3, padding=1), torch.randn(2, 4, 6, 6)
        >>> same = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
        >>> torch.allclose(layer(x), same, atol=1e-5)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = True,
        offset_groups: int = 1,
        modulated: bool = False,
        boundary: str = "zeros",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            boundary,
        )
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(
                "in_channels must be a multiple of offset_groups, "
                f"got in_channels={in_channels}, offset_groups={offset_groups}"
            )
        self.offset_groups = offset_groups
        self.modulated = modulated
        points = offset_groups * math.prod(self.kernel_size)
        self.offset_channels = 2 * points
        self.conv_offset = nn.Conv2d(
            in_channels,
            (3 if modulated else 2) * points,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filter as torch.nn.Conv2d does and set the offset head to zero."""
        super().reset_parameters()
        if hasattr(self, "conv_offset"):  # the shared constructor calls this before the head exists
            init.zeros_(self.conv_offset.weight)
            assert self.conv_offset.bias is not None
            init.zeros_(self.conv_offset.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `[N, C, H, W]` to `[N, O, Ho, Wo]` at positions that the input decides."""
        moves: Tensor = self.conv_offset(input)
        if not self.modulated:
            return self._convolve(input, moves, None)
        offset, mask = moves.tensor_split([self.offset_channels], dim=1)
        return self._convolve(input, offset, mask.sigmoid())

    def offset_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the offset head, for `parameter_groups`."""
        return self.conv_offset.parameters()

    def extra_repr(self) -> str:
        """Return the arguments that differ from the defaults."""
        own = {"offset_groups": 1, "modulated": False}
        changed = [
            f"{name}={getattr(self, name)}"
            for name, default in own.items()
            if getattr(self, name) != default
        ]
        return ", ".join([super().extra_repr(), *changed])


def _pair(value: _Size) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
