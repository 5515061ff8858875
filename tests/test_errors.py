"""What a user can get wrong: every refusal says what was required and what came."""

from collections.abc import Callable

import pytest
import torch

import dcn_tvm
from tests.cases import CASES, Arguments

# batch 2, 8 -> 6 channels, 3x3, 9x11 -> 9x11, two offset groups: offset 36 channels, mask 18.
CASE = CASES["modulated"]
Change = Callable[[Arguments], Arguments]


def tensors(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda call: call.replaced(**{n: f(call.tensors[n]) for n, f in changes.items()})


def options(**changes: object) -> Change:
    return lambda call: call.with_options(**changes)


WRONG: dict[str, tuple[Change, type[Exception] | tuple[type[Exception], ...], list[str]]] = {
    "offset channels": (tensors(offset=lambda t: t[:, :-1]), ValueError, ["offset", "18", "35"]),
    "offset groups": (
        tensors(offset=lambda t: torch.cat([t, t[:, :18]], 1), mask=lambda t: t[:, :1]),
        ValueError,
        ["8", "3"],
    ),
    "offset without channels": (tensors(offset=lambda t: t[:, :0]), ValueError, ["offset", "0"]),
    "mask channels": (tensors(mask=lambda t: t[:, :9]), ValueError, ["mask", "18", "9"]),
    "offset size": (tensors(offset=lambda t: t[:, :, :8]), ValueError, ["offset", "9", "8", "11"]),
    "mask size": (tensors(mask=lambda t: t[..., :10]), ValueError, ["mask", "11", "10"]),
    "offset batch": (tensors(offset=lambda t: t[:1]), ValueError, ["offset", "2", "1"]),
    "mask batch": (tensors(mask=lambda t: t[:1]), ValueError, ["mask", "2", "1"]),
    "bias size": (tensors(bias=lambda t: t[:5]), ValueError, ["bias", "6", "5"]),
    "bias rank": (tensors(bias=lambda t: t[:, None]), ValueError, ["bias", "(6, 1)"]),
    "input rank": (tensors(input=lambda t: t[0]), ValueError, ["input", "4", "3"]),
    "weight rank": (tensors(weight=lambda t: t[0]), ValueError, ["weight", "4", "3"]),
    "offset rank": (tensors(offset=lambda t: t[0]), ValueError, ["offset", "4", "3"]),
    "mask rank": (tensors(mask=lambda t: t[0]), ValueError, ["mask", "4", "3"]),
    "weight channels": (tensors(weight=lambda t: t[:, :3]), ValueError, ["8", "3"]),
    "groups and filters": (tensors(weight=lambda t: t[:, :2]), ValueError, ["6", "4"]),
    "empty input": (tensors(input=lambda t: t[:, :, :, :0]), ValueError, ["input", "row", "0)"]),
    "input too small": (
        lambda call: tensors(input=lambda t: t[:, :, :2])(call).with_options(padding=0),
        ValueError,
        ["output", "0 x 9", "2 x 11", "3 x 3"],
    ),
    "device": (tensors(weight=lambda t: t.to("meta")), ValueError, ["weight", "cpu", "meta"]),
    "weight dtype": (
        tensors(weight=lambda t: t.double()),
        (TypeError, ValueError),
        ["weight", "float32", "float64"],
    ),
    "mask dtype": (
        tensors(mask=lambda t: t.half()),
        (TypeError, ValueError),
        ["mask", "float32", "float16"],
    ),
    "integers": (
        lambda call: call.mapped(lambda t: t.long(), call.tensors),
        TypeError,
        ["float", "int64"],
    ),
    "complex": (
        lambda call: call.mapped(lambda t: t.to(torch.complex64), call.tensors),
        TypeError,
        ["float", "complex64"],
    ),
    "zero stride": (options(stride=0), ValueError, ["stride", "0"]),
    "negative stride": (options(stride=(1, -1)), ValueError, ["stride", "-1"]),
    "zero dilation": (options(dilation=(0, 1)), ValueError, ["dilation", "0"]),
    "negative padding": (options(padding=-1), ValueError, ["padding", "-1"]),
    "three strides": (options(stride=(1, 1, 1)), (TypeError, ValueError), ["stride", "(1, 1, 1)"]),
    "broken stride": (options(stride=1.5), (TypeError, ValueError), ["stride", "1.5"]),
    "boundary": (options(boundary="reflect"), ValueError, ["zeros", "msra", "reflect"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals_name_required_and_got(name: str) -> None:
    change, exception, words = WRONG[name]
    wrong = change(CASE.arguments())
    with pytest.raises(exception) as caught:
        wrong.call(dcn_tvm.deform_conv2d)
    for word in words:
        assert word in str(caught.value)


def test_refusals_are_the_same_for_meta_tensors() -> None:
    call = CASE.arguments().mapped(lambda t: t.to("meta"), CASE.arguments().tensors)
    with pytest.raises(ValueError, match="18"):
        WRONG["mask channels"][0](call).call(dcn_tvm.deform_conv2d)


@pytest.mark.parametrize("wrong", [None, 1.0, [[1.0]]], ids=str)
@pytest.mark.parametrize("name", ["input", "offset", "weight"])
def test_what_is_no_tensor_is_refused(name: str, wrong: object) -> None:
    call = CASE.arguments()
    call.call(dcn_tvm.deform_conv2d)
    with pytest.raises(TypeError, match=f"{name} must be a tensor"):
        dcn_tvm.deform_conv2d(**{**call.tensors, name: wrong}, **call.options)


def test_after_a_good_call_a_wrong_one_is_still_refused() -> None:
    good = CASE.arguments()
    for _ in range(2):  # the second takes the short way
        good.call(dcn_tvm.deform_conv2d)
    for name, (change, exception, _) in WRONG.items():
        with pytest.raises(exception):
            change(good).call(dcn_tvm.deform_conv2d)
            pytest.fail(name)


@pytest.mark.parametrize(
    "change",
    [lambda t: t.to_sparse(), lambda t: t.to_mkldnn()],
    ids=["sparse", "mkldnn"],
)
def test_tensors_without_kernels_are_refused_with_a_way_out(change: Change) -> None:
    call = CASE.arguments()
    call = call.mapped(change, call.tensors)
    with pytest.raises(NotImplementedError, match=r"kernels for dense tensors on cpu.*reference"):
        call.call(dcn_tvm.deform_conv2d)
