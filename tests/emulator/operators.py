"""Operators whose kernels are scheduled for a GPU and run on the emulator, for CPU tensors.

Everything but the kernels is what a user calls: arguments are checked by the public functions,
outputs and gradients are laid out by the operator's binding. Names no op.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import dcn_tvm
from dcn_tvm import build, ops
from dcn_tvm import target as targets
from dcn_tvm.binding import Binding
from dcn_tvm.build import Request
from dcn_tvm.cuda import lower
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs

from .array import CUDA, Array
from .control import using
from .translate import image

HOPPER = Gpu("cuda", "", "sm_90")
Run = Callable[[Request, Sequence[Array], Sequence[float]], None]
_modules: list[Any] = []  # a module's functions are valid only as long as it lives
_order: list[dict[str, Any]] = [{}]


@contextmanager
def in_order(order: str, seed: int = 0) -> Iterator[None]:
    """Let threads and blocks run in another order than the first to the last."""
    _order.append({"order": order, "seed": seed})
    try:
        yield
    finally:
        _order.pop()


def emulated(
    op_name: str, target: Gpu = HOPPER, choose: Callable[[], Knobs] = Knobs
) -> Callable[..., Tensor]:
    """The public function of an op, with gradients, on the emulator.

    Args:
        op_name: Of the contract.
        target: What the kernels are scheduled for; those of other kinds than CUDA are then lowered
            for CUDA all the same.
        choose: Makes the knobs of each kernel; a kernel is built once for the same `choose`.
    """

    def run(request: Request, arrays: Sequence[Array], scalars: Sequence[float]) -> None:
        with using(**_order[-1]):
            kernel(request, target, choose)(*arrays, *scalars)

    return through(op_name, run)


def through(op_name: str, run: Run, device: tuple[int, int] = (CUDA, 0)) -> Callable[..., Tensor]:
    """The public function of an op, with gradients, by a way to run a request's kernel.

    Args:
        op_name: Of the contract.
        run: Calls the kernel with the arrays that it takes and fills, and its scalars.
        device: DLPack's, on which the arrays shall lie.
    """
    binding = _Binding(op_name, run, device)

    def function(*args: Any, **options: Any) -> Tensor:
        with _Instead(binding):
            result: Tensor = getattr(dcn_tvm, op_name)(*args, **options)
        return result

    return function


@functools.cache
def kernel(request: Request, target: Gpu, choose: Callable[[], Knobs] = Knobs) -> Any:
    """The function of a request's host part, which launches on the driver that is in use."""
    function = build.schedule(request, target, choose()).function
    lowered = lower.lower(
        function,
        {"kind": "cuda", "arch": target.arch or HOPPER.arch},
        dict(targets.detect().to_tvm_dict()),
    )
    _modules.append(lower.assemble(lowered, image(lowered.source)))
    return _modules[-1][build.SYMBOL]


class _Binding(Binding):
    """An op's implementation whose kernels run elsewhere."""

    def __init__(self, op_name: str, run: Run, device: tuple[int, int]) -> None:
        super().__init__(ops.registry()[op_name])
        self._run, self._device = run, device

    def run(self, request: Request, values: Any, scalars: tuple[float, ...]) -> None:
        plain = Request(request.problem, request.kernel, request.outputs)
        tensors = self.arguments(plain, values)
        arrays = [to_array(tensor, self._device) for tensor in tensors]
        self._run(plain, arrays, scalars)
        for number, (tensor, array) in enumerate(zip(tensors, arrays, strict=True)):
            written = to_tensor(array)
            if number >= len(tensors) - len(request.outputs):
                tensor.copy_(written)
            else:
                assert same_bits(written, tensor), "the kernel wrote to an input"


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, binding: _Binding, *args: Any) -> Tensor:
        ctx.binding, ctx.attributes = binding, args[binding.count :]
        ctx.save_for_backward(*args[: binding.count])
        return binding.forward(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        specs = ctx.binding.op.tensors
        wanted = ctx.needs_input_grad[1 : 1 + len(specs)]
        needed = [w and spec.differentiable for w, spec in zip(wanted, specs, strict=True)]
        found = iter(ctx.binding.backward(*grads, *ctx.saved_tensors, *ctx.attributes, needed))
        gradients = [next(found) if flag else None for flag in needed]
        return (None, *gradients, *[None] * len(ctx.attributes))


class _Instead(TorchFunctionMode):
    """Calls the emulated operator where a public function calls torch's."""

    def __init__(self, binding: _Binding) -> None:
        super().__init__()
        self._binding = binding

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith("dcn_tvm."):
            return _Differentiable.apply(self._binding, *args)
        return func(*args, **(kwargs or {}))


def to_array(tensor: Tensor, device: tuple[int, int] = (CUDA, 0)) -> Array:
    """A dense tensor's values on the emulated device."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        values = tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return Array(values, device=device)
    return Array(tensor.numpy(), device=device)


def to_tensor(array: Array) -> Tensor:
    """The values of an emulated array, whose surroundings must be untouched."""
    values = array.numpy()
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, NaN included."""
    views = (t.detach().contiguous().flatten().view(torch.uint8) for t in (a, b))
    return torch.equal(*views)
