"""The operator as torch sees it: schema, fake kernels, compile, export, autocast, builds."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import dcn_tvm
from dcn_tvm.build import Request
from dcn_tvm.nn import DeformConv2dPack
from tests.cases import CASES, PER_IMAGE, Arguments, Case

ROOT = Path(__file__).parents[1]


def channels_last(arguments: Arguments) -> Arguments:
    present = [name for name in PER_IMAGE if name in arguments.tensors]
    return arguments.mapped(lambda t: t.contiguous(memory_format=torch.channels_last), present)


def operator_arguments(arguments: Arguments) -> tuple[object, ...]:
    tensors, options = arguments.detached().tensors, arguments.options
    names = ("input", "offset", "weight", "bias", "mask")
    geometry = (list(options[name]) for name in ("stride", "padding", "dilation"))
    return (*(tensors.get(name) for name in names), *geometry, options["boundary"])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("layout", [lambda arguments: arguments, channels_last])
@pytest.mark.parametrize("name", ["plain", "modulated", "no_bias", "msra"])
def test_opcheck(name: str, layout: object) -> None:
    arguments = layout(CASES[name].sized(2, 5, 6).arguments())
    op = torch.ops.dcn_tvm.deform_conv2d.default
    torch.library.opcheck(op, operator_arguments(arguments))


def test_opcheck_without_gradients() -> None:
    arguments = CASES["modulated"].sized(2, 5, 6).arguments()
    op = torch.ops.dcn_tvm.deform_conv2d.default
    frozen = [a.detach() if isinstance(a, Tensor) else a for a in operator_arguments(arguments)]
    torch.library.opcheck(op, tuple(frozen))


SIZES = [(2, 9, 11), (3, 12, 7), (5, 6, 20)]


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["plain", "modulated"])
def test_compiles_once_for_every_size(name: str) -> None:
    compiled = torch.compile(
        dcn_tvm.deform_conv2d, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in SIZES:
            arguments = CASES[name].sized(*size).arguments()
            assert_same(arguments.run(compiled), arguments.run(dcn_tvm.deform_conv2d))


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.second = DeformConv2dPack(8, 6, 3, padding=1, offset_groups=2, modulated=True)
        torch.nn.init.normal_(self.second.conv_offset.weight, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor_runs_a_network() -> None:
    network = Network()
    compiled = torch.compile(network, fullgraph=True, dynamic=True)
    for height, width in [(9, 11), (12, 7)]:
        x = torch.randn(2, 3, height, width)
        expected = network(x)
        torch.testing.assert_close(compiled(x), expected)
        expected_gradients = torch.autograd.grad(expected.sum(), network.parameters())
        gradients = torch.autograd.grad(compiled(x).sum(), network.parameters())
        torch.testing.assert_close(gradients, expected_gradients)


def test_exports_with_free_batch_and_size() -> None:
    network = Network().eval()
    dims = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height"),
        3: torch.export.Dim("width"),
    }
    example = torch.randn(2, 3, 9, 11)
    program = torch.export.export(network, (example,), dynamic_shapes={"x": dims})
    targets = [node.target for node in program.graph.nodes]
    assert torch.ops.dcn_tvm.deform_conv2d.default in targets
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_conv2ds(dtype: torch.dtype) -> None:
    arguments = CASES["modulated"].arguments()
    leaves = arguments.detached()
    with torch.autocast("cpu", dtype=dtype):
        output = leaves.call(dcn_tvm.deform_conv2d)
        weight = leaves.tensors["weight"]
        peer = F.conv2d(leaves.tensors["input"], weight, padding=1)
    assert output.dtype == peer.dtype == dtype
    assert torch.equal(output, arguments.to(dtype).call(dcn_tvm.deform_conv2d))
    output.sum().backward()
    for name, leaf in leaves.tensors.items():
        assert leaf.grad.dtype == torch.float32, name


def test_autocast_mixes_types_and_leaves_float64_alone() -> None:
    arguments = CASES["modulated"].arguments()
    mixed = arguments.mapped(lambda t: t.bfloat16(), ("input", "mask"))
    mixed = mixed.mapped(lambda t: t.half(), ("offset",))
    double = arguments.to(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mixed.call(dcn_tvm.deform_conv2d).dtype == torch.bfloat16
        peer = F.conv2d(double.tensors["input"], double.tensors["weight"], padding=1)
        assert double.call(dcn_tvm.deform_conv2d).dtype == peer.dtype == torch.float64
        with pytest.raises(TypeError, match=r"weight must have the input's type.*float64"):
            arguments.replaced(weight=double.tensors["weight"]).call(dcn_tvm.deform_conv2d)


@pytest.mark.usefixtures("fresh_compiler")
def test_autocast_compiles() -> None:
    arguments = CASES["modulated"].arguments()
    compiled = torch.compile(dcn_tvm.deform_conv2d, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = arguments.call(compiled)
    assert torch.equal(output, arguments.to(torch.bfloat16).call(dcn_tvm.deform_conv2d))


@pytest.mark.parametrize("name", ["plain", "modulated", "channels_64"])
def test_the_output_has_the_inputs_memory_format(name: str) -> None:
    arguments = CASES[name].arguments()
    assert arguments.call(dcn_tvm.deform_conv2d).is_contiguous()
    last = channels_last(arguments).run(dcn_tvm.deform_conv2d)
    for result in ("output", "input"):
        assert last[result].is_contiguous(memory_format=torch.channels_last), result


@pytest.mark.parametrize("layout", [lambda arguments: arguments, channels_last])
def test_dense_tensors_reach_the_kernels_without_a_copy(layout: object) -> None:
    leaves = layout(CASES["channels_64"].arguments()).detached()
    leaves.call(dcn_tvm.deform_conv2d).sum()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        leaves.call(dcn_tvm.deform_conv2d)
    seen = {event.key for event in profiler.key_averages()}
    assert any("deform_conv2d" in key for key in seen), "the profiler sees the op"
    assert not seen & {"aten::copy_", "aten::clone", "aten::contiguous", "aten::to"}


def misaligned(tensor: Tensor) -> Tensor:
    """The same numbers four bytes after a multiple of 64."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return room[1:].view(tensor.shape).copy_(tensor)


def oddly_strided(tensor: Tensor) -> Tensor:
    """The same numbers; dimensions of size 1 have strides that no layout gives them."""
    strides = [7919 if n == 1 else s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(tensor.shape, strides)


@pytest.mark.parametrize("change", [misaligned, oddly_strided])
@pytest.mark.parametrize("layout", [lambda arguments: arguments, channels_last])
@pytest.mark.parametrize(("height", "width"), [(9, 11), (1, 6), (6, 1), (1, 1)])
def test_odd_memory_changes_nothing(
    change: object, layout: object, height: int, width: int
) -> None:
    arguments = layout(CASES["modulated"].sized(1, height, width).arguments())
    changed = arguments.mapped(change, arguments.tensors)
    changed = dataclasses.replace(changed, grad_output=change(changed.grad_output))
    actual, expected = changed.run(dcn_tvm.deform_conv2d), arguments.run(dcn_tvm.deform_conv2d)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, msg=name)


@pytest.mark.parametrize(
    "which", [("input",), ("offset",), ("mask",), ("input", "mask"), ("weight",)], ids=str
)
def test_memory_formats_may_be_mixed(which: tuple[str, ...]) -> None:
    arguments = CASES["modulated"].arguments()
    mixed = arguments.mapped(lambda t: t.contiguous(memory_format=torch.channels_last), which)
    expected = (channels_last(arguments) if "input" in which else arguments).run(
        dcn_tvm.deform_conv2d
    )
    for last in (False, True):
        grad_output = arguments.grad_output.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
        actual = dataclasses.replace(mixed, grad_output=grad_output).run(dcn_tvm.deform_conv2d)
        assert_same(actual, expected)


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        (("bias",), {("grad_bias",)}),
        (("input",), {("grad_input",)}),
        (("weight",), {("grad_weight",)}),
        (("offset", "mask"), {("grad_offset", "grad_mask")}),
        (("input", "weight"), {("grad_input",), ("grad_weight",)}),
    ],
    ids=lambda value: str(sorted(value)),  # the order of a set differs between workers
)
def test_only_the_gradients_needed_are_computed(
    needed: tuple[str, ...], expected: set[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcn_tvm import kernels

    asked: list[Request] = []
    get = kernels.get
    monkeypatch.setattr(kernels, "get", lambda request: (asked.append(request), get(request))[1])
    CASES["modulated"].arguments().run(dcn_tvm.deform_conv2d, needed)
    assert {request.outputs for request in asked} == {("output",), *expected}


def test_double_backward_is_refused_clearly() -> None:
    leaves = CASES["modulated"].arguments().detached()
    output = leaves.call(dcn_tvm.deform_conv2d)
    (gradient,) = torch.autograd.grad(output.sum(), leaves.tensors["input"], create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("name", ["plain", "modulated"])
def test_meta_tensors_give_shapes_of_output_and_gradients(name: str) -> None:
    real = CASES[name].arguments()
    meta = Arguments(
        {name: t.to("meta") for name, t in real.tensors.items()},
        real.options,
        real.grad_output.to("meta"),
    )
    expected = real.run(dcn_tvm.deform_conv2d)
    for key, result in meta.run(dcn_tvm.deform_conv2d).items():
        assert result.is_meta
        assert result.shape == expected[key].shape, key
        assert result.stride() == expected[key].stride(), key


def test_fake_tensors_give_shape_type_and_layout() -> None:
    real = channels_last(CASES["strided"].arguments(torch.float16))
    expected = real.call(dcn_tvm.deform_conv2d)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = real.mapped(mode.from_tensor, real.tensors).call(dcn_tvm.deform_conv2d)
    assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)
    assert fake.stride() == expected.stride()


def sized(number: int) -> Case:
    return CASES["modulated"].sized(1 + number % 4, 5 + number, 20 - number)


def count_builds() -> int:
    """Run ten sizes and batches forward and backward; return the builds of the first."""
    from dcn_tvm import kernels

    sized(0).arguments().run(dcn_tvm.deform_conv2d)
    first = kernels.build_count()
    for number in range(1, 10):
        sized(number).arguments().run(dcn_tvm.deform_conv2d)
    assert kernels.build_count() == first, "a new size or batch was compiled again"
    return first


COUNT_BUILDS = "from tests.test_bridge import count_builds; print(count_builds())"


def test_one_build_per_kernel_and_none_in_a_second_process(tmp_path: Path) -> None:
    environment = {**os.environ, "DCN_TVM_HOME": str(tmp_path)}
    counts = []
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", COUNT_BUILDS],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        counts.append(int(result.stdout.split()[-1]))
    # The forward and at most one kernel for each of the five gradients.
    assert 2 <= counts[0] <= 6
    assert counts[1] == 0
