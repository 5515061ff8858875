"""Contenders of deformable convolution, which all get the tensors of `dcn_tvm.examples`.

torchvision and mmcv take part in no half type: where they run in float16 they compute positions in
it, and their results are off by more than rounding.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import dcn_tvm
import dcn_tvm.reference
from dcn_tvm.bench import mmcv_peer
from dcn_tvm.bench.contender import (
    MODES,
    Call,
    Contender,
    Mode,
    OpBench,
    Setting,
    Work,
    example_of,
    settings,
)
from dcn_tvm.bench.convolution import Arguments, Geometry, Pair, problem_of, torch_call
from dcn_tvm.bench.onnx_peer import Node as OnnxNode
from dcn_tvm.bench.onnx_peer import onnx_peer
from dcn_tvm.bench.openvino_peer import Node as OpenVinoNode
from dcn_tvm.bench.openvino_peer import openvino_peer
from dcn_tvm.problem import DTYPES
from dcn_tvm.suites import Case

ONNX_OPSET = 19
SHRUNK_PIXELS = 8


def _ours(case: Case, setting: Setting) -> Call:
    op = functools.partial(dcn_tvm.deform_conv2d, boundary=problem_of(case).boundary)
    return torch_call(op, case, setting)


def _oracle(case: Case, setting: Setting) -> Call:
    op = functools.partial(dcn_tvm.reference.deform_conv2d, boundary=problem_of(case).boundary)
    return torch_call(op, case, setting, case.problem(setting.dtype).accumulate)


def _torchvision(case: Case, setting: Setting) -> Call:
    from torchvision.ops import deform_conv2d

    return torch_call(deform_conv2d, case, setting)


def _mmcv(case: Case, setting: Setting) -> Call:
    return torch_call(mmcv_peer.deform_conv2d, case, setting)


def _conv2d(case: Case, setting: Setting) -> Call:
    groups = Geometry.of(case).groups

    def op(
        input: Tensor,
        _offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        _mask: Tensor | None,
    ) -> Tensor:
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)

    return torch_call(op, case, setting)


def _rest(case: Case, setting: Setting) -> Call:
    """Return the network mode's call with an op that costs nothing."""
    ready = example_of(case, setting).make_grad()
    return torch_call(lambda *_: ready, case, setting)


def _gemm(case: Case, setting: Setting) -> Call:
    """Return `weight [O, C*K] @ columns [C*K, pixels]`, and for backward its two gradients."""
    g = Geometry.of(case)

    def drawn(rows: int, columns: int) -> Tensor:
        dtype = getattr(torch, setting.dtype)
        return torch.randn(rows, columns, dtype=dtype, device=setting.device)

    weight = drawn(g.out_channels, g.in_channels * g.taps)
    columns = drawn(g.in_channels * g.taps, g.pixels)
    grad_output = drawn(g.out_channels, g.pixels)
    if setting.mode == "forward":
        return lambda: [weight @ columns]
    return lambda: [weight @ columns, weight.T @ grad_output, grad_output @ columns.T]


def _onnx(case: Case, setting: Setting) -> OnnxNode:
    tensors, g = Arguments.of(example_of(case, setting)), Geometry.of(case)
    attributes = {
        "kernel_shape": list(g.kernel_size),
        "strides": list(g.stride),
        "pads": [*g.padding, *g.padding],
        "dilations": list(g.dilation),
        "group": g.groups,
        "offset_group": g.offset_groups,
    }
    inputs = {
        "X": tensors.input,
        "W": tensors.weight,
        "offset": tensors.offset,
        "B": tensors.bias,
        "mask": tensors.mask,
    }
    return OnnxNode("DeformConv", ONNX_OPSET, attributes, inputs, constants=frozenset(("W", "B")))


def _openvino(case: Case, setting: Setting) -> OpenVinoNode:
    from openvino import opset8

    tensors, g = Arguments.of(example_of(case, setting)), Geometry.of(case)

    def node(input: Any, offset: Any, *mask: Any) -> Any:
        convolved = opset8.deformable_convolution(
            input,
            offset,
            tensors.weight.numpy(),
            list(g.stride),
            list(g.padding),
            list(g.padding),
            list(g.dilation),
            *mask,
            group=g.groups,
            deformable_group=g.offset_groups,
            bilinear_interpolation_pad=True,  # else all samples off the map are 0
        )
        if tensors.bias is None:
            return convolved
        return opset8.add(convolved, tensors.bias.reshape(1, -1, 1, 1).numpy())

    moved = [t for t in (tensors.input, tensors.offset, tensors.mask) if t is not None]
    return OpenVinoNode(moved, node)


def _flops(case: Case, mode: Mode) -> int:
    """Return 2 × the multiplications of the convolution; backward does two more of that size."""
    g = Geometry.of(case)
    forward = 2 * g.pixels * g.out_channels * g.terms
    if mode == "network":
        before = 2 * g.batch * math.prod(g.map_size) * g.in_channels**2
        return forward + before + 2 * g.pixels * g.out_channels**2
    return forward * (3 if mode == "forward+backward" else 1)


def _bytes_moved(case: Case, setting: Setting) -> int:
    """Return the bytes of all tensors; backward reads them again and writes as many gradients.

    In the network mode each 1×1 convolution reads a map and its filters and writes a map.
    """
    g = Geometry.of(case)
    maps = g.batch * math.prod(g.map_size) * g.in_channels
    problem = problem_of(case)
    moves = g.pixels * g.offset_groups * g.taps * (3 if problem.modulated else 2)
    weight = g.out_channels * (g.terms + problem.bias)
    inputs, output = maps + moves + weight, g.pixels * g.out_channels
    elements = inputs + output
    if setting.mode == "forward+backward":
        elements += 2 * inputs + output
    if setting.mode == "network":
        elements += 2 * (maps + output) + g.in_channels**2 + g.out_channels**2
    itemsize: int = getattr(torch, setting.dtype).itemsize
    return elements * itemsize


def _product_work(case: Case, setting: Setting) -> Work:
    """Return the operations of the convolution, on matrices that are there."""
    g = Geometry.of(case)
    sides = (g.out_channels * g.terms, g.terms * g.pixels, g.out_channels * g.pixels)
    elements = sum(sides) * (3 if setting.mode == "forward+backward" else 1)
    return Work(_flops(case, setting.mode), elements * getattr(torch, setting.dtype).itemsize)


def _rest_work(case: Case, setting: Setting) -> Work:
    """Return what the network mode does beside the op."""
    op = Setting("forward", setting.dtype, setting.memory_format)
    return Work(
        _flops(case, "network") - _flops(case, "forward"),
        _bytes_moved(case, setting) - _bytes_moved(case, op),
    )


def _shrink(case: Case) -> Case:
    return case.resized(batch=1, height=SHRUNK_PIXELS, width=SHRUNK_PIXELS)


def _bounded_by_zeros(case: Case) -> bool:
    return problem_of(case).boundary == "zeros"


_EVERYWHERE = ("cpu", "cuda")
_EVERY = settings(MODES, DTYPES)
_PLAIN = ("contiguous",)

BENCH = OpBench(
    contenders=(
        Contender(
            *("conv2d", "baseline", "torch", _EVERY, _conv2d, "pip install torch"),
            devices=_EVERYWHERE,
        ),
        Contender(
            *("dcn_tvm", "ours", "dcn_tvm", _EVERY, _ours, "pip install dcn_tvm"),
            devices=_EVERYWHERE,
        ),
        Contender(
            "torchvision",
            "peer",
            "torchvision",
            settings(MODES, ("float32", "float64"), _PLAIN),
            _torchvision,
            "pip install torchvision",
            ("torchvision.ops",),
            _bounded_by_zeros,
            _EVERYWHERE,
        ),
        onnx_peer(_onnx, ("float32", "float64"), _bounded_by_zeros),
        openvino_peer(_openvino, _bounded_by_zeros),
        mmcv_peer.mmcv_peer(_mmcv, MODES, ("float32", "float64"), _bounded_by_zeros, _EVERYWHERE),
        Contender(
            "gemm",
            "floor",
            "torch",
            settings(MODES[:2], DTYPES, _PLAIN),
            _gemm,
            "pip install torch",
            serves=lambda case: Geometry.of(case).groups == 1,
            devices=_EVERYWHERE,
            work=_product_work,
        ),
        Contender(
            *("torch ops", "rest", "torch", settings(("network",), DTYPES), _rest),
            install="pip install torch",
            devices=_EVERYWHERE,
            work=_rest_work,
        ),
    ),
    oracle=_oracle,
    flops=_flops,
    shrink=_shrink,
    bytes_moved=_bytes_moved,
)
