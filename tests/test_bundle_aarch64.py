"""Kernels that are compiled here for aarch64 compute the right thing there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dcn_tvm import ops
from dcn_tvm.agreement import TOLERANCES, relative_error
from dcn_tvm.binding import Binding
from dcn_tvm.build import Request
from dcn_tvm.bundles import making, targets
from dcn_tvm.bundles.manifest import Manifest
from dcn_tvm.examples import example
from dcn_tvm.problem import Problem
from dcn_tvm.workload import Workload
from tests.aarch64 import machine
from tests.aarch64.machine import Machine

pytestmark = pytest.mark.skipif(bool(machine.missing()), reason=str(machine.missing()))

SIZES = {"batch": 2, "height": 7, "width": 9, "boxes": 5, "stride": 4}
CONVOLUTION = {"in_channels": 8, "out_channels": 12, "padding": (1, 1), "offset_groups": 2}
OPTIONS = {
    "deform_conv2d": {**CONVOLUTION, "modulated": True, "bias": True},
    "roi_align": {"channels": 12, "output_size": (3, 2)},
}


def problem(op: str, dtype: str, layout: str) -> Problem:
    return ops.registry()[op].problem(dtype=dtype, layout=layout, **OPTIONS[op])


PROBLEMS = [
    problem(op, dtype, layout)
    for op in OPTIONS
    for dtype, layout in (("float32", "nhwc"), ("float32", "nchw"), ("float16", "nhwc"))
]


@dataclass(frozen=True)
class Bundle:
    """A bundle for aarch64, as `dcn_tvm.load_bundle` would not open it here."""

    folder: Path
    manifest: Manifest

    def library(self, request: Request) -> Path:
        key = (request.problem, request.kernel, request.outputs)
        found = {(k.problem, k.kernel, k.outputs): k.library.file for k in self.manifest.kernels}
        return self.folder / found[key]

    @property
    def shim(self) -> Path:
        (shim,) = self.manifest.shims
        return self.folder / shim.file


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("aarch64") / "bundle"
    workloads = [Workload.of(problem, {}) for problem in PROBLEMS]
    every = [[f"grad_{n}" for n in ("input", "offset", "weight", "bias", "mask")]]
    jobs = making.plan(workloads, [targets.parse("cpu:aarch64")], every)
    return Bundle(folder, making.make(folder, jobs))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    board = Machine(tmp_path_factory.mktemp("board"))
    board.build()
    return board


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_forward_and_backward_agree_with_the_reference(
    problem: Problem, bundle: Bundle, board: Machine
) -> None:
    call = example(problem, SIZES)
    grad = call.make_grad()
    exact = [None if t is None else t.double().requires_grad_() for t in call.tensors]
    wanted = call.reference(*exact)
    op = ops.registry()[problem.op]
    given = zip(op.tensors, exact, strict=True)
    flags = [tensor is not None and spec.differentiable for spec, tensor in given]
    leaves = [tensor for tensor, flag in zip(exact, flags, strict=True) if flag]
    found = _run(problem, call.tensors, call.attributes, grad, flags, (bundle, board))
    results = [wanted, *torch.autograd.grad(wanted, leaves, grad.double())]
    assert len(found) == len(results)
    for result, reference in zip(found, results, strict=True):
        assert relative_error([result], [reference]) < TOLERANCES[problem.dtype]


def _run(
    problem: Problem,
    tensors: tuple[Tensor | None, ...],
    attributes: tuple[object, ...],
    grad: Tensor,
    flags: list[bool],
    place: tuple[Bundle, Machine],
) -> list[Tensor]:
    """The output and all gradients, as `Binding` asks kernels for them."""
    bundle, board = place
    op = ops.registry()[problem.op]
    binding, scalars = Binding(op), op.scalars(attributes)
    output = binding.forward_fake(*tensors, *attributes)
    gradients = binding.empty_gradients(tensors, flags)
    named: Mapping[str, Tensor | None] = {
        "output": output,
        **{f"grad_{t.name}": value for t, value in zip(op.tensors, gradients, strict=True)},
    }
    for kernel in op.kernels().values():
        outputs = tuple(name for name in kernel.outputs if named[name] is not None)
        request = Request(problem, kernel.name, outputs)
        last = (output,) if kernel is op.forward else (grad, *gradients)
        arguments = binding.arguments(request, (*tensors, *last))
        filled = arguments[len(arguments) - len(outputs) :]
        taken = arguments[: len(arguments) - len(outputs)]
        board.call(bundle.library(request), bundle.shim, taken, filled, scalars)
    return [output, *(gradient for gradient in gradients if gradient is not None)]
