"""The short way of a repeated call: same results, and not taken while anything looks on."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import dcn_tvm
from dcn_tvm import bridge
from tests.cases import CASES, Arguments

CASE = CASES["modulated"]
functional: Any = importlib.import_module("dcn_tvm.functional.deform_conv2d")  # not the function


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The calls that went the long way, from a fresh start."""
    calls: list[Any] = []
    checked = functional._checked

    def counted(tensors: Any, options: Any) -> Any:
        calls.append(options)
        return checked(tensors, options)

    monkeypatch.setattr(functional, "_checked", counted)
    monkeypatch.setattr(functional, "_shortcut", bridge.Shortcut(functional.OP))
    return calls


def channels_last(arguments: Arguments) -> Arguments:
    maps = ("input", "offset", "mask")
    return arguments.mapped(lambda t: t.contiguous(memory_format=torch.channels_last), maps)


@pytest.mark.parametrize("layout", [lambda arguments: arguments, channels_last])
def test_repeats_take_it_and_give_the_same_bits(checks: list[Any], layout: Any) -> None:
    arguments = layout(CASE.arguments())
    expected = arguments.run(dcn_tvm.deform_conv2d)
    again = arguments.run(dcn_tvm.deform_conv2d)
    assert len(checks) == 1
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor), name
        assert again[name].stride() == tensor.stride(), name
    with torch.inference_mode():
        assert torch.equal(arguments.call(dcn_tvm.deform_conv2d), expected["output"])
    assert len(checks) == 1


CHANGES: dict[str, Callable[[Arguments], Arguments]] = {
    "size": lambda _: CASE.sized(2, 9, 10).arguments(),
    "batch": lambda _: CASE.sized(3, 9, 11).arguments(),
    "dtype": lambda _: CASE.arguments(torch.float64),
    "layout": channels_last,
    "options": lambda call: call.with_options(boundary="msra"),
    "lists": lambda call: call.with_options(stride=[1, 1]),
    "no mask": lambda call: Arguments(
        {name: t for name, t in call.tensors.items() if name != "mask"},
        call.options,
        call.grad_output,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_call_does_not(checks: list[Any], name: str) -> None:
    arguments = CASE.arguments()
    arguments.call(dcn_tvm.deform_conv2d)
    CHANGES[name](arguments).call(dcn_tvm.deform_conv2d)
    assert len(checks) == 2


def test_it_forgets_rather_than_grows(checks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "_REMEMBERED", 2)
    for width in (5, 6, 7, 8, 9):
        CASE.sized(1, 4, width).arguments().call(dcn_tvm.deform_conv2d)
        assert len(functional._shortcut._known) <= 2


class SeesOperators(TorchDispatchMode):
    seen = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += str(func)
        return func(*args, **(kwargs or {}))


class SeesFunctions(TorchFunctionMode):
    seen = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [SeesOperators, SeesFunctions])
def test_modes_see_the_operator(mode: type[AbstractContextManager[Any]]) -> None:
    arguments = CASE.arguments()
    expected = arguments.call(dcn_tvm.deform_conv2d)
    for _ in range(2):
        with mode() as active:
            assert torch.equal(arguments.call(dcn_tvm.deform_conv2d), expected)
        assert "deform_conv2d" in active.seen


def test_the_profiler_sees_the_operator() -> None:
    arguments = CASE.arguments()
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            arguments.call(dcn_tvm.deform_conv2d)
        assert "dcn_tvm::deform_conv2d" in {event.key for event in profiler.key_averages()}


class Subclass(Tensor):
    seen = ""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen += str(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclasses_see_the_operator() -> None:
    arguments = CASE.arguments()
    arguments.call(dcn_tvm.deform_conv2d)
    special = arguments.mapped(lambda t: t.as_subclass(Subclass), ("input",))
    assert isinstance(special.call(dcn_tvm.deform_conv2d), Subclass)
    assert "deform_conv2d" in Subclass.seen


def test_views_with_a_pending_minus_are_read_right() -> None:
    arguments = CASE.arguments()
    expected = arguments.mapped(torch.neg, ("input",)).run(dcn_tvm.deform_conv2d)
    negative = arguments.mapped(
        lambda t: torch.complex(torch.zeros_like(t), t).conj().imag, ("input",)
    )
    assert negative.tensors["input"].is_neg()
    for name, tensor in negative.run(dcn_tvm.deform_conv2d).items():
        assert torch.equal(tensor, expected[name]), name


def test_autocast_is_seen() -> None:
    arguments = CASE.arguments()
    arguments.call(dcn_tvm.deform_conv2d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert arguments.call(dcn_tvm.deform_conv2d).dtype == torch.bfloat16


def test_forward_mode_derivatives_are_refused_not_dropped() -> None:
    arguments = CASE.arguments()
    arguments.call(dcn_tvm.deform_conv2d)
    with forward_ad.dual_level():
        assert not arguments.call(dcn_tvm.deform_conv2d).requires_grad  # no tangent, no objection
        dual = arguments.mapped(lambda t: forward_ad.make_dual(t, t), ("weight",))
        with pytest.raises(NotImplementedError, match="jvp"):
            dual.call(dcn_tvm.deform_conv2d)
