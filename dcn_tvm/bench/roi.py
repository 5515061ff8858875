"""What the benchmarks of all RoI ops share: boxes, arguments, contenders and what a call moves.

Boxes are like proposals: sides log-uniform from 24 to 240 pixels of the image, centres uniform over
it, clipped. Their numbers are odd multiples of 1/64, their offsets (standard deviation 1) odd
multiples of 1/128: no corner lies on a half that has to be rounded, no moved sample where its slope
jumps, and there two right answers may differ. Boxes end two pixels of the map before its end:
beyond that torchvision's ps_roi_pool has a gradient that is not its forward's.

In channels_last the input and the gradient from above have that format.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dcn_tvm
import dcn_tvm.reference
from dcn_tvm import ops
from dcn_tvm.bench.contender import Call, Contender, Mode, OpBench, Setting, settings
from dcn_tvm.ops.roi import RoIProblem
from dcn_tvm.suites import Case

SIDE_PIXELS = (24.0, 240.0)  # of the image
BORDER_PIXELS = 2  # of the map
SHRUNK_PIXELS, SHRUNK_BOXES = 8, 2
# The reference reads the whole map for every box, roi_pool's maximum even for every bin.
JUDGED_PIXELS, JUDGED_BOXES = 24, 4

MODES: tuple[Mode, ...] = ("forward", "forward+backward")
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_CONTIGUOUS = settings(MODES, memory_formats=("contiguous",))

Options = Callable[[Case], dict[str, Any]]
Serves = Callable[[Case], bool]
Node = Callable[..., Any]


class Arguments(NamedTuple):
    """The tensors of one call; no offset where the op takes none."""

    input: Tensor
    boxes: Tensor
    offset: Tensor | None


def problem_of(case: Case) -> RoIProblem:
    """Return the problem of a case in float32, which knows the shapes."""
    kind = ops.registry()[case.op].problem
    known = {field.name for field in dataclasses.fields(kind)}
    facts: dict[str, Any] = {name: size for name, size in case.sizes.items() if name in known}
    problem = kind(dtype="float32", layout="nchw", **facts)
    assert isinstance(problem, RoIProblem)
    return problem


def boxes_of(case: Case) -> Tensor:
    """Return boxes `[K, 5]`, rows (image, x1, y1, x2, y2) in pixels of the image."""
    generator = torch.Generator().manual_seed(0)
    count, stride = case.integer("boxes"), case.integer("stride")
    pixels = torch.tensor([case.integer("width"), case.integer("height")]) - BORDER_PIXELS
    extent = (pixels * stride).float()
    share, centre = torch.rand(2, count, 2, generator=generator)
    least, most = SIDE_PIXELS
    half = least * (most / least) ** share / 2
    corners = [centre * extent - half, centre * extent + half]
    clipped = torch.cat([torch.minimum(corner.clamp(min=0), extent) for corner in corners], 1)
    image = torch.arange(count) % case.integer("batch")
    return torch.cat([image[:, None].float(), (2 * torch.floor(clipped * 32) + 1) / 64], 1)


def arguments(case: Case, dtype: str, memory_format: str = "contiguous") -> Arguments:
    """Return tensors for `case`, the same numbers for everyone; boxes stay float32."""
    shapes, offset = _shapes(case), None
    if shapes.offset:
        steps = torch.floor(_normal(shapes.offset, seed=2) * 64)
        offset = ((2 * steps + 1) / 128).to(getattr(torch, dtype))
    input = _place(_normal(shapes.input, seed=1), dtype, memory_format)
    return Arguments(input, boxes_of(case), offset)


def gradient_of(case: Case, dtype: str, memory_format: str = "contiguous") -> Tensor:
    """Return the gradient from above, as large as the output, which may be 400 MB."""
    return _place(_normal(_shapes(case).output, seed=3), dtype, memory_format)


def _normal(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _place(tensor: Tensor, dtype: str, memory_format: str) -> Tensor:
    return tensor.to(getattr(torch, dtype)).contiguous(memory_format=_FORMATS[memory_format])


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


def _torch_call(
    function: Callable[..., Tensor],
    options: dict[str, Any],
    case: Case,
    setting: Setting,
    *,
    still: bool = False,
    compute_dtype: str | None = None,
) -> Call:
    """Return the call that runs `function` in a mode.

    Still: without offsets. `compute_dtype` widens the rounded inputs.
    """
    tensors = arguments(case, setting.dtype, setting.memory_format)
    widened = getattr(torch, compute_dtype or setting.dtype)
    input = tensors.input.to(widened)
    places: list[Tensor | None] = [input, tensors.boxes]
    inputs = [input]
    if problem_of(case).deformable:
        offset = None if still or tensors.offset is None else tensors.offset.to(widened)
        places.append(offset)
        inputs += [] if offset is None else [offset]
    size, scale = case.pair("output_size"), 1 / case.integer("stride")

    def forward() -> Tensor:
        return function(*places, size, scale, **options)

    if setting.mode == "forward":
        return lambda: [forward()]
    grad_output = gradient_of(case, setting.dtype, setting.memory_format).to(widened)
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
        return _torch_call(ours, options(case), case, setting)

    def plain(case: Case, setting: Setting) -> Call:
        return _torch_call(ours, options(case), case, setting, still=True)

    def oracle(case: Case, setting: Setting) -> Call:
        return _torch_call(reference, options(case), case, setting, compute_dtype="float32")

    half = settings(("forward",), ("bfloat16",))
    install = "pip install dcn_tvm"
    contenders = [
        Contender("copy", "baseline", "torch", _CONTIGUOUS, _copy, "pip install torch"),
        Contender("dcn_tvm", "ours", "dcn_tvm", settings(MODES) + half, prepare, install),
        *peers,
    ]
    kind = ops.registry()[op].problem
    assert issubclass(kind, RoIProblem)
    if kind.deformable:
        contenders.append(Contender("plain", "floor", "dcn_tvm", settings(MODES), plain, install))
    return OpBench(
        contenders=tuple(contenders),
        oracle=oracle,
        flops=_flops,
        shrink=lambda case: _at_most(case, SHRUNK_PIXELS, SHRUNK_BOXES),
        output_bytes=lambda case: 4 * math.prod(_shapes(case).output),
        bytes_moved=_bytes_moved,
        judged=lambda case: _at_most(case, JUDGED_PIXELS, JUDGED_BOXES),
    )


def torchvision_peer(
    op: str, options: Options = no_options, serves: Serves = lambda case: True
) -> Contender:
    """Return torchvision's function of the same name."""

    def prepare(case: Case, setting: Setting) -> Call:
        import torchvision.ops

        return _torch_call(getattr(torchvision.ops, op), options(case), case, setting)

    return Contender(
        "torchvision",
        "peer",
        "torchvision",
        _CONTIGUOUS,
        prepare,
        "pip install torchvision",
        ("torchvision.ops",),
        serves,
    )


def openvino_peer(node: Node, serves: Serves) -> Contender:
    """Return an OpenVINO model of one node, `node(case, input, boxes[, offset])`.

    The request fills the same output in every call, which helps it.
    """

    def prepare(case: Case, setting: Setting) -> Call:
        import openvino

        tensors = arguments(case, setting.dtype)
        given = [t.numpy() for t in tensors if t is not None]
        parameters = [openvino.opset1.parameter(list(a.shape), a.dtype) for a in given]
        config = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # it would pin the thread that all contenders run in
        }
        model = openvino.Model([node(case, *parameters)], parameters)
        request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
        held = [openvino.Tensor(array, shared_memory=True) for array in given]
        for place, tensor in enumerate(held):
            request.set_input_tensor(place, tensor)

        def infer() -> list[Tensor]:
            assert held  # the request does not keep what it reads
            request.infer()
            return [torch.from_numpy(request.get_output_tensor(0).data)]

        return infer

    return Contender(
        "openvino",
        "peer",
        "openvino",
        _CONTIGUOUS[:1],
        prepare,
        "pip install openvino",
        ("openvino.opset1",),
        serves,
    )


def _copy(case: Case, setting: Setting) -> Call:
    """Return a copy that reads and writes, together, the bytes that the op moves at least.

    It fills the same memory in every call. What returns new tensors pays for fresh pages as well,
    once they are so large (32 MiB with glibc) that freed memory goes back to the system.
    """
    count = _bytes_moved(case, setting) // 8
    source, target = torch.ones(count), torch.ones(count)
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


def _at_most(case: Case, pixels: int, boxes: int) -> Case:
    """Return the case with the same channels, thus the same kernels, on a small map."""
    most = {"batch": 1, "height": pixels, "width": pixels, "boxes": boxes}
    return case.resized(**{name: min(case.integer(name), size) for name, size in most.items()})
