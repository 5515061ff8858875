"""What a user can get wrong in a call of a RoI op: every refusal says what it wants and got."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dcn_tvm
from tests.cases import Arguments
from tests.roi_cases import ONE_OF_EACH, ROI_CASES, RoICase

# Two images of 9 x 11, fourteen boxes.
DEFORM = ROI_CASES["deform"]  # 3 channels, 3 x 3 bins, offset [14, 2, 3, 3]
PARTS = ROI_CASES["dps_parts"]  # 64 channels, 4 x 4 bins and groups, offset [14, 4, 2, 2]

Change = Callable[[Arguments], Arguments]
Wrong = tuple[Change, type[Exception], list[str]]


def tensors(**changes: Callable[[Tensor], object]) -> Change:
    return lambda call: call.replaced(**{n: f(call.tensors[n]) for n, f in changes.items()})


def options(**changes: object) -> Change:
    return lambda call: call.with_options(**changes)


def boxes(change: Callable[[Tensor], object]) -> Change:
    return tensors(boxes=change)


def offset(change: Callable[[Tensor], object]) -> Change:
    return tensors(offset=change)


# Wrong for every op.
COMMON: dict[str, Wrong] = {
    "no input": (tensors(input=lambda t: None), TypeError, ["input must be a tensor", "NoneType"]),
    "integer input": (
        tensors(input=lambda t: t.long()),
        TypeError,
        ["input", "float32, float64", "int64"],
    ),
    "input rank": (tensors(input=lambda t: t[0]), ValueError, ["input", "4", "3"]),
    "no channels": (tensors(input=lambda t: t[:, :0]), ValueError, ["input", "channel", "(2, 0,"]),
    "no rows": (tensors(input=lambda t: t[:, :, :0]), ValueError, ["input", "row", "0, 11)"]),
    "no columns": (tensors(input=lambda t: t[..., :0]), ValueError, ["input", "column", "9, 0)"]),
    "no bins": (options(output_size=0), ValueError, ["output_size", "at least 1", "0"]),
    "no columns of bins": (options(output_size=(2, 0)), ValueError, ["output_size", "(2, 0)"]),
    "broken bins": (options(output_size=1.5), TypeError, ["output_size", "whole", "1.5"]),
    "three sizes": (options(output_size=(1, 1, 1)), TypeError, ["output_size", "(1, 1, 1)"]),
    "scale in words": (options(spatial_scale="1/16"), TypeError, ["spatial_scale", "str"]),
    "no boxes": (boxes(lambda t: None), TypeError, ["boxes", "[K, 5]", "NoneType"]),
    "integer boxes": (boxes(lambda t: t.long()), TypeError, ["boxes", "floating", "int64"]),
    "boxes without image": (boxes(lambda t: t[:, 1:]), ValueError, ["boxes", "[K, 5]", "(14, 4)"]),
    "boxes rank": (boxes(lambda t: t[0]), ValueError, ["boxes", "[K, 5]", "(5,)"]),
    "boxes elsewhere": (boxes(lambda t: t.to("meta")), ValueError, ["boxes", "cpu", "meta"]),
    "boxes of one image": (boxes(lambda t: [t[:, 1:]]), ValueError, ["boxes", "2", "1"]),
    "boxes of three images": (boxes(lambda t: [t[:, 1:]] * 3), ValueError, ["boxes", "2", "3"]),
    "rows of five in a list": (
        boxes(lambda t: [t[:, 1:], t]),
        ValueError,
        ["image 1", "[L, 4]", "(14, 5)"],
    ),
    "flat boxes in a list": (
        boxes(lambda t: [t[0, 1:], t[:, 1:]]),
        ValueError,
        ["image 0", "[L, 4]", "(4,)"],
    ),
    "numbers in a list": (boxes(lambda t: t.tolist()), TypeError, ["boxes", "tensors", "list"]),
    "no such image": (boxes(lambda t: t + torch.eye(5)[0] * 2), ValueError, ["0 ... 1", "3"]),
}

RATIO = ("align_adaptive", "ps_align_adaptive", "deform")
OWN: dict[str, tuple[str, Change, type[Exception], list[str]]] = {
    "mode": ("max", options(mode="median"), ValueError, ["mode", "max", "avg", "median"]),
    "convention": (
        "ps",
        options(convention="onnx"),
        ValueError,
        ["convention", "torchvision", "rfcn", "onnx"],
    ),
    "sampling": ("dps_parts", options(sampling="x"), ValueError, ["sampling", "grid", "paper"]),
    "groups of ps_roi_pool": (
        "ps",
        tensors(input=lambda t: t[:, :-1]),
        ValueError,
        ["channels", "3 x 3 = 9", "188"],
    ),
    "groups of ps_roi_align": (
        "ps_align_adaptive",
        options(output_size=4),
        ValueError,
        ["channels", "4 x 4 = 16", "30"],
    ),
    "groups": ("dps_parts", options(group_size=5), ValueError, ["channels", "5 x 5", "64"]),
    "no groups": ("dps_parts", options(group_size=0), ValueError, ["group_size", "least 1", "0"]),
    "negative parts": ("dps_parts", options(part_size=-1), ValueError, ["part_size", "1", "-1"]),
    "broken parts": ("dps_parts", options(part_size=1.5), TypeError, ["part_size", "1.5"]),
    "no samples": ("dps_parts", options(sample_per_part=0), ValueError, ["sample_per_part", "0"]),
    "output_dim": ("dps_parts", options(output_dim=3), ValueError, ["output_dim", "4", "64", "3"]),
    **{
        f"ratio {value} of {name}": (
            name,
            options(sampling_ratio=value),
            TypeError,
            ["sampling_ratio", "whole", str(value)],
        )
        for name in RATIO
        for value in (1.5, True)
    },
}

# Wrong for both ops that take offsets; 2 channels for each class.
OFFSETS: dict[str, Wrong] = {
    "no tensor": (offset(lambda t: 0.5), TypeError, ["offset must be a tensor", "float"]),
    "rank": (offset(lambda t: t[0]), ValueError, ["offset", "4", "3"]),
    "type": (offset(lambda t: t.double()), TypeError, ["offset", "float32", "float64"]),
    "integers": (offset(lambda t: t.long()), TypeError, ["offset", "float32", "int64"]),
    "elsewhere": (offset(lambda t: t.to("meta")), ValueError, ["offset", "cpu", "meta"]),
    "odd channels": (offset(lambda t: t[:, :1]), ValueError, ["offset", "2 for each", "1"]),
    "no channels": (offset(lambda t: t[:, :0]), ValueError, ["offset", "2 for each", "0"]),
    "classes that divide no channels": (
        offset(lambda t: t.repeat(1, 5, 1, 1)),
        ValueError,
        ["offset", "dividing"],
    ),
    "count": (offset(lambda t: t[:13]), ValueError, ["offset", "(14,", "(13,"]),
    "rows": (offset(lambda t: t[:, :, :1]), ValueError, ["offset", "shape", ", 1, "]),
    "columns": (offset(lambda t: t[..., :1]), ValueError, ["offset", "shape", ", 1)"]),
}


def assert_refused(case: RoICase, wrong: Wrong) -> None:
    change, exception, words = wrong
    good = case.arguments()
    good.call(getattr(dcn_tvm, case.op))
    with pytest.raises(exception) as caught:
        change(good).call(getattr(dcn_tvm, case.op))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_refusals_of_every_op(case: RoICase, name: str) -> None:
    assert_refused(case, COMMON[name])


@pytest.mark.parametrize("name", OWN)
def test_refusals_of_one_op(name: str) -> None:
    case, *wrong = OWN[name]
    assert_refused(ROI_CASES[case], tuple(wrong))


@pytest.mark.parametrize("name", OFFSETS)
@pytest.mark.parametrize("case", [DEFORM, PARTS], ids=lambda case: case.name)
def test_refusals_of_offsets(case: RoICase, name: str) -> None:
    assert_refused(case, OFFSETS[name])


def test_boxes_without_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="for a batch of 0"):
        dcn_tvm.roi_pool(torch.zeros(0, 3, 9, 11), torch.zeros(1, 5), 3)


def test_refusals_are_the_same_for_meta_tensors() -> None:
    call = DEFORM.arguments().mapped(lambda t: t.to("meta"), ("input", "boxes", "offset"))
    with pytest.raises(ValueError, match=r"offset.*13"):
        OFFSETS["count"][0](call).call(dcn_tvm.deform_roi_pool)
