"""CUDA tensors from the operator to the request for a kernel, as far as that goes without a GPU.

Fake tensors have a device and no memory: the binding makes of them the same requests as of real
ones, and the kernels that it asks for are not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import dcn_tvm
from dcn_tvm import binding, bridge, gpu, kernels, ops
from dcn_tvm.build import Request
from tests.cases import CASES, PER_IMAGE, Arguments

DEVICE = gpu.assumed("sm_90,name=NVIDIA H100,multiprocessors=132")
CONV = bridge._bindings["deform_conv2d"]
ALIGN = bridge._bindings["roi_align"]


@pytest.mark.parametrize("name", ops.registry())
def test_operators_have_implementations_for_cuda(name: str) -> None:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for operator in (f"dcn_tvm::{name}", f"dcn_tvm::{name}_backward"):
        assert has(operator, "CUDA")
        assert has(operator, "CPU")
        assert has(operator, "Autograd")
    assert has(f"dcn_tvm::{name}", "AutocastCUDA")


class Calls:
    """What was asked for, and what it was called with."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.arguments: list[tuple[Any, ...]] = []
        self.claims: list[str] = []

    def get(self, request: Request) -> Callable[..., None]:
        self.requests.append(request)
        return lambda *arguments: self.arguments.append(arguments)

    def assert_async(self, condition: Tensor, text: str) -> None:
        assert condition.shape == ()
        assert condition.dtype == torch.bool
        assert condition.is_cuda
        self.claims.append(text)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """A machine with two GPUs, on which the binding runs with fake tensors."""
    calls = Calls()
    monkeypatch.setattr(gpu, "of_device", lambda index: DEVICE)
    monkeypatch.setattr(kernels, "get", calls.get)
    monkeypatch.setattr(binding, "_is_aligned", lambda tensor: True)
    monkeypatch.setattr(torch, "_assert_async", calls.assert_async)
    binding._in_manner.cache_clear()
    bridge.forget()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield calls
    binding._in_manner.cache_clear()
    bridge.forget()


def on_cuda(arguments: Arguments, index: int = 0) -> Arguments:
    def move(tensor: Tensor) -> Tensor:
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=f"cuda:{index}"
        )

    moved = arguments.mapped(move, arguments.tensors)
    return dataclasses.replace(moved, grad_output=move(arguments.grad_output))


def conv(dtype: torch.dtype = torch.float32, index: int = 0) -> list[Any]:
    """A call of the operator: input, offset, weight, bias, mask and the attributes."""
    tensors = on_cuda(CASES["modulated"].arguments(dtype), index).tensors
    names = ("input", "offset", "weight", "bias", "mask")
    return [*(tensors.get(name) for name in names), [1, 1], [1, 1], [1, 1], "zeros"]


def run_conv(arguments: list[Any]) -> None:
    output = CONV.forward(*arguments)
    needed = [tensor is not None for tensor in arguments[:5]]
    CONV.backward(output, *arguments, needed)


def boxes(count: int = 3, batch: int = 2) -> list[Any]:
    """A call of RoI align."""
    input = torch.empty(batch, 4, 8, 9, device="cuda:0")
    return [input, torch.empty(count, 5, device="cuda:0"), 0.5, [2, 2], 2, True]


def test_a_call_asks_for_its_devices_kernels(calls: Calls) -> None:
    output = CONV.forward(*conv())
    assert output.device == torch.device("cuda:0")
    (request,), (arguments,) = calls.requests, calls.arguments
    assert request.target == DEVICE
    assert (request.problem.op, request.kernel, request.outputs) == (
        *("deform_conv2d", "forward"),
        ("output",),
    )
    assert all(tensor.is_cuda for tensor in arguments if isinstance(tensor, Tensor))


def test_devices_of_one_model_ask_for_the_same(calls: Calls) -> None:
    for index in (0, 1):
        assert CONV.forward(*conv(index=index)).device.index == index
    first, second = calls.requests
    assert first == second
    assert hash(first) == hash(second)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_only_gradients_are_asked_to_be_deterministic(calls: Calls) -> None:
    run_conv(conv())
    manners = {request.kernel: request.target.deterministic for request in calls.requests}
    assert manners == {"forward": False, "backward_data": True, "backward_weight": True}


def test_gradients_need_not_be_deterministic(calls: Calls) -> None:
    run_conv(conv())
    assert not any(request.target.deterministic for request in calls.requests)


def new_words(allowed: bool) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"


def old_words(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed


def older_words(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")


@pytest.fixture(params=[new_words, old_words, older_words])
def allow_tf32(request) -> Iterator[Callable[[bool], None]]:
    if request.param is new_words and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has no such word")
    yield request.param
    older_words(False)
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_tf32_is_allowed_as_torch_says(calls: Calls, allow_tf32: Callable[[bool], None]) -> None:
    for allowed in (True, False, True):
        allow_tf32(allowed)
        run_conv(conv())
        assert {request.target.tf32 for request in calls.requests} == {allowed}
        calls.requests.clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tf32_is_for_float32_only(
    calls: Calls, allow_tf32: Callable[[bool], None], dtype: torch.dtype
) -> None:
    allow_tf32(True)
    CONV.forward(*conv(dtype))
    assert [request.target for request in calls.requests] == [DEVICE]


@pytest.mark.parametrize(("place", "name"), [(1, "offset"), (2, "weight"), (4, "mask")])
@pytest.mark.parametrize("other", ["cuda:1", "cpu"])
def test_all_tensors_must_be_on_one_device(calls: Calls, place: int, name: str, other: str) -> None:
    arguments = conv()
    arguments[place] = arguments[place].to(other)
    text = f"{name} must be on the device of input, cuda:0, got {other}"
    with pytest.raises(ValueError, match=text):
        CONV.forward(*arguments)
    with pytest.raises(ValueError, match=text):
        CONV.backward(torch.empty(2, 6, 9, 11, device="cuda:0"), *arguments, [True] * 5)
    assert not calls.requests


def test_the_gradient_must_be_there_too(calls: Calls) -> None:
    output = CONV.forward(*conv())
    with pytest.raises(ValueError, match="grad must be on the device of input, cuda:0, got cpu"):
        CONV.backward(output.to("cpu"), *conv(), [True] * 5)


def test_nothing_is_launched_for_nothing(calls: Calls) -> None:
    call = boxes(count=0)
    output = ALIGN.forward(*call)
    assert output.shape == (0, 4, 2, 2)
    (gradient,) = ALIGN.backward(output, *call, [True, False])
    assert gradient.shape == call[0].shape
    assert not calls.requests
    assert not calls.claims


def test_what_tensors_hold_is_claimed_and_not_waited_for(calls: Calls) -> None:
    call = boxes()
    output = ALIGN.forward(*call)
    assert calls.claims == ["the boxes' batch indices must be in 0 ... 1 for a batch of 2"]
    ALIGN.backward(output, *call, [True, False])
    assert len(calls.claims) == 1, "the forward asked already"
    assert [request.kernel for request in calls.requests] == ["forward", "backward"]


def test_boxes_without_images_are_refused_at_once(calls: Calls) -> None:
    with pytest.raises(ValueError, match="for a batch of 0"):
        ALIGN.forward(*boxes(batch=0))


@pytest.mark.parametrize(
    ("index", "good"),
    [(0.0, True), (1.0, True), (1.5, True), (2.0, False), (-0.5, False), (float("nan"), False)],
)
def test_a_claim_is_what_the_check_says(index: float, good: bool) -> None:
    tensors = torch.zeros(2, 4, 8, 9), torch.tensor([[0.0, 0, 0, 4, 4], [index, 0, 0, 4, 4]])
    claimed = ALIGN.op.claim(tensors)
    assert claimed is not None
    assert bool(claimed[0]) is good
    if good:
        ALIGN.op.check(tensors)
    else:
        with pytest.raises(ValueError, match=r"batch indices must be in 0 \.\.\. 1"):
            ALIGN.op.check(tensors)


def channels_last(arguments: Arguments) -> Arguments:
    present = [name for name in PER_IMAGE if name in arguments.tensors]
    return arguments.mapped(lambda t: t.contiguous(memory_format=torch.channels_last), present)


@pytest.mark.parametrize("layout", [lambda arguments: arguments, channels_last])
@pytest.mark.parametrize("name", ["plain", "modulated"])
def test_fake_tensors_give_device_shape_and_layout(name: str, layout: Any) -> None:
    real = layout(CASES[name].arguments(torch.float16))
    expected = real.call(dcn_tvm.deform_conv2d)
    with FakeTensorMode():
        fake = on_cuda(real)
        output = fake.call(dcn_tvm.deform_conv2d)
        tensors = [fake.tensors.get(n) for n in ("input", "offset", "weight", "bias", "mask")]
        geometry = (list(fake.options[n]) for n in ("stride", "padding", "dilation"))
        needed = [tensor is not None for tensor in tensors]
        gradients = torch.ops.dcn_tvm.deform_conv2d_backward(
            output, *tensors, *geometry, fake.options["boundary"], needed
        )
    assert (output.shape, output.dtype) == (expected.shape, torch.float16)
    assert output.stride() == expected.stride()
    given = [tensor for tensor in tensors if tensor is not None]
    for gradient, tensor in zip(gradients, given, strict=True):
        assert gradient.is_cuda
        assert (gradient.shape, gradient.stride()) == (tensor.shape, tensor.stride())


class Layer(torch.nn.Module):
    def forward(self, x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return dcn_tvm.deform_conv2d(x, offset, weight, padding=1).relu()


def test_export_of_a_network_on_cuda() -> None:
    with FakeTensorMode():
        shapes = ((2, 4, 9, 11), (2, 18, 9, 11), (6, 4, 3, 3))
        tensors = tuple(torch.empty(shape, device="cuda:0") for shape in shapes)
        program = torch.export.export(Layer(), tensors)
    nodes = {node.target: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    output = nodes[torch.ops.dcn_tvm.deform_conv2d.default]
    assert output.device == torch.device("cuda:0")
    assert output.shape == (2, 6, 9, 11)


@pytest.fixture
def autocast() -> Iterator[None]:
    """As `torch.autocast("cuda")` does it, which does nothing where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", torch.float16)


@pytest.mark.usefixtures("autocast")
def test_autocast_lowers_the_tensors_of_a_convolution() -> None:
    with FakeTensorMode():
        arguments = on_cuda(CASES["modulated"].arguments())
        assert arguments.call(dcn_tvm.deform_conv2d).dtype == torch.bfloat16
        double = on_cuda(CASES["modulated"].arguments(torch.float64))
        assert double.call(dcn_tvm.deform_conv2d).dtype == torch.float64
        input, rois = torch.empty(2, 4, 8, 9, device="cuda:0"), torch.empty(3, 5, device="cuda:0")
        assert dcn_tvm.roi_align(input.half(), rois, 2).dtype == torch.float16
    assert CASES["modulated"].arguments().call(dcn_tvm.deform_conv2d).dtype == torch.float32


def test_sparse_tensors_are_refused_clearly() -> None:
    layer = torch.zeros(1, 4, 5, 6).to_sparse()
    rest = torch.zeros(1, 18, 3, 4), torch.zeros(3, 4, 3, 3), None, None
    with pytest.raises(NotImplementedError, match=r"dense tensors on cpu and cuda, got .*sparse"):
        torch.ops.dcn_tvm.deform_conv2d(layer, *rest, [1, 1], [0, 0], [1, 1], "zeros")


def test_the_devices_of_other_makers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.of_device.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.0")
    with pytest.raises(NotImplementedError, match="not for those of ROCm"):
        gpu.of_device(0)
