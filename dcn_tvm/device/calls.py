"""Calls of any op through its operator, with all gradients, and what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dcn_tvm import examples, ops
from dcn_tvm.examples import Example
from dcn_tvm.problem import Problem

Tensors = tuple[Tensor | None, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """A call of an operator.

    Attributes:
        example: whose tensors may be others by now.
        grad: from above.
        wanted: the names of the tensors whose gradients are asked for.
    """

    example: Example
    grad: Tensor
    wanted: tuple[str, ...]

    @property
    def tensors(self) -> Tensors:
        """The operator's tensors."""
        return self.example.tensors

    def with_tensors(self, tensors: Sequence[Tensor | None], grad: Tensor | None = None) -> Call:
        """Return the call of other tensors."""
        made = replace(self.example, tensors=tuple(tensors))
        return replace(self, example=made, grad=self.grad if grad is None else grad)

    def of(self, wanted: Sequence[str]) -> Call:
        """Return the call with fewer gradients."""
        return replace(self, wanted=tuple(wanted))


def make(problem: Problem, sizes: dict[str, int], device: str, seed: int = 0) -> Call:
    """Return a call of a problem with all its gradients."""
    made = examples.example(problem, sizes, seed)
    moved = tuple(None if t is None else t.to(device) for t in made.tensors)
    placed = replace(made, tensors=moved)
    return Call(placed, placed.make_grad(), differentiable(placed))


def differentiable(made: Example) -> tuple[str, ...]:
    """Return the names of the tensors that have gradients."""
    specs = ops.registry()[made.op].tensors
    pairs = zip(specs, made.tensors, strict=True)
    return tuple(s.name for s, tensor in pairs if s.differentiable and tensor is not None)


def operator(op: str, *, backward: bool = False) -> Any:
    """Return the op's overload in torch's library."""
    return getattr(torch.ops.dcn_tvm, f"{op}_backward" if backward else op).default


def run(call: Call) -> dict[str, Tensor]:
    """Return the output and the gradients of our operator, by name."""
    op = operator(call.example.op)
    return _run(lambda *t: op(*t, *call.example.attributes), call, call.tensors, call.grad)


def wanted(call: Call, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what the reference finds in a dtype."""
    wide = [None if t is None else t.to(dtype) for t in call.tensors]
    return _run(call.example.reference, call, wide, call.grad.to(dtype))


def _run(
    function: Any, call: Call, tensors: Sequence[Tensor | None], grad: Tensor
) -> dict[str, Tensor]:
    specs = ops.registry()[call.example.op].tensors
    leaves = [
        None if t is None else t.detach().requires_grad_(spec.name in call.wanted)
        for spec, t in zip(specs, tensors, strict=True)
    ]
    output = function(*leaves)
    results = {"output": output.detach()}
    if call.wanted:
        inputs = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        found = torch.autograd.grad(output, inputs, grad)
        names = (f"grad_{name}" for name in call.wanted)
        results |= dict(zip(names, found, strict=True))
    return results
