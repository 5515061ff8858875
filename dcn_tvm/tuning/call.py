"""A kernel's call on realistic data, and what its results should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcn_tvm import ops
from dcn_tvm.agreement import TOLERANCES, relative_error
from dcn_tvm.binding import Binding, layout_of
from dcn_tvm.build import Request
from dcn_tvm.examples import Example, example, judged_sizes
from dcn_tvm.workload import Sizes

Kernel = Callable[..., None]


@dataclass(frozen=True, eq=False)
class KernelCall:
    """The arguments of one kernel.

    Attributes:
        example: the op's call that they belong to.
        arguments: what the kernel takes: tensors it reads, tensors it fills, scalars.
        results: the filled ones, by the names of the kernel's outputs.
    """

    example: Example
    request: Request
    arguments: tuple[Tensor | float, ...]
    results: dict[str, Tensor]


def prepare(request: Request, sizes: Sizes) -> KernelCall:
    """Return a call of the request's kernel on an example of these sizes.

    Raises:
        ValueError: there is no example of them.
    """
    made = example(request.problem, dict(sizes))
    first = made.tensors[0]
    assert first is not None
    if (met := layout_of(first)) != request.problem.layout:
        raise ValueError(
            f"a map of one channel or pixel is {met} to torch: no call has the layout "
            f"{request.problem.layout}"
        )
    op = ops.registry()[request.problem.op]
    binding = Binding(op)
    needed = [f"grad_{tensor.name}" in request.outputs for tensor in op.tensors]
    gradients = binding.empty_gradients(made.tensors, needed)
    forward = request.kernel == op.forward.name
    middle = binding.forward_fake(*made.tensors, *made.attributes) if forward else made.make_grad()
    results = {
        f"grad_{tensor.name}": gradient
        for tensor, gradient in zip(op.tensors, gradients, strict=True)
        if gradient is not None
    }
    if forward:
        results = {request.outputs[0]: middle}
    tensors = binding.arguments(request, (*made.tensors, middle, *gradients))
    return KernelCall(made, request, (*tensors, *op.scalars(made.attributes)), results)


def expected(call: KernelCall) -> dict[str, Tensor]:
    """Return what the reference computes, in the type of the kernel's sums.

    Not in float64: edges of bins that fall on a pixel in one type miss it in another.
    """
    op = ops.registry()[call.request.problem.op]
    dtype = getattr(torch, call.request.problem.accumulate)
    wide = [None if t is None else t.to(dtype, copy=True) for t in call.example.tensors]
    wanted = [
        f"grad_{tensor.name}" for tensor in op.tensors if f"grad_{tensor.name}" in call.results
    ]
    inputs = [
        tensor
        for spec, tensor in zip(op.tensors, wide, strict=True)
        if tensor is not None and f"grad_{spec.name}" in wanted
    ]
    for tensor in inputs:
        tensor.requires_grad_()
    output = call.example.reference(*wide)
    if not wanted:
        return {call.request.outputs[0]: output.detach()}
    grads = torch.autograd.grad(output, inputs, call.example.make_grad().to(dtype))
    return dict(zip(wanted, grads, strict=True))


def judge(request: Request, sizes: Sizes, run: Callable[[KernelCall], None]) -> str | None:
    """Compare a kernel with the reference; return what is wrong, None if nothing is.

    The sizes are made smaller where the reference would take too long.

    Args:
        request: the kernel.
        sizes: of the call that is tuned.
        run: calls the kernel and fills the call's results.
    """
    small = tuple(judged_sizes(request.problem, dict(sizes)).items())
    call = prepare(request, small)
    for result in call.results.values():
        result.fill_(float("nan"))  # what the kernel leaves out shows
    run(call)
    return disagreement(request, call.results, expected(call))


def disagreement(
    request: Request, results: dict[str, Tensor], wanted: dict[str, Tensor]
) -> str | None:
    """Return which result is further from what is wanted than rounding explains, or None."""
    tolerance = TOLERANCES[request.problem.dtype]
    for name, result in results.items():
        error = relative_error([result], [wanted[name]])
        if not error <= tolerance:
            return f"{name} is wrong: relative error {error:.1e}, tolerance {tolerance:.1e}"
    return None
