"""The form of an example, and how its numbers are drawn: by a seed, every tensor on its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcn_tvm import ops
from dcn_tvm.problem import Problem

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@dataclass(frozen=True, eq=False)  # tensors have no one truth value
class Example:
    """A call of an op on realistic data.

    Attributes:
        problem: the op's static facts.
        tensors: in the order of the op's schema, in the dtype and memory format of the problem.
        attributes: the schema's other arguments, in order.
        reference: the op's function in `dcn_tvm.reference` with these attributes, of tensors like
            these in any floating types.
        seed: what the numbers are drawn by.
    """

    problem: Problem
    tensors: tuple[Tensor | None, ...]
    attributes: tuple[Any, ...]
    reference: Callable[..., Tensor]
    seed: int

    @property
    def op(self) -> str:
        """The op's name."""
        return self.problem.op

    def make_grad(self) -> Tensor:
        """Draw the gradient from above, as large as the output, which may be 400 MB.

        It is put where the tensors are.
        """
        shape = ops.registry()[self.op].shape(self.tensors, self.attributes)
        draw, first = Draw(self.problem, self.seed), self.tensors[0]
        assert first is not None
        return draw.placed(draw.normal("grad", shape)).to(first.device)


@dataclass(frozen=True)
class Family:
    """What the file of some ops offers: examples, and the sizes at which they are judged."""

    example: Callable[[Any, Mapping[str, int], int], Example]
    judged_sizes: Callable[[Any, Mapping[str, int]], dict[str, int]]


@dataclass(frozen=True)
class Draw:
    """Draws the numbers of a problem's tensors, in the type of its sums.

    Every tensor has a stream of its own, so that none depends on whether another was drawn.
    """

    problem: Problem
    seed: int

    def normal(self, name: str, shape: Sequence[int], std: float = 1.0) -> Tensor:
        """Draw normal numbers for the tensor `name`."""
        return torch.randn(tuple(shape), generator=self._stream(name), dtype=self._dtype).mul_(std)

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Draw numbers between 0 and 1 for the tensor `name`."""
        return torch.rand(tuple(shape), generator=self._stream(name), dtype=self._dtype)

    def placed(self, tensor: Tensor) -> Tensor:
        """Return the tensor in the problem's dtype and memory format."""
        dtype = getattr(torch, self.problem.dtype)
        if tensor.dim() != 4:
            return tensor.to(dtype)
        return tensor.to(dtype).contiguous(memory_format=FORMATS[self.problem.layout])

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.problem.accumulate)
        return dtype

    def _stream(self, name: str) -> torch.Generator:
        state = random.Random(f"{self.seed} {name}").getrandbits(32)
        return torch.Generator().manual_seed(state)


def between_pixels(values: Tensor, unit: float) -> Tensor:
    """Round to odd multiples of a unit, a power of 1/2: none is a whole number, or a half."""
    return (2 * torch.floor(values / (2 * unit)) + 1) * unit


def required(sizes: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Return the sizes of these names.

    Raises:
        ValueError: one is missing, or no positive whole number.
    """
    found = {name: sizes.get(name) for name in names}
    for name, size in found.items():
        if not isinstance(size, int) or size < 1:
            given = "none" if size is None else repr(size)
            raise ValueError(f"{name} must be a positive whole number, got {given}")
    return {name: sizes[name] for name in found}
