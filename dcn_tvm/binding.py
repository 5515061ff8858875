"""An op on torch's tensors: outputs and gradients are allocated here, and filled by kernels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dcn_tvm import gpu, kernels, workload
from dcn_tvm.build import Request
from dcn_tvm.gpu import Gpu
from dcn_tvm.ops import Kernel, Op

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_ALIGNMENT = 64  # bytes that the kernels' vector loads may assume, and torch's allocator gives
_PROBLEMS = 4096  # remembered at once; a forgotten one is only made again

Args = Sequence[Any]
Places = tuple[tuple[int, bool], ...]


class Binding:
    """One op's implementation for torch.

    Arguments come as in the op's schema: its tensors, absent ones as None, then its attributes.
    The `values` of a kernel are these tensors, then the output or its gradient, then a gradient, or
    None, for each tensor.
    """

    def __init__(self, op: Op) -> None:
        self.op = op
        self.count = len(op.tensors)
        names = [tensor.name for tensor in op.tensors]
        self._places = {name: place for place, name in enumerate(names)}
        self._places |= {"output": self.count, "grad": self.count}
        self._places |= {f"grad_{name}": self.count + 1 + i for i, name in enumerate(names)}
        maps = {tensor.name for tensor in op.tensors if tensor.map} | {"output", "grad"}
        self._maps = maps | {f"grad_{name}" for name in maps}
        self._request = functools.lru_cache(_PROBLEMS)(self._make_request)
        self._signature = functools.cache(self._make_signature)

    def forward(self, *args: Any) -> Tensor:
        """The op's output for tensors of the CPU or of a CUDA device."""
        tensors, attributes = args[: self.count], args[self.count :]
        self._check_devices(tensors)
        output = self.forward_fake(*args)
        self.check(tensors)
        if output.numel():
            scalars = self.op.scalars(attributes)
            self.run(self.forward_request(tensors, attributes), (*tensors, output), scalars)
        return output

    def forward_fake(self, *args: Any) -> Tensor:
        """The output, not filled: its shape, type and memory format."""
        tensors, attributes = args[: self.count], args[self.count :]
        return _empty(self.op.shape(tensors, attributes), tensors[0], layout_of(tensors[0]))

    def backward(self, grad: Tensor, *args: Any) -> list[Tensor]:
        """Gradients of the tensors whose flag in the last argument is set, in their order."""
        tensors, attributes, needed = args[: self.count], args[self.count : -1], args[-1]
        self._check_devices(tensors, grad)
        gradients = self.empty_gradients(tensors, needed)
        found = [gradient for gradient in gradients if gradient is not None]
        if tensors[0].is_cpu:  # a device was asked when it ran forward; to ask again takes its time
            self.check(tensors)
        if not grad.numel():
            return [gradient.zero_() for gradient in found]
        values, scalars = (*tensors, grad, *gradients), self.op.scalars(attributes)
        for kernel in self.op.backward:
            outputs = tuple(n for n in kernel.outputs if values[self._places[n]] is not None)
            if outputs:
                self.run(self._find(kernel, outputs, tensors, attributes), values, scalars)
        return found

    def backward_fake(self, grad: Tensor, *args: Any) -> list[Tensor]:
        """The gradients, not filled: their shapes, types and memory formats."""
        gradients = self.empty_gradients(args[: self.count], args[-1])
        return [gradient for gradient in gradients if gradient is not None]

    def forward_request(self, tensors: Args, attributes: Args) -> Request:
        """The kernel that makes the output."""
        return self._find(self.op.forward, self.op.forward.outputs, tensors, attributes)

    def check(self, tensors: Args) -> None:
        """Refuse what the tensors hold: on the CPU at once, on a device when it comes to it."""
        if tensors[0].is_cpu:
            self.op.check(tensors)
        elif claim := self.op.claim(tensors):
            torch._assert_async(*claim)

    def run(self, request: Request, values: Args, scalars: tuple[float, ...]) -> None:
        """Call a kernel; what it takes is copied only if it must be, what it fills never."""
        if workload.listening():
            sizes = self.op.sizes(values[: self.count], scalars)
            workload.note(request.problem, sizes, request.kernel)
        function = kernels.get(request)
        arguments = self.arguments(request, values)
        if request.target is None:
            torch.get_num_threads()  # a new Python thread takes over torch's setting with this call
        function(*arguments, *scalars)

    def arguments(self, request: Request, values: Args) -> list[Tensor]:
        """The tensors that a kernel takes, dense and aligned, and those that it fills."""
        taken, filled = self._signature(request.kernel, request.outputs)
        permuted = request.problem.layout == "nhwc"
        arguments = []
        for place, is_map in taken:
            value = values[place]
            if value is not None:
                value = _dense_maps(value) if permuted and is_map else value.contiguous()
                arguments.append(value if _is_aligned(value) else value.clone())
        for place, is_map in filled:
            value = values[place]
            arguments.append(value.permute(0, 2, 3, 1) if permuted and is_map else value)
        return arguments

    def forget(self) -> None:
        """Ask for every kernel anew: there may be other records."""
        self._request.cache_clear()

    def empty_gradients(self, tensors: Args, needed: Args) -> list[Tensor | None]:
        """Gradients, not filled, of the tensors that are given and whose flag is set."""
        layout = layout_of(tensors[0])
        return [
            _empty(tensor.shape, tensor, layout if spec.map else "nchw")
            if wanted and tensor is not None
            else None
            for spec, tensor, wanted in zip(self.op.tensors, tensors, needed, strict=True)
        ]

    def _find(
        self, kernel: Kernel, outputs: tuple[str, ...], tensors: Args, attributes: Args
    ) -> Request:
        first = tensors[0]
        facts = self.op.facts(tensors, attributes, DTYPES[first.dtype], layout_of(first))
        sizes = self.op.sizes(tensors, self.op.scalars(attributes))
        target = target_of(first, backward=kernel is not self.op.forward)
        return self._request(target, kernel.name, outputs, sizes, *facts)

    def _make_request(
        self,
        target: Gpu | None,
        kernel: str,
        outputs: tuple[str, ...],
        sizes: tuple[tuple[str, int], ...],
        *facts: Any,
    ) -> Request:
        return kernels.request(self.op.problem(*facts), kernel, outputs, dict(sizes), target)

    def _check_devices(self, tensors: Args, grad: Tensor | None = None) -> None:
        device = tensors[0].device
        for place, tensor in enumerate((*tensors, grad)):
            if tensor is not None and tensor.device != device:
                name = self.op.tensors[place].name if place < self.count else "grad"
                raise ValueError(
                    f"{name} must be on the device of {self.op.tensors[0].name}, {device}, "
                    f"got {tensor.device}"
                )

    def _make_signature(self, kernel: str, outputs: tuple[str, ...]) -> tuple[Places, Places]:
        """Where among the values a kernel's inputs and outputs are, and which of them are maps."""
        inputs = self.op.needs(self.op.kernels()[kernel], outputs)
        taken, filled = (
            tuple((self._places[name], name in self._maps) for name in names)
            for names in (inputs, outputs)
        )
        return taken, filled


def target_of(tensor: Tensor, backward: bool) -> Gpu | None:
    """The GPU that a call with this tensor is for, in the manner that torch asks for; None: CPU.

    Only gradients are sums whose order may depend on chance, and only float32 has TF32.
    """
    if tensor.is_cpu:
        return None
    deterministic = backward and torch.are_deterministic_algorithms_enabled()
    return _in_manner(
        tensor.device.index, deterministic, tensor.dtype == torch.float32 and _allows_tf32()
    )


@functools.cache
def _in_manner(index: int, deterministic: bool, tf32: bool) -> Gpu:
    return replace(gpu.of_device(index), deterministic=deterministic, tf32=tf32)


def _allows_tf32() -> bool:
    """What the user said last, in torch's new words or in its old ones, which must not be mixed."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32) if precision is None else precision == "tf32"


def layout_of(tensor: Tensor) -> str:
    """channels_last only where the tensor is so and not also contiguous, as torch's convolution."""
    if tensor.is_contiguous() or not tensor.is_contiguous(memory_format=torch.channels_last):
        return "nchw"
    return "nhwc"


def _empty(shape: Args, like: Tensor, layout: str) -> Tensor:
    form = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)


def _is_aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % _ALIGNMENT == 0


def _dense_maps(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
