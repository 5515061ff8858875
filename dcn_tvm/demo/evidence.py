"""What the demonstration proves: right numbers, less time, points that found their place."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from dcn_tvm import functional, measure, reference
from dcn_tvm.demo.lesson import Extractor, Lesson, Op, lesson_loss, plain_convolution
from dcn_tvm.nn import DeformConv2dPack
from dcn_tvm.viz import sampling_points


def misplacement(network: Extractor, lesson: Lesson) -> float:
    """Return how far, on average, a pixel's sampling points lie from its content, in map pixels."""
    layers = network.sampled(lesson.seen)
    height, width = lesson.visible.shape
    distances = []
    for pixel in ((y, x) for y in range(2, height, 6) for x in range(2, width, 6)):
        if lesson.visible[pixel]:
            centre = sampling_points(layers, pixel).mean(0)
            distances.append(torch.dist(centre, lesson.origin[pixel].double()).item())
    return sum(distances) / len(distances)


def compare_with_reference(network: Extractor, lesson: Lesson) -> dict[str, float]:
    """Return the relative errors, in the 2-norm, against the reference in float64.

    The network's output, and the output and every gradient of each deformable layer by itself on
    what it is given in the network.
    """
    exact = copy.deepcopy(network).double()
    with torch.no_grad():
        maps = network.run_layers(lesson.seen)[:-1]
        wanted = exact(lesson.seen.double(), reference.deform_conv2d)
        errors = {"output": _relative_error(network(lesson.seen), wanted)}
    for number, (layer, input) in enumerate(zip(network.packs, maps, strict=True), 1):
        for name, error in _layer_errors(layer, input).items():
            errors[f"layer {number}, {name}"] = error
    return errors


def _layer_errors(layer: DeformConv2dPack, input: Tensor) -> dict[str, float]:
    with torch.no_grad():
        offset = layer.conv_offset(input)
    given = [input, offset, layer.weight, layer.bias]
    exact = [tensor.detach().double() for tensor in given if tensor is not None]
    exact[1] = _as_rounded(offset, layer)
    grad_output = torch.randn(offset.shape[0], layer.out_channels, *offset.shape[2:])
    names = ("output", *(f"gradient of {name}" for name in ("input", "offset", "weight", "bias")))
    ours, true = (
        _with_gradients(op, [t.detach().clone() for t in tensors], layer, grad_output)
        for op, tensors in (
            (functional.deform_conv2d, [t for t in given if t is not None]),
            (reference.deform_conv2d, exact),
        )
    )
    return {n: _relative_error(a, b) for n, a, b in zip(names, ours, true, strict=True)}


def _as_rounded(offset: Tensor, layer: DeformConv2dPack) -> Tensor:
    """Return float64 offsets that lead to the very positions that float32 can express.

    The slope jumps at every pixel, so a position must not round to the other side of one.
    """
    taps = torch.cartesian_prod(*(torch.arange(size) for size in layer.kernel_size))
    start = taps * torch.tensor(layer.dilation) - torch.tensor(layer.padding)
    pixels = torch.meshgrid(*(torch.arange(size) for size in offset.shape[2:]), indexing="ij")
    moved = torch.stack(pixels) * torch.tensor(layer.stride)[:, None, None]
    grid = (start[:, :, None, None] + moved).flatten(0, 1)
    return (grid + offset).double() - grid


def _with_gradients(
    op: Op, tensors: list[Tensor], layer: DeformConv2dPack, grad_output: Tensor
) -> list[Tensor]:
    for tensor in tensors:
        tensor.requires_grad_()
    output = op(*tensors, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    gradients = torch.autograd.grad(output, tensors, grad_output.to(output.dtype))
    return [output.detach(), *gradients]


def _relative_error(ours: Tensor, true: Tensor) -> float:
    return float((ours.double() - true).norm() / true.norm())


def torchvision_op() -> Op | str:
    """Return torchvision's operator, or why there is none."""
    try:
        from torchvision.ops import deform_conv2d
    except (ImportError, OSError, RuntimeError) as error:  # a mismatched build raises these
        return f"absent ({type(error).__name__}); pip install torchvision"
    op: Op = deform_conv2d
    return op


def measure_times(
    network: Extractor, lesson: Lesson, peer: Op | None, seconds: float
) -> dict[str, dict[str, float]]:
    """Return group → provider → median milliseconds, for the network and for one of its layers."""
    ops: dict[str, Op] = {"dcn_tvm": functional.deform_conv2d, "conv2d": plain_convolution}
    if peer is not None:
        ops["torchvision"] = peer
    groups: dict[str, Callable[[Op], Callable[[], object]]] = {
        "one layer, forward": lambda op: _layer_call(network, lesson, op, backward=False),
        "one layer, forward + backward": lambda op: _layer_call(network, lesson, op, backward=True),
        "network, forward": lambda op: lambda: _no_grad(network, lesson, op),
        "network, forward + backward": lambda op: lambda: _step(network, lesson, op),
    }
    times_ms = {}
    for title, make in groups.items():
        calls = {name: make(op) for name, op in ops.items()}
        timings = measure.rotate(calls, seconds=seconds / len(groups))
        times_ms[title] = {name: timing.median_us / 1e3 for name, timing in timings.items()}
    return times_ms


@torch.no_grad()
def _no_grad(network: Extractor, lesson: Lesson, op: Op) -> Tensor:
    picture: Tensor = network(lesson.seen, op)
    return picture


def _step(network: Extractor, lesson: Lesson, op: Op) -> object:
    loss = lesson_loss(network(lesson.seen, op), lesson)
    return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)


def _layer_call(
    network: Extractor, lesson: Lesson, op: Op, *, backward: bool
) -> Callable[[], object]:
    """Return the call of the first deformable layer's op alone, on what it gets in the network."""
    layer = network.packs[0]
    with torch.no_grad():
        input = network.run_layers(lesson.seen)[0]
        given = [input, layer.conv_offset(input), layer.weight, layer.bias]
    leaves = [tensor.detach().clone().requires_grad_(backward) for tensor in given]
    if not backward:
        return lambda: op(*leaves, padding=layer.padding)
    grad_output = torch.ones_like(op(*leaves, padding=layer.padding))

    def call() -> object:
        output = op(*leaves, padding=layer.padding)
        return torch.autograd.grad(output, leaves, grad_output, allow_unused=True)

    return call
