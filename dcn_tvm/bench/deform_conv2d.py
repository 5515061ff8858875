"""Contenders of deformable convolution, which all get the tensors of `dcn_tvm.examples`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import dcn_tvm
import dcn_tvm.reference
from dcn_tvm.bench.contender import Call, Contender, Mode, OpBench, Setting, example_of, settings
from dcn_tvm.examples import Example
from dcn_tvm.suites import Case

ONNX_OPSET = 19
SHRUNK_PIXELS = 8

Pair = tuple[int, int]
Op = Callable[[Tensor, Tensor, Tensor, Tensor, Pair, Pair, Pair], Tensor]


class Geometry(NamedTuple):
    """The sizes of a case."""

    batch: int
    in_channels: int
    out_channels: int
    map_size: Pair
    output_size: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    offset_groups: int

    @classmethod
    def of(cls, case: Case) -> Geometry:
        """Return the sizes of `case`, the output's computed."""
        map_size = (case.integer("height"), case.integer("width"))
        kernel, stride, padding, dilation = (
            case.pair(name) for name in ("kernel_size", "stride", "padding", "dilation")
        )
        rows, columns = (
            (map_size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i in range(2)
        )
        return cls(
            case.integer("batch"),
            case.integer("in_channels"),
            case.integer("out_channels"),
            map_size,
            (rows, columns),
            kernel,
            stride,
            padding,
            dilation,
            case.integer("offset_groups"),
        )

    @property
    def taps(self) -> int:
        """Elements of the kernel window."""
        return math.prod(self.kernel_size)

    @property
    def pixels(self) -> int:
        """Output pixels in the batch."""
        return self.batch * math.prod(self.output_size)


class Arguments(NamedTuple):
    """The tensors of one call."""

    input: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, example: Example) -> Arguments:
        """Return the tensors of a call with a bias and without a mask, as all of the suite are."""
        return cls(*(tensor for tensor in example.tensors if tensor is not None))


def _torch_call(op: Op, case: Case, setting: Setting, compute_dtype: str | None = None) -> Call:
    """Return the call that runs `op` in a mode; `compute_dtype` widens the rounded inputs."""
    example = example_of(case, setting)
    widened = getattr(torch, compute_dtype or setting.dtype)
    inputs = Arguments(*(tensor.to(widened) for tensor in Arguments.of(example)))
    g = Geometry.of(case)

    def forward() -> Tensor:
        return op(*inputs, g.stride, g.padding, g.dilation)

    if setting.mode == "forward":
        return lambda: [forward()]
    if setting.mode == "network":
        filter_before, filter_after = (
            f.to(setting.device, widened) for f in _filters(g, setting.dtype)
        )

        def network() -> list[Tensor]:
            before = functional.conv2d(inputs.input, filter_before).relu_()
            output = op(before, *inputs[1:], g.stride, g.padding, g.dilation)
            return [functional.conv2d(output, filter_after).relu_()]

        return network
    grad_output = example.make_grad().to(widened)
    for tensor in inputs:
        tensor.requires_grad_()

    def forward_backward() -> list[Tensor]:
        output = forward()
        gradients = torch.autograd.grad(output, inputs, grad_output, allow_unused=True)
        return [output, *(gradient for gradient in gradients if gradient is not None)]

    return forward_backward


def _filters(g: Geometry, dtype: str) -> tuple[Tensor, Tensor]:
    """Return the 1×1 filters of the network mode, before the op and after it."""
    generator = torch.Generator().manual_seed(0)

    def square(channels: int) -> Tensor:
        filters = torch.randn(channels, channels, 1, 1, generator=generator) / math.sqrt(channels)
        return filters.to(getattr(torch, dtype))

    return square(g.in_channels), square(g.out_channels)


def _ours(case: Case, setting: Setting) -> Call:
    return _torch_call(dcn_tvm.deform_conv2d, case, setting)


def _oracle(case: Case, setting: Setting) -> Call:
    return _torch_call(dcn_tvm.reference.deform_conv2d, case, setting, "float32")


def _torchvision(case: Case, setting: Setting) -> Call:
    from torchvision.ops import deform_conv2d

    return _torch_call(deform_conv2d, case, setting)


def _conv2d(case: Case, setting: Setting) -> Call:
    def op(
        input: Tensor, _: Tensor, weight: Tensor, bias: Tensor, s: Pair, p: Pair, d: Pair
    ) -> Tensor:
        return functional.conv2d(input, weight, bias, s, p, d)

    return _torch_call(op, case, setting)


def _rest(case: Case, setting: Setting) -> Call:
    """Return the network mode's call with an op that costs nothing."""
    ready = example_of(case, setting).make_grad()
    return _torch_call(lambda *_: ready, case, setting)


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


def _onnxruntime(case: Case, setting: Setting) -> Call:
    """Return a session's run; weight and bias are constants of the model, which helps it most."""
    import onnxruntime

    tensors = Arguments.of(example_of(case, setting))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle ONNX Runtime threads would spin and slow down every other contender.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        _onnx_model(tensors, Geometry.of(case)), options, providers=["CPUExecutionProvider"]
    )
    feed = {"X": tensors.input.numpy(), "offset": tensors.offset.numpy()}
    return lambda: [torch.from_numpy(session.run(None, feed)[0])]


def _onnx_model(tensors: Arguments, g: Geometry) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "DeformConv",
        ["X", "W", "offset", "B"],
        ["Y"],
        kernel_shape=list(g.kernel_size),
        strides=list(g.stride),
        pads=[*g.padding, *g.padding],
        dilations=list(g.dilation),
        offset_group=g.offset_groups,
    )
    shape = [g.batch, g.out_channels, *g.output_size]
    graph = helper.make_graph(
        [node],
        "deform_conv2d",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(tensor.shape))
            for name, tensor in (("X", tensors.input), ("offset", tensors.offset))
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(tensor.numpy(), name)
            for name, tensor in (("W", tensors.weight), ("B", tensors.bias))
        ],
    )
    opset = [helper.make_opsetid("", ONNX_OPSET)]
    # The oldest IR version with this opset: newer ones are refused by older runtimes.
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    return bytes(model.SerializeToString())


def _flops(case: Case, mode: Mode) -> int:
    """Return 2 × the multiplications of the convolution; backward does two more of that size."""
    g = Geometry.of(case)
    forward = 2 * g.pixels * g.out_channels * g.in_channels * g.taps
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
    offset = g.pixels * 2 * g.offset_groups * g.taps
    weight = g.out_channels * (g.in_channels * g.taps + 1)  # and the bias
    inputs, output = maps + offset + weight, g.pixels * g.out_channels
    elements = inputs + output
    if setting.mode == "forward+backward":
        elements += 2 * inputs + output
    if setting.mode == "network":
        elements += 2 * (maps + output) + g.in_channels**2 + g.out_channels**2
    itemsize: int = getattr(torch, setting.dtype).itemsize
    return elements * itemsize


def _shrink(case: Case) -> Case:
    return case.resized(batch=1, height=SHRUNK_PIXELS, width=SHRUNK_PIXELS)


def _output_bytes(case: Case) -> int:
    g = Geometry.of(case)
    return 4 * g.pixels * g.out_channels


_CONTIGUOUS = settings(memory_formats=("contiguous",))
_HALF = settings(("forward",), ("bfloat16",))

_EVERYWHERE = ("cpu", "cuda")

BENCH = OpBench(
    contenders=(
        Contender(
            *("conv2d", "baseline", "torch", settings(), _conv2d, "pip install torch"),
            devices=_EVERYWHERE,
        ),
        Contender(
            *("dcn_tvm", "ours", "dcn_tvm", settings() + _HALF, _ours, "pip install dcn_tvm"),
            devices=_EVERYWHERE,
        ),
        Contender(
            "torchvision",
            "peer",
            "torchvision",
            _CONTIGUOUS,
            _torchvision,
            "pip install torchvision",
            ("torchvision.ops",),
            devices=_EVERYWHERE,
        ),
        Contender(
            "onnxruntime",
            "peer",
            "onnxruntime",
            _CONTIGUOUS[:1],
            _onnxruntime,
            "pip install onnxruntime onnx",
            ("onnxruntime", "onnx"),
        ),
        Contender(
            *("gemm", "floor", "torch", _CONTIGUOUS[:2], _gemm, "pip install torch"),
            devices=_EVERYWHERE,
        ),
        Contender("torch ops", "rest", "torch", settings(("network",)), _rest, "pip install torch"),
    ),
    oracle=_oracle,
    flops=_flops,
    shrink=_shrink,
    output_bytes=_output_bytes,
    bytes_moved=_bytes_moved,
)
