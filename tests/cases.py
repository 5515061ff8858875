"""Named calls of deform_conv2d that the tests share.

A channel configuration that is new costs a compile of every kernel, a new size or batch nothing: so
tests take these cases and vary batch and size with `Case.sized`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Results = dict[str, Tensor]

# A lattice between the integers: float32 and float64 then agree on every cell of
# the map, whatever the position, and no finite difference crosses a kink.
_LATTICE = 64
_OFFSET_STD_PIXELS = 1.5


@dataclass(frozen=True)
class Arguments:
    """The tensors of one call, its options and the gradient that comes back for its output."""

    tensors: dict[str, Tensor]
    options: dict[str, Any]
    grad_output: Tensor

    def to(self, dtype: torch.dtype) -> Arguments:
        moved = {name: tensor.to(dtype) for name, tensor in self.tensors.items()}
        return Arguments(moved, self.options, self.grad_output.to(dtype))

    def replaced(self, **tensors: Tensor) -> Arguments:
        return replace(self, tensors={**self.tensors, **tensors})

    def mapped(self, change: Callable[[Tensor], Tensor], names: Iterable[str]) -> Arguments:
        return self.replaced(**{name: change(self.tensors[name]) for name in names})

    def with_options(self, **options: Any) -> Arguments:
        return replace(self, options={**self.options, **options})

    def detached(self, needed: Iterable[str] | None = None) -> Arguments:
        """Return views without history of which `needed` (default: all) collect gradients."""
        wanted = set(self.tensors if needed is None else needed)
        leaves = {n: t.detach().requires_grad_(n in wanted) for n, t in self.tensors.items()}
        return replace(self, tensors=leaves)

    def call(self, function: Callable[..., Tensor]) -> Tensor:
        return function(**self.tensors, **self.options)

    def run(self, function: Callable[..., Tensor], needed: Iterable[str] | None = None) -> Results:
        """Return the output and the gradient of every needed tensor, by name."""
        leaves = self.detached(needed)
        output = leaves.call(function)
        results = {"output": output.detach()}
        wanted = {name: t for name, t in leaves.tensors.items() if t.requires_grad}
        if wanted:
            gradients = torch.autograd.grad(output, list(wanted.values()), self.grad_output)
            results.update(zip(wanted, gradients, strict=True))
        return results

    def part(self, start: int, stop: int) -> Arguments:
        """Return the call for a part of the batch."""
        batched = {n: t[start:stop] for n, t in self.tensors.items() if n in PER_IMAGE}
        return replace(self.replaced(**batched), grad_output=self.grad_output[start:stop])


PER_IMAGE = ("input", "offset", "mask")


@dataclass(frozen=True)
class Case:
    """Everything that decides one call but its numbers."""

    name: str
    in_channels: int = 8
    out_channels: int = 6
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    modulated: bool = True
    bias: bool = True
    boundary: str = "zeros"
    batch: int = 2
    height: int = 9
    width: int = 11

    def sized(self, batch: int, height: int, width: int) -> Case:
        return replace(self, batch=batch, height=height, width=width)

    @property
    def out_size(self) -> tuple[int, int]:
        sizes = zip(
            (self.height, self.width),
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            strict=True,
        )
        out_y, out_x = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return out_y, out_x

    def arguments(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Arguments:
        """Draw the call's numbers: normal data, offsets of some pixels, masks between 0 and 1."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        points = self.offset_groups * self.kernel[0] * self.kernel[1]
        weight = (self.out_channels, self.in_channels // self.groups, *self.kernel)
        steps = normal(self.batch, 2 * points, *self.out_size) * _OFFSET_STD_PIXELS * _LATTICE
        tensors = {
            "input": normal(self.batch, self.in_channels, self.height, self.width),
            "offset": (steps.floor() + 0.5) / _LATTICE,
            "weight": normal(*weight),
        }
        if self.bias:
            tensors["bias"] = normal(self.out_channels)
        if self.modulated:
            tensors["mask"] = normal(self.batch, points, *self.out_size).sigmoid()
        grad_output = normal(self.batch, self.out_channels, *self.out_size)
        return Arguments(tensors, self.options(), grad_output).to(dtype)

    def options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "boundary": self.boundary,
        }


_ALL = (
    Case("plain", modulated=False),
    Case("modulated", offset_groups=2),
    Case("msra", offset_groups=2, boundary="msra"),
    Case("msra_plain", modulated=False, boundary="msra", kernel=(1, 1), padding=(0, 0)),
    Case("no_bias", modulated=False, bias=False),
    Case("no_bias_modulated", bias=False, in_channels=16, out_channels=16),
    Case("point", 3, 2, kernel=(1, 1), padding=(0, 0)),
    Case("uneven", kernel=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    Case("uneven_msra", kernel=(3, 2), stride=(1, 2), padding=(2, 0), boundary="msra"),
    Case("seven", 3, 4, kernel=(7, 7), padding=(3, 3)),
    Case("dilated", 4, 8, padding=(2, 2), dilation=(2, 2), modulated=False, offset_groups=4),
    Case("strided", 4, 8, stride=(2, 2)),
    Case("groups", groups=2),
    Case("groups_split", groups=2, offset_groups=4),
    Case("groups_joined", out_channels=8, groups=4, offset_groups=2),
    Case("groups_crossed", 12, 6, groups=3, offset_groups=4),  # no group holds another whole
    Case("depthwise", 6, 6, groups=6, offset_groups=3),
    Case("depthwise_widened", 5, 10, groups=5, modulated=False),
    Case("channels_1", 1, 1),
    Case("channels_3", 3, 16),
    Case("channels_30", 30, 30, offset_groups=3),
    Case("channels_64", 64, 64),
    Case("channels_64_plain", 64, 64, modulated=False, offset_groups=8),
    Case("channels_513", 513, 5),
    Case("channels_513_out", 5, 513, modulated=False),
)
CASES = {case.name: case for case in _ALL}
