"""Examples on a device: drawn and moved once for all dtypes and memory formats.

To draw the numbers takes longer than to time anything on them. So those of the latest sizes stay on
the device in the type of their sums, and are rounded there as an example of the dtype would be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dcn_tvm import examples, ops
from dcn_tvm.examples import Example
from dcn_tvm.problem import Problem

Sizes = tuple[tuple[str, int], ...]
_KEPT = 2  # sizes: those that are timed, and those that are judged


@dataclass(frozen=True, eq=False)
class Placed(Example):
    """An example whose gradient from above is made of one that is kept, with the form of `like`."""

    drawn: Callable[[], Tensor] | None = None
    like: Tensor | None = None

    def make_grad(self) -> Tensor:
        """Return the gradient from above."""
        assert self.drawn is not None
        assert self.like is not None
        return _like(self.drawn(), self.like)


def example(problem: Problem, sizes: Mapping[str, int], device: str) -> Placed:
    """Return a call of a problem with its tensors on a device.

    Tensors that need no rounding are the same ones in every call: nobody may write to them.

    Raises:
        ValueError: see `dcn_tvm.examples.example`.
    """
    plain = replace(problem, dtype=problem.accumulate, layout="nchw")
    key = (plain, tuple(sorted(sizes.items())), device)
    master = _drawn(*key)
    small = examples.example(problem, examples.judged_sizes(problem, sizes))
    tensors = tuple(
        None if given is None or like is None else _like(given, like)
        for given, like in zip(master.tensors, small.tensors, strict=True)
    )
    facts = (problem, tensors, master.attributes, master.reference, master.seed)
    return Placed(*facts, functools.partial(_drawn_grad, *key), _map(small))


def forget() -> None:
    """Free what is kept on the device."""
    _drawn.cache_clear()
    _drawn_grad.cache_clear()


@functools.lru_cache(maxsize=_KEPT)
def _drawn(problem: Problem, sizes: Sizes, device: str) -> Example:
    drawn = examples.example(problem, dict(sizes))
    moved = tuple(None if t is None else t.to(device) for t in drawn.tensors)
    return replace(drawn, tensors=moved)


@functools.lru_cache(maxsize=_KEPT)
def _drawn_grad(problem: Problem, sizes: Sizes, device: str) -> Tensor:
    return _drawn(problem, sizes, device).make_grad()


def _map(made: Example) -> Tensor:
    """Return a tensor in the dtype and memory format of the op's output."""
    first = made.tensors[0]
    assert first is not None
    assert ops.registry()[made.op].tensors[0].map
    return first


def _like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor in the dtype and memory format of another one, without history."""
    last = like.dim() == 4 and not like.is_contiguous()
    form = torch.channels_last if last else torch.contiguous_format
    return tensor.detach().to(like.dtype).contiguous(memory_format=form)
