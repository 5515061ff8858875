"""Contract of deformable convolution (paper, eq. 2; v2 adds the mask)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dcn_tvm.ops.contract import Kernel, Op, Tensor
from dcn_tvm.problem import Problem

BOUNDARIES = ("zeros", "msra")


@dataclass(frozen=True)
class DeformConv2dProblem(Problem):
    """Static facts of a deformable convolution; pairs are (y, x)."""

    op: ClassVar[str] = "deform_conv2d"

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    modulated: bool = False
    bias: bool = False
    boundary: str = "zeros"

    def __post_init__(self) -> None:
        """Refuse what no call can mean."""
        super().__post_init__()
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"boundary must be one of {BOUNDARIES}, got {self.boundary!r}")
        for name in ("in_channels", "out_channels", "groups", "offset_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name, channels, parts in (
            ("in_channels", self.in_channels, self.groups),
            ("out_channels", self.out_channels, self.groups),
            ("in_channels", self.in_channels, self.offset_groups),
        ):
            if channels % parts:
                raise ValueError(f"{name} must be a multiple of {parts} groups, got {channels}")
        for name, least in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) < least:
                raise ValueError(f"{name} must be two numbers of at least {least}, got {pair}")

    def absent(self) -> tuple[str, ...]:
        """Optional tensors that a call of this problem leaves out."""
        present = {"bias": self.bias, "mask": self.modulated}
        return tuple(name for name, given in present.items() if not given)


def facts(
    tensors: Sequence[Any], attributes: Sequence[Any], dtype: str, layout: str
) -> tuple[Any, ...]:
    """Fields of the problem in order."""
    input, offset, weight, bias, mask = tensors
    stride, padding, dilation, boundary = attributes
    out_channels, group_channels, kh, kw = weight.shape
    in_channels = input.shape[1]
    return (
        *(dtype, layout, in_channels, out_channels, (kh, kw)),
        *(tuple(stride), tuple(padding), tuple(dilation), in_channels // group_channels),
        *(offset.shape[1] // (2 * kh * kw), mask is not None, bias is not None, boundary),
    )


def shape(tensors: Sequence[Any], attributes: Sequence[Any]) -> tuple[Any, ...]:
    """Output shape [N, O, Ho, Wo], from the input, weight and geometry."""
    (batch, _, height, width), (out_channels, _, kh, kw) = tensors[0].shape, tensors[2].shape
    (sy, sx), (py, px), (dy, dx), *_ = attributes
    return (
        batch,
        out_channels,
        (height + 2 * py - dy * (kh - 1) - 1) // sy + 1,
        (width + 2 * px - dx * (kw - 1) - 1) // sx + 1,
    )


def needs(kernel: Kernel, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Inputs for the outputs asked for: the gradient of bias alone reads no sample."""
    if kernel.name == "backward_weight" and outputs == ("grad_bias",):
        return ("grad",)
    return kernel.inputs


def sizes(tensors: Sequence[Any], scalars: tuple[float, ...]) -> tuple[tuple[str, int], ...]:
    """Batch and map."""
    batch, _, height, width = tensors[0].shape
    return (("batch", batch), ("height", height), ("width", width))


OP = Op(
    name="deform_conv2d",
    problem=DeformConv2dProblem,
    tensors=(
        Tensor("input", map=True),
        Tensor("offset", map=True),
        Tensor("weight"),
        Tensor("bias", optional=True),
        Tensor("mask", map=True, optional=True),
    ),
    attributes="int[2] stride, int[2] padding, int[2] dilation, str boundary",
    facts=facts,
    shape=shape,
    forward=Kernel("forward", ("input", "offset", "weight", "bias", "mask"), ("output",)),
    backward=(
        Kernel(
            "backward_data",
            ("grad", "input", "offset", "weight", "mask"),
            ("grad_input", "grad_offset", "grad_mask"),
        ),
        Kernel(
            "backward_weight", ("grad", "input", "offset", "mask"), ("grad_weight", "grad_bias")
        ),
    ),
    needs=needs,
    sizes=sizes,
)
