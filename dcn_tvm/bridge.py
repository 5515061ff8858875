"""The door between torch and the kernels: binds any op's contract to torch.library, names none.

For each op it defines `dcn_tvm::<op>` and `dcn_tvm::<op>_backward`, with fake kernels (the shape
rule, so that torch.compile and export need no compiler), autograd and autocast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dcn_tvm import kernels, ops
from dcn_tvm.build import Request
from dcn_tvm.ops import Kernel, Op

_ALIGNMENT = 64  # bytes that the kernels' vector loads may assume, and torch's allocator gives
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_library = torch.library.Library("dcn_tvm", "DEF")

Args = Sequence[Any]


class Binding:
    """One op's implementation for torch: allocates outputs and calls kernels."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.names = [tensor.name for tensor in op.tensors]
        self.count = len(self.names)
        self.maps = {tensor.name for tensor in op.tensors if tensor.map} | {"grad", "output"}
        self.maps |= {f"grad_{name}" for name in self.maps}
        self.problem = functools.lru_cache(maxsize=4096)(op.problem)
        self.forward_inputs = [self.names.index(name) for name in op.forward.inputs]

    # -- forward -----------------------------------------------------------------------------

    def forward(self, *args: Any) -> torch.Tensor:
        """The op's kernel on CPU tensors."""
        tensors, attributes = args[: self.count], args[self.count :]
        layout = _layout(tensors[0])
        output = _empty(self.op.shape(tensors, attributes), tensors[0], layout)
        if output.numel() == 0:
            return output
        given = {"output": output} | dict(zip(self.names, tensors, strict=True))
        self._run(self.op.forward, self.op.forward.outputs, given, tensors, attributes, layout)
        return output

    def forward_fake(self, *args: Any) -> torch.Tensor:
        """The output's shape, type and memory format."""
        tensors, attributes = args[: self.count], args[self.count :]
        shape = self.op.shape(tensors, attributes)
        return _empty(shape, tensors[0], _layout(tensors[0]))

    # -- backward ----------------------------------------------------------------------------

    def backward(self, grad: torch.Tensor, *args: Any) -> list[torch.Tensor]:
        """Gradients of the tensors whose flag in the last argument is set, in their order."""
        tensors, attributes, needed = args[: self.count], args[self.count : -1], args[-1]
        layout = _layout(tensors[0])
        results = self._gradients(tensors, needed, layout)
        given = {"grad": grad} | dict(zip(self.names, tensors, strict=True)) | results
        if grad.numel() == 0 or tensors[0].numel() == 0:
            return [result.zero_() for result in results.values()]
        for kernel in self.op.backward:
            outputs = tuple(name for name in kernel.outputs if name in results)
            if outputs:
                self._run(kernel, outputs, given, tensors, attributes, layout)
        return list(results.values())

    def backward_fake(self, grad: torch.Tensor, *args: Any) -> list[torch.Tensor]:
        """The gradients' shapes, types and memory formats."""
        tensors, needed = args[: self.count], args[-1]
        return list(self._gradients(tensors, needed, _layout(tensors[0])).values())

    def _gradients(self, tensors: Args, needed: Args, layout: str) -> dict[str, torch.Tensor]:
        results = {}
        for name, tensor, wanted in zip(self.names, tensors, needed, strict=True):
            if wanted and tensor is not None:
                form = layout if name in self.maps else "nchw"
                results[f"grad_{name}"] = _empty(tensor.shape, tensor, form)
        return results

    # -- kernels -----------------------------------------------------------------------------

    def _run(
        self,
        kernel: Kernel,
        outputs: tuple[str, ...],
        given: dict[str, torch.Tensor | None],
        tensors: Args,
        attributes: Args,
        layout: str,
    ) -> None:
        dtype = DTYPES[tensors[0].dtype]
        problem = self.problem(*self.op.facts(tensors, attributes, dtype, layout))
        function = kernels.get(Request(problem, kernel.name, outputs))
        torch.get_num_threads()  # a new Python thread takes over torch's setting with this call
        names = (*self.op.needs(kernel, outputs), *outputs)
        function(
            *[
                _kernel_argument(tensor, name in self.maps, layout)
                for name in names
                if (tensor := given[name]) is not None
            ]
        )


def _layout(tensor: torch.Tensor) -> str:
    """channels_last only where the tensor is so and not also contiguous, as torch's convolution."""
    if tensor.is_contiguous() or not tensor.is_contiguous(memory_format=torch.channels_last):
        return "nchw"
    return "nhwc"


def _empty(shape: Sequence[Any], like: torch.Tensor, layout: str) -> torch.Tensor:
    format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=format)


def _kernel_argument(tensor: torch.Tensor, is_map: bool, layout: str) -> torch.Tensor:
    """Dense, aligned, and with its dimensions in the order of memory; copied only if it must be."""
    tensor = tensor.detach()
    if is_map and layout == "nhwc":
        tensor = tensor.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _bind(op: Op) -> None:
    binding, name = Binding(op), op.name
    _library.define(f"{name}({op.schema}) -> Tensor")
    _library.define(f"{name}_backward(Tensor grad, {op.schema}, bool[] needed) -> Tensor[]")
    _library.impl(name, binding.forward, "CPU")
    _library.impl(f"{name}_backward", binding.backward, "CPU")
    torch.library.register_fake(f"dcn_tvm::{name}", binding.forward_fake, lib=_library)
    torch.library.register_fake(f"dcn_tvm::{name}_backward", binding.backward_fake, lib=_library)
    _register_autograd(op, binding)
    _register_autocast(op, binding)


def _register_autograd(op: Op, binding: Binding) -> None:
    run_backward = getattr(torch.ops.dcn_tvm, f"{op.name}_backward").default
    attributes = op.attributes.count(",") + 1
    flags = [tensor.differentiable for tensor in op.tensors]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[: binding.count])
        ctx.attributes = inputs[binding.count :]

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[: binding.count]
        needed = [asked and flag for asked, flag in zip(wanted, flags, strict=True)]
        found = iter(run_backward(grad, *ctx.saved_tensors, *ctx.attributes, needed))
        gradients = [next(found) if flag else None for flag in needed]
        return (*gradients, *[None] * attributes)

    def refuse(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        raise NotImplementedError(
            f"double backward through dcn_tvm.{op.name} is not implemented: its gradients cannot "
            "be differentiated again"
        )

    torch.library.register_autograd(
        f"dcn_tvm::{op.name}", backward, setup_context=setup_context, lib=_library
    )
    torch.library.register_autograd(f"dcn_tvm::{op.name}_backward", refuse, lib=_library)


def _register_autocast(op: Op, binding: Binding) -> None:
    """Like convolution: float32 tensors become the autocast type, others stay as they are."""
    call: Callable[..., torch.Tensor] = getattr(torch.ops.dcn_tvm, op.name).default
    key = torch._C.DispatchKey.AutocastCPU

    def autocast(*args: Any) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cpu")
        tensors = [
            tensor.to(dtype) if tensor is not None and tensor.dtype == torch.float32 else tensor
            for tensor in args[: binding.count]
        ]
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return call(*tensors, *args[binding.count :])

    _library.impl(op.name, autocast, "AutocastCPU")


for _op in ops.registry().values():
    _bind(_op)
