"""torchvision's ops on the package's kernels: the same results and errors, and all undone."""

import contextlib
import doctest
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops import deform_conv2d, ps_roi_align, ps_roi_pool, roi_align, roi_pool

import dcn_tvm
from dcn_tvm import compat
from tests.compat_cases import BOXES, CALLS, SCALE, answers, close, convolution, maps

NAMES = ("deform_conv2d", "roi_pool", "roi_align", "ps_roi_pool", "ps_roi_align")


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    compat.disable()
    torch._dynamo.reset()


def ours() -> bool:
    """Whether a call of roi_align, recorded, is the package's."""
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    return "_Differentiable" in type(roi_align(x, BOXES[1:2], 2, SCALE).grad_fn).__name__


def tables() -> str:
    return "".join(
        show(f"torchvision::{name}")
        for name in NAMES
        for show in (torch._C._dispatch_dump, torch._C._dispatch_dump_table)
    )


@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients_are_torchvisions_and_undone(name: str) -> None:
    call, tensors = CALLS[name]()
    expected, before = answers(call, tensors), tables()
    with compat.enable():
        found = answers(call, tensors)
        assert "_Differentiable" in type(call(*tensors).grad_fn).__name__
        with torch.inference_mode():
            close([call(*tensors)], expected[:1])
        with torch.no_grad():
            close([call(*tensors)], expected[:1])
    close(found, expected)
    assert tables() == before
    for one, other in zip(answers(call, tensors), expected, strict=True):
        assert torch.equal(one, other)


def test_only_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from dcn_tvm import kernels

    asked: list[tuple[str, ...]] = []
    get = kernels.get
    monkeypatch.setattr(kernels, "get", lambda r: (asked.append(tuple(r.outputs)), get(r))[1])
    call, tensors = convolution()
    with compat.enable():
        for tensor in tensors[2:]:
            tensor.requires_grad_(False)
        torch.autograd.grad(call(*tensors).sum(), tensors[:2])
    assert {name for outputs in asked for name in outputs} <= {
        *("output", "grad_input", "grad_offset"),
    }


@pytest.mark.parametrize("grad", [False, True])
def test_second_results_are_exact(grad: bool) -> None:
    x = maps(2, 12, 10, 11).detach().requires_grad_(grad)
    sizes = (SCALE, 2, 2)
    calls: dict[str, Callable[[], Any]] = {
        "roi_pool": lambda: torch.ops.torchvision.roi_pool(x, BOXES, *sizes),
        "ps_roi_pool": lambda: torch.ops.torchvision.ps_roi_pool(x, BOXES, *sizes),
        "ps_roi_align": lambda: torch.ops.torchvision.ps_roi_align(x, BOXES, *sizes, 2),
    }
    for call in calls.values():
        expected = call()[1]
        with compat.enable(), torch.set_grad_enabled(grad):
            found = call()[1]
        assert found.dtype == torch.int32
        assert found.device == x.device
        assert torch.equal(found, expected)
        assert found.sum() == expected.sum()


def test_argmax_is_of_the_input_as_it_was() -> None:
    x = torch.randn(2, 12, 10, 11)
    expected = torch.ops.torchvision.roi_pool(x, BOXES, SCALE, 2, 2)[1]
    with compat.enable():
        tracked = torch.ops.torchvision.roi_pool(x, BOXES, SCALE, 2, 2)[1]
        with torch.no_grad():
            kept = torch.ops.torchvision.roi_pool(x, BOXES, SCALE, 2, 2)[1]
    x.neg_()
    assert torch.equal(kept, expected)
    with pytest.raises(RuntimeError, match="must stay as it was"):
        tracked.sum()


def test_enabling_and_disabling_is_idempotent_and_nests() -> None:
    before = tables()
    assert not any(compat.status().values())
    outer = compat.enable(ops=["roi_align"])
    assert compat.status() == {name: ("cpu",) if name == "roi_align" else () for name in NAMES}
    once = tables()
    with compat.enable(ops="roi_align"):
        assert tables() == once
    assert ours()  # the inner one had nothing to undo
    with contextlib.suppress(KeyError), compat.enable():
        assert all(devices == ("cpu",) for devices in compat.status().values())
        raise KeyError
    assert tables() == once
    outer.disable()
    outer.disable()
    assert not ours()
    compat.enable()
    compat.disable()
    compat.disable()
    assert tables() == before


def test_cuda_kernels_are_replaced_on_request_only() -> None:
    key = torch._C.DispatchKey.AutogradCUDA
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    if not has("torchvision::roi_align", "CUDA"):
        with pytest.raises(RuntimeError, match="kernels for cuda"):
            compat.enable("cuda")
        assert not any(compat.status().values())
        return
    compat.enable()
    assert not has("torchvision::roi_align", key)
    compat.enable(["cuda"], ["roi_align"])
    assert compat.status()["roi_align"] == ("cpu", "cuda")
    assert has("torchvision::roi_align", key)


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="devices must be among cpu, cuda, got 'mps'"):
        compat.enable("mps")
    with pytest.raises(ValueError, match=r"ops must be among deform_conv2d, .*, got 'nms'"):
        compat.enable(ops=["roi_align", "nms"])
    assert not any(compat.status().values())


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


MISSING = """
import sys
sys.modules["torchvision"] = None
from dcn_tvm import compat
try:
    compat.enable()
except ImportError as error:
    print(error)
"""


def test_without_torchvision_the_error_says_so() -> None:
    result = run(MISSING)
    assert "torchvision, which cannot be imported" in result.stdout, result.stderr


def test_nothing_is_printed_in_a_fresh_process() -> None:
    result = run("from dcn_tvm import compat; compat.enable(); compat.disable()")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


BAD: dict[str, Callable[[Tensor], Any]] = {
    "channels": lambda x: ps_roi_pool(x, BOXES, 5),
    "integers": lambda x: roi_align(x.int(), BOXES.int(), 2),
    "boxes": lambda x: torch.ops.torchvision.roi_pool(x, BOXES[:, :4], SCALE, 2, 2),
    "offset": lambda x: deform_conv2d(x, x[:, :7], torch.ones(4, 12, 3, 3)),
    "dtype": lambda x: deform_conv2d(x, x[:, :2].double(), torch.ones(4, 12, 1, 1)),
    "groups": lambda x: torch.ops.torchvision.deform_conv2d(
        *(x, torch.ones(4, 12, 1, 1), torch.ones(2, 4, 10, 11), x, torch.ones(4)),
        *(1, 1, 0, 0, 1, 1, 1, 1, False),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_torchvisions(name: str) -> None:
    x = torch.randn(2, 12, 10, 11)
    with pytest.raises(RuntimeError) as theirs:
        BAD[name](x)
    with compat.enable(), pytest.raises(RuntimeError) as found:
        BAD[name](x)
    assert str(found.value) == str(theirs.value)


def test_a_box_of_no_image_is_an_error_and_no_fallback() -> None:
    x, boxes = torch.randn(1, 4, 8, 8), torch.tensor([[3, 0.0, 0, 4, 4]])
    with compat.enable(), pytest.raises(ValueError, match="batch of 1, got 3"):
        roi_align(x, boxes, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_work(dtype: torch.dtype) -> None:
    call, tensors = convolution(dtype)
    x = torch.randn(2, 12, 10, 11, dtype=dtype)
    wide = [tensor.detach().float() for tensor in tensors]
    if dtype == torch.bfloat16:
        with pytest.raises(RuntimeError, match="not implemented"):
            roi_pool(x, BOXES.to(dtype), 2, SCALE)
    with compat.enable():
        found = call(*tensors)
        pooled, where = torch.ops.torchvision.roi_pool(x, BOXES.to(dtype), SCALE, 2, 2)
    assert found.dtype == pooled.dtype == dtype
    torch.testing.assert_close(found.float(), call(*wide), atol=0.1, rtol=0.1)
    expected = torch.ops.torchvision.roi_pool(x.float(), BOXES, SCALE, 2, 2)
    assert torch.equal(pooled.float(), expected[0])
    assert torch.equal(where, expected[1])


def test_autocast_casts_as_torchvision_or_as_a_convolution() -> None:
    x = torch.randn(2, 12, 10, 11)
    call, tensors = convolution()
    expected = call(*tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = roi_align(x.bfloat16(), BOXES, 2, SCALE)
        with compat.enable():
            aligned = roi_align(x.bfloat16(), BOXES, 2, SCALE)
            convolved = call(*tensors)
    assert aligned.dtype == theirs.dtype == convolved.dtype == torch.bfloat16
    torch.testing.assert_close(aligned, theirs)
    torch.testing.assert_close(convolved.float(), expected, atol=0.1, rtol=0.1)


def test_strides_are_torchvisions_for_channels_last_too() -> None:
    x = torch.randn(2, 12, 10, 11).contiguous(memory_format=torch.channels_last)
    expected = roi_align(x, BOXES, 2, SCALE)
    assert not x.is_contiguous()
    with compat.enable():
        close([roi_align(x, BOXES, 2, SCALE)], [expected])


def test_empty_batches_and_no_boxes_keep_their_shapes() -> None:
    x = torch.randn(2, 12, 10, 11, requires_grad=True)
    with compat.enable():
        for function in (roi_pool, roi_align, ps_roi_pool, ps_roi_align):
            result = function(x, BOXES[:0], 2, SCALE)
            result.sum().backward()
            assert result.shape[::2] == (0, 2)
        none = deform_conv2d(x[:0], torch.zeros(0, 2, 10, 11), torch.ones(4, 12, 1, 1))
    assert none.shape == (0, 4, 10, 11)
    assert x.grad is not None
    assert not x.grad.any()


def test_a_second_derivative_is_a_clear_error() -> None:
    call, tensors = convolution()
    with compat.enable():
        gradient = torch.autograd.grad(call(*tensors).square().sum(), tensors[0], create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            gradient[0].sum().backward()


def test_compile_caches_on_disk_are_kept_apart() -> None:
    config = torch.compiler.config
    with config.patch(cache_key_tag="mine"):
        with compat.enable(ops="roi_align"):
            one = config.cache_key_tag
            with compat.enable():
                assert config.cache_key_tag not in (one, "mine")
            assert config.cache_key_tag == one != "mine"
        assert config.cache_key_tag == "mine"


def test_another_librarys_kernel_is_back_afterwards() -> None:
    x = torch.ones(1, 1, 4, 4)
    with torch.library._scoped_library("torchvision", "IMPL") as other:
        other.impl("roi_align", lambda x, *_: x + 41, "AutogradCPU")
        with compat.enable():
            assert roi_align(x, BOXES[1:2], 2).shape == (1, 1, 2, 2)
            assert roi_align(x.int(), BOXES[1:2], 2).max() == 42  # what we refuse is theirs
        assert roi_align(x, BOXES[1:2], 2).max() == 42


def test_the_examples_run() -> None:
    names = {"torch": torch, "torchvision": torchvision, "dcn_tvm": dcn_tvm}
    result = doctest.testmod(compat.switch, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
