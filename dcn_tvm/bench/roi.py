"""What the benchmarks of all RoI ops share: contenders, and what a call does and moves.

All get the tensors of `dcn_tvm.examples`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dcn_tvm
import dcn_tvm.reference
from dcn_tvm import examples, ops
from dcn_tvm.bench.contender import (
    Call,
    Contender,
    Mode,
    OpBench,
    Setting,
    Work,
    example_of,
    settings,
)
from dcn_tvm.examples import roi
from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.problem import DTYPES
from dcn_tvm.suites import Case

SHRUNK = {"batch": 1, "height": 8, "width": 8, "boxes": 2}

MODES: tuple[Mode, ...] = ("forward", "forward+backward")
_EVERYWHERE = ("cpu", "cuda")

Options = Callable[[Case], dict[str, Any]]
Serves = Callable[[Case], bool]


def problem_of(case: Case) -> RoIProblem:
    """Return the problem of a case in float32, which knows the shapes."""
    problem = case.problem()
    assert isinstance(problem, RoIProblem)
    return problem


def boxes_of(case: Case) -> Tensor:
    """Return boxes `[K, 5]`, rows (image, x1, y1, x2, y2) in pixels of the image."""
    return roi.boxes(problem_of(case), case.free_sizes)


def example_tensors(case: Case, setting: Setting) -> list[Tensor]:
    """Return the tensors of the call: map, boxes and, if they move, the offsets."""
    return [tensor for tensor in example_of(case, setting).tensors if tensor is not None]


class _Shapes(NamedTuple):
    input: tuple[int, ...]
    output: tuple[int, ...]
    offset: tuple[int, ...]  # () for none


def _shapes(case: Case) -> _Shapes:
    problem, boxes = problem_of(case), case.integer("boxes")
    batch, height, width = (case.integer(name) for name in ("batch", "height", "width"))
    return _Shapes(
        (batch, problem.channels, height, width),
        (boxes, problem.output_channels, *problem.output_size),
        (boxes, 2 * problem.classes, *problem.parts) if problem.moves else (),
    )


def torch_call(
    function: Callable[..., Tensor],
    options: dict[str, Any],
    case: Case,
    setting: Setting,
    *,
    still: bool = False,
    compute_dtype: str | None = None,
) -> Call:
    """Return the call that runs `function` in a mode.

    Args:
        function: of the map, the boxes, the offsets of an op that has them, the number of bins,
            the map's pixels per image pixel, and options.
        options: by name.
        case: the sizes.
        setting: the mode and what the tensors are.
        still: whether offsets are left out.
        compute_dtype: to what the rounded inputs are widened, if they are.
    """
    example = example_of(case, setting)
    widened = getattr(torch, compute_dtype or setting.dtype)
    input, boxes, *offsets = example.tensors
    assert input is not None
    moves = [None if still or t is None else t.to(widened) for t in offsets]
    places = [input.to(widened), boxes, *moves]
    size, scale = case.pair("output_size"), 1 / case.integer("stride")

    def forward() -> Tensor:
        return function(*places, size, scale, **options)

    if setting.mode == "forward":
        return lambda: [forward()]
    grad_output = example.make_grad().to(widened)
    inputs = [t for t in (places[0], *moves) if t is not None]
    for tensor in inputs:
        tensor.requires_grad_()

    def forward_backward() -> list[Tensor]:
        output = forward()
        return [output, *torch.autograd.grad(output, inputs, grad_output)]

    return forward_backward


def no_options(case: Case) -> dict[str, Any]:
    """Return none."""
    return {}


def roi_bench(op: str, options: Options = no_options, peers: tuple[Contender, ...] = ()) -> OpBench:
    """Return the benchmark of `op`; `options` are our function's beyond the common ones."""
    ours, reference = getattr(dcn_tvm, op), getattr(dcn_tvm.reference, op)

    def prepare(case: Case, setting: Setting) -> Call:
        return torch_call(ours, options(case), case, setting)

    def plain(case: Case, setting: Setting) -> Call:
        return torch_call(ours, options(case), case, setting, still=True)

    def oracle(case: Case, setting: Setting) -> Call:
        wide = case.problem(setting.dtype).accumulate
        return torch_call(reference, options(case), case, setting, compute_dtype=wide)

    every, install = settings(MODES, DTYPES), "pip install dcn_tvm"
    plainly = settings(MODES, DTYPES, ("contiguous",))
    contenders = [
        Contender(
            *("copy", "baseline", "torch", plainly, _copy, "pip install torch"),
            devices=_EVERYWHERE,
            work=lambda case, setting: Work(0, _bytes_moved(case, setting)),
        ),
        Contender(
            *("dcn_tvm", "ours", "dcn_tvm", every, prepare, install),
            devices=_EVERYWHERE,
        ),
        *peers,
    ]
    kind = ops.registry()[op].problem
    assert issubclass(kind, RoIProblem)
    if kind.deformable:
        contenders.append(
            Contender(
                *("plain", "floor", "dcn_tvm", every, plain, install),
                devices=_EVERYWHERE,
            )
        )
    return OpBench(
        contenders=tuple(contenders),
        oracle=oracle,
        flops=_flops,
        shrink=_shrink,
        bytes_moved=_bytes_moved,
        judged=_judged,
    )


def torchvision_peer(
    op: str, options: Options = no_options, serves: Serves = lambda case: True
) -> Contender:
    """Return torchvision's function of the same name.

    Not in half types: it takes boxes in the map's dtype, and those are other boxes once rounded.
    """

    def prepare(case: Case, setting: Setting) -> Call:
        import torchvision.ops

        return torch_call(getattr(torchvision.ops, op), options(case), case, setting)

    return Contender(
        "torchvision",
        "peer",
        "torchvision",
        settings(MODES, ("float32", "float64"), ("contiguous",)),
        prepare,
        "pip install torchvision",
        ("torchvision.ops",),
        serves,
        _EVERYWHERE,
    )


def _copy(case: Case, setting: Setting) -> Call:
    """Return a copy that reads and writes, together, the bytes that the op moves at least.

    It fills the same memory in every call. What returns new tensors pays for fresh pages as well,
    once they are so large (32 MiB with glibc) that freed memory goes back to the system.
    """
    count = _bytes_moved(case, setting) // 8
    source, target = (torch.ones(count, device=setting.device) for _ in range(2))
    return lambda: [target.copy_(source)]


def _bytes_moved(case: Case, setting: Setting) -> int:
    """Return the bytes of all tensors: the whole map, though some pixels may be in no box.

    Backward reads the gradient from above, boxes and offsets, and writes the gradients; that of the
    offset takes the map once more.
    """
    shapes = _shapes(case)
    input, output = math.prod(shapes.input), math.prod(shapes.output)
    offset = math.prod(shapes.offset) if shapes.offset else 0
    passes, elements = 1, input + output + offset
    if setting.mode == "forward+backward":
        passes, elements = 2, elements + output + input + 2 * offset + (input if offset else 0)
    itemsize: int = getattr(torch, setting.dtype).itemsize
    return elements * itemsize + passes * case.integer("boxes") * 5 * 4


def _flops(case: Case, mode: Mode) -> int:
    """Return 2 × output elements × the map's pixels in a mean bin, at least one along each side.

    However many samples a variant takes: so their rates compare. Backward does as much once more,
    and for offsets twice more.
    """
    sides = (case.integer("stride"), *case.pair("output_size"))
    boxes = boxes_of(case)
    lengths = [
        ((boxes[:, 3 + axis] - boxes[:, 1 + axis]) / sides[0] / bins).clamp(min=1)
        for axis, bins in ((0, sides[2]), (1, sides[1]))
    ]
    pixels = float((lengths[0] * lengths[1]).mean())
    backward = 2 if problem_of(case).moves else 1
    passes = 1 + backward if mode == "forward+backward" else 1
    return round(2 * math.prod(_shapes(case).output) * pixels * passes)


def _shrink(case: Case) -> Case:
    """Return the case with the same channels, thus the same kernels, on a tiny map."""
    return case.resized(**{name: min(case.integer(name), size) for name, size in SHRUNK.items()})


def _judged(case: Case) -> Case:
    """Return the case with the same channels, thus the same kernels, for the oracle."""
    return case.resized(**examples.judged_sizes(problem_of(case), case.free_sizes))
