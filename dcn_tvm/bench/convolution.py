"""What the contenders of deformable convolution share: its sizes, its tensors and torch's calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dcn_tvm.bench.contender import Call, Setting, example_of
from dcn_tvm.examples import Example
from dcn_tvm.ops.deform_conv2d import DeformConv2dProblem
from dcn_tvm.suites import Case

Pair = tuple[int, int]
# Of input, offset, weight, bias, stride, padding, dilation and mask; bias and mask may be None.
Op = Callable[..., Tensor]


class Geometry(NamedTuple):
    """The sizes of a case."""

    batch: int
    in_channels: int
    out_channels: int
    map_size: Pair
    output_size: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    offset_groups: int

    @classmethod
    def of(cls, case: Case) -> Geometry:
        """Return the sizes of `case`, the output's computed."""
        map_size = (case.integer("height"), case.integer("width"))
        problem = problem_of(case)
        window = (problem.kernel_size, problem.stride, problem.padding, problem.dilation)
        rows, columns = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(map_size, *window, strict=True)
        )
        return cls(
            case.integer("batch"),
            problem.in_channels,
            problem.out_channels,
            map_size,
            (rows, columns),
            *window,
            problem.groups,
            problem.offset_groups,
        )

    @property
    def taps(self) -> int:
        """Elements of the kernel window."""
        return math.prod(self.kernel_size)

    @property
    def pixels(self) -> int:
        """Output pixels in the batch."""
        return self.batch * math.prod(self.output_size)

    @property
    def terms(self) -> int:
        """Products that make an element of the output."""
        return self.in_channels // self.groups * self.taps


def problem_of(case: Case) -> DeformConv2dProblem:
    """Return the problem of a case in float32."""
    problem = case.problem()
    assert isinstance(problem, DeformConv2dProblem)
    return problem


class Arguments(NamedTuple):
    """The tensors of one call."""

    input: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, example: Example) -> Arguments:
        """Return the tensors of a call."""
        input, offset, weight, *options = example.tensors
        assert input is not None
        assert offset is not None
        assert weight is not None
        return cls(input, offset, weight, *options)

    def to(self, dtype: torch.dtype) -> Arguments:
        """Return them in another dtype."""
        options = (tensor if tensor is None else tensor.to(dtype) for tensor in self[3:])
        return Arguments(*(tensor.to(dtype) for tensor in self[:3]), *options)

    def present(self) -> list[Tensor]:
        """Return those that there are."""
        return [tensor for tensor in self if tensor is not None]


def torch_call(op: Op, case: Case, setting: Setting, compute_dtype: str | None = None) -> Call:
    """Return the call that runs `op` in a mode.

    Args:
        op: the convolution.
        case: the sizes.
        setting: the mode and what the tensors are.
        compute_dtype: to what the rounded inputs are widened, if they are.
    """
    example = example_of(case, setting)
    widened = getattr(torch, compute_dtype or setting.dtype)
    inputs = Arguments.of(example).to(widened)
    g = Geometry.of(case)

    def convolved(input: Tensor) -> Tensor:
        geometry = (g.stride, g.padding, g.dilation)
        return op(input, *inputs[1:4], *geometry, inputs.mask)

    if setting.mode == "forward":
        return lambda: [convolved(inputs.input)]
    if setting.mode == "network":
        filter_before, filter_after = (
            f.to(setting.device, widened) for f in _filters(g, setting.dtype)
        )

        def network() -> list[Tensor]:
            before = functional.conv2d(inputs.input, filter_before).relu_()
            return [functional.conv2d(convolved(before), filter_after).relu_()]

        return network
    grad_output = example.make_grad().to(widened)
    leaves = inputs.present()
    for tensor in leaves:
        tensor.requires_grad_()

    def forward_backward() -> list[Tensor]:
        output = convolved(inputs.input)
        gradients = torch.autograd.grad(output, leaves, grad_output, allow_unused=True)
        return [output, *(gradient for gradient in gradients if gradient is not None)]

    return forward_backward


def _filters(g: Geometry, dtype: str) -> tuple[Tensor, Tensor]:
    """Return the 1×1 filters of the network mode, before the op and after it."""
    generator = torch.Generator().manual_seed(0)

    def square(channels: int) -> Tensor:
        filters = torch.randn(channels, channels, 1, 1, generator=generator) / math.sqrt(channels)
        return filters.to(getattr(torch, dtype))

    return square(g.in_channels), square(g.out_channels)
