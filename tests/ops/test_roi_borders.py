"""Boxes and offsets at, across and far beyond the map's border, and numbers that are none."""

import dataclasses
import functools
import itertools
import math
import time

import pytest
import torch
import torchvision
from torch import Tensor

import dcn_tvm
from tests.cases import Arguments, Results
from tests.ops.test_deform_conv2d import assert_same_bits
from tests.roi_cases import ONE_OF_EACH, ROI_CASES, RoICase, channels_last, operator_arguments
from tests.roi_oracles import assert_roi_matches_reference
from tests.test_reference_roi import DEFORMED, border_boxes

EACH = pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
ALL = pytest.mark.parametrize("case", ROI_CASES.values(), ids=lambda case: case.name)
MOVED = pytest.mark.parametrize("case", DEFORMED, ids=lambda case: case.name)
HEIGHT, WIDTH = 7, 9  # what border_boxes are made for
# Of every rule for bins and samples one, with few channels.
RULES = (
    *("max", "max_uneven", "avg", "align_adaptive", "aligned_adaptive", "aligned", "ps", "rfcn"),
    *("rfcn_uneven", "ps_align_adaptive", "ps_align", "deform", "deform_still", "deform_adaptive"),
    *("dps_parts", "dps_uneven", "dps_still", "dps_paper"),
)


def run(case: RoICase, arguments: Arguments) -> Results:
    return arguments.run(getattr(dcn_tvm, case.op), case.needed)


def check(case: RoICase, arguments: Arguments) -> Results:
    function = getattr(dcn_tvm, case.op)
    return assert_roi_matches_reference(function, case.reference, arguments, case.needed)


def on_map(case: RoICase, boxes: Tensor, dtype: torch.dtype = torch.float32) -> Arguments:
    """Return a call with almost all of these boxes on a map of HEIGHT x WIDTH."""
    arguments = case.sized(2, HEIGHT, WIDTH, 0).arguments_for(boxes, dtype)
    assert len(arguments.tensors["boxes"]) > 0.9 * len(boxes)
    return arguments


@pytest.mark.parametrize("name", RULES)
def test_border_table(name: str) -> None:
    case = ROI_CASES[name]
    boxes = border_boxes(torch.float32, case.spatial_scale)
    results = check(case, on_map(case, boxes[::5]))
    empty = ~results["output"].flatten(1).any(1)
    assert 0.05 < empty.float().mean() < 0.9, "some boxes miss the map and others do not"


@EACH
def test_border_table_in_float64(case: RoICase) -> None:
    boxes = border_boxes(torch.float64, case.spatial_scale)
    check(case, on_map(case, boxes[1::5], torch.float64))


def assert_equals_torchvision(case: RoICase, arguments: Arguments, needed: tuple[str, ...]) -> None:
    expected = arguments.run(getattr(torchvision.ops, case.op), needed)
    if case.op == "ps_roi_align":  # 0/0 where the grid is empty; ours is 0
        expected["output"] = expected["output"].nan_to_num(nan=0.0)
    actual = arguments.run(getattr(dcn_tvm, case.op), needed)
    if case.op == "roi_pool":
        assert torch.equal(actual["output"], expected["output"])
    for key, result in actual.items():  # gradients of many boxes are added in another order
        atol = {"output": 1e-6, "input": 1e-5}[key]
        torch.testing.assert_close(result, expected[key], rtol=2e-6, atol=atol)


@pytest.mark.parametrize(
    "name", ["max", "align_adaptive", "aligned", "ps_align", "ps_align_adaptive"]
)
def test_equals_torchvision(name: str) -> None:
    case = ROI_CASES[name]
    boxes = border_boxes(torch.float32, case.spatial_scale)
    assert_equals_torchvision(case, on_map(case, boxes), ())
    assert_equals_torchvision(case, on_map(case, boxes[::7]), ("input",))


def test_ps_roi_pool_equals_torchvision_but_for_its_wrong_gradient() -> None:
    case = ROI_CASES["ps"]
    boxes = border_boxes(torch.float32, case.spatial_scale)
    assert_equals_torchvision(case, on_map(case, boxes), ())
    before_last = torch.tensor([WIDTH - 2, HEIGHT - 2]) / case.spatial_scale
    inner = (boxes[:, 1:3] <= before_last).all(1) & (boxes[:, 3:] <= before_last).all(1)
    inner_boxes = boxes[inner][::3]
    assert len(inner_boxes) > 40
    assert_equals_torchvision(case, on_map(case, inner_boxes), ("input",))


def gradients_agree(function: object, arguments: Arguments, needed: tuple[str, ...]) -> bool:
    leaves = arguments.detached(needed)

    def of_tensors(*tensors: Tensor) -> Tensor:
        return leaves.replaced(**dict(zip(needed, tensors, strict=True))).call(function)

    tensors = tuple(leaves.tensors[name] for name in needed)
    # Means are linear in the pixels, so differences are exact; the fast mode's own tolerance grows
    # with the number of pixels, beyond the faults of a few.
    check = functools.partial(torch.autograd.gradcheck, fast_mode=True, raise_exception=False)
    return check(of_tensors, tensors, atol=1e-9, rtol=1e-6)


def test_ps_roi_pool_has_the_gradient_that_torchvisions_has_not() -> None:
    case = ROI_CASES["ps_point"]
    all_of_last = torch.tensor([[0, 2.0, 1.0, WIDTH, HEIGHT]])  # the end is not in the box
    arguments = case.sized(1, HEIGHT, WIDTH, 0).arguments_for(all_of_last, torch.float64)
    assert not gradients_agree(torchvision.ops.ps_roi_pool, arguments, ("input",))
    assert gradients_agree(dcn_tvm.ps_roi_pool, arguments, ("input",))


@EACH
def test_gradcheck(case: RoICase) -> None:
    last = torch.tensor([[0.0, 2, 1, WIDTH - 1, HEIGHT - 1], [1, 3, 3, WIDTH, HEIGHT]]).double()
    last[:, 1:] /= case.spatial_scale
    boxes = torch.cat([last, border_boxes(torch.float64, case.spatial_scale)[::11]])
    arguments = on_map(case, boxes, torch.float64)
    assert torch.equal(arguments.tensors["boxes"][:2], last)
    assert gradients_agree(getattr(dcn_tvm, case.op), arguments, case.needed)


_NONE = (math.nan, math.inf, -math.inf)
# Coordinates (1 ... 4 for x1, y1, x2, y2) and what stands there.
UNKNOWN = [{column: value} for column in (1, 2, 3, 4) for value in _NONE] + [
    {first: a, first + 2: b} for first in (1, 2) for a, b in itertools.product(_NONE[1:], repeat=2)
]


def unknown_boxes(case: RoICase, dtype: torch.dtype) -> tuple[Arguments, Arguments]:
    """Return a call with some more boxes than UNKNOWN, and the same with its numbers in them."""
    clean = case.sized(2, 5, 6, len(UNKNOWN) + 4).arguments(dtype)
    boxes = clean.tensors["boxes"].clone()
    for row, values in enumerate(UNKNOWN):
        for column, value in values.items():
            boxes[row, column] = value
    return clean, clean.replaced(boxes=boxes)


def assert_unknown_stay_alone(case: RoICase, dtype: torch.dtype) -> None:
    clean, unknown = unknown_boxes(case, dtype)
    expected, results = run(case, clean), check(case, unknown)
    count = len(UNKNOWN)
    assert results["output"][:count].isnan().all()
    for name in ("output", "offset")[: len(case.needed)]:
        assert torch.equal(results[name][count:], expected[name][count:])
    if case.classes is not None:
        row, column = case.part_of_bins()
        assert results["offset"][:count, :, row[:, None], column].isnan().all()
    assert results["input"].isfinite().all()
    rest = unknown.mapped(lambda t: t[count:], set(unknown.tensors) - {"input"})
    alone = run(case, dataclasses.replace(rest, grad_output=rest.grad_output[count:]))
    assert torch.equal(results["input"], alone["input"])


@ALL
def test_boxes_without_numbers_give_nan(case: RoICase) -> None:
    assert_unknown_stay_alone(case, torch.float32)


@EACH
def test_boxes_without_numbers_give_nan_in_float64(case: RoICase) -> None:
    assert_unknown_stay_alone(case, torch.float64)


@EACH
def test_a_size_beyond_the_floats_gives_nan(case: RoICase) -> None:
    huge = torch.tensor([[0.0, -3e38, 0, 3e38, 5], [0, 0, -3e38, 5, 3e38], [0, 0, 0, 5, 5]])
    arguments = (
        case.sized(1, 9, 11, 3).arguments().replaced(boxes=huge).with_options(spatial_scale=1.0)
    )
    output = run(case, arguments)["output"]
    assert output[:2].isnan().all()
    assert output[2].isfinite().all()
    scaled = arguments.replaced(boxes=huge / 1e6).with_options(spatial_scale=1e9)
    assert run(case, scaled)["output"][:2].isnan().all()


@ALL
@pytest.mark.parametrize("huge", [1e8, 1e30])
def test_huge_boxes_work_like_others(case: RoICase, huge: float) -> None:
    box = torch.tensor(
        [[0, -huge, -huge, huge, huge], [0, 0, 0, huge, huge], [0, huge, 0, huge, 1]]
    )
    arguments = case.sized(1, 9, 11, 3).arguments().replaced(boxes=box)
    run(case, case.arguments())  # compiles
    start = time.process_time()
    results = run(case, arguments)
    assert time.process_time() - start < 2, "the time does not depend on the size of a box"
    for name, result in results.items():
        assert result.isfinite().all(), name


@pytest.mark.parametrize("name", RULES)
def test_boxes_of_many_maps(name: str) -> None:
    case = ROI_CASES[name]
    drawn = torch.rand(40, 5).mul(2000).floor() - torch.tensor([0.0, 1900, 1900, 100, 100])
    drawn[:, 0] = torch.arange(40) % 2
    drawn[:, 1:] = drawn[:, 1:] / 4 / case.spatial_scale
    arguments = case.sized(2, HEIGHT, WIDTH, 0).arguments_for(drawn)
    assert len(arguments.tensors["boxes"]) > 10
    check(case, arguments)


EXTREMES = (math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, -3e38)


@MOVED
def test_extreme_offsets(case: RoICase) -> None:
    arguments = case.sized(2, 9, 11, 2 * len(EXTREMES) + 2).arguments()
    clean = run(case, arguments)
    offset = arguments.tensors["offset"].clone()
    first = 2 * (case.classes - 1)  # the last class
    for row, (axis, value) in enumerate(itertools.product((0, 1), EXTREMES)):
        offset[row, first + axis, 0, -1] = value
    results = check(case, arguments.replaced(offset=offset))
    row, column = case.part_of_bins()
    used = torch.zeros_like(results["output"], dtype=torch.bool)
    used[:, -case.out_channels // case.classes :] = (row[:, None] == 0) & (
        column == case.parts[1] - 1
    )
    unknown = offset.isnan().flatten(1).any(1)
    assert torch.equal(results["output"].isnan(), used & unknown[:, None, None, None])
    assert torch.equal(results["output"][~used], clean["output"][~used])
    infinite = offset.isinf().flatten(1).any(1)
    assert not results["output"][used & infinite[:, None, None, None]].any()
    assert results["input"].isfinite().all()


@MOVED
@pytest.mark.parametrize("far", [1e30, math.inf, -math.inf])
def test_all_offsets_far(case: RoICase, far: float) -> None:
    box = torch.tensor([[0.0, 1, 2, 7, 5], [1.0, 0, 0, 8, 6]])
    box[:, 1:] /= case.spatial_scale
    arguments = case.sized(2, HEIGHT, WIDTH, 2).arguments().replaced(boxes=box)
    assert run(case, arguments)["output"].any()
    moved = arguments.replaced(offset=torch.full_like(arguments.tensors["offset"], far))
    for name, result in run(case, moved).items():
        assert not result.any(), name


def test_parts_without_bins_have_no_gradient() -> None:
    case = ROI_CASES["dps_uneven"]  # 2 x 3 bins, 3 x 3 parts: those of row 2 move nothing
    clean, unknown = unknown_boxes(case, torch.float32)
    results = run(case, clean)
    assert not results["offset"][:, :, 2].any()
    assert results["offset"][:, :, :2].any()
    assert not run(case, unknown)["offset"][:, :, 2].any()
    offset = clean.tensors["offset"].clone()
    offset[:, :, 2] = math.nan
    assert_same_bits(run(case, clean.replaced(offset=offset)), results)


def amid_nan(tensor: Tensor) -> Tensor:
    """Return the same numbers in the same strides, with NaN before and after them."""
    room = torch.full((tensor.numel() + 2 * 4096,), math.nan)
    middle = room[4096:-4096]
    return middle.as_strided(tensor.shape, tensor.stride(), middle.storage_offset()).copy_(tensor)


@EACH
@pytest.mark.parametrize("layout", [lambda call: call, channels_last], ids=["nchw", "nhwc"])
def test_nothing_beside_the_tensors_is_read(case: RoICase, layout: object) -> None:
    boxes = border_boxes(torch.float32, case.spatial_scale)[::7]
    far = torch.tensor([[0.0, -1e30, -1e30, 1e30, 1e30], [1.0, 1e30, 0.0, 1e30, 1.0]])
    size = (2, HEIGHT, WIDTH, len(boxes) + 2)
    arguments = layout(case.sized(*size).arguments().replaced(boxes=torch.cat([boxes, far])))
    alone = dataclasses.replace(
        arguments.mapped(amid_nan, arguments.tensors), grad_output=amid_nan(arguments.grad_output)
    )
    assert_same_bits(run(case, alone), run(case, arguments))


def of_image(arguments: Arguments, image: float) -> Arguments:
    boxes = arguments.tensors["boxes"].clone()
    boxes[3, 0] = image
    return arguments.replaced(boxes=boxes)


@EACH
@pytest.mark.parametrize("image", [-1.0, 2.0, 1e30, math.nan, math.inf, -math.inf])
def test_boxes_of_no_image_are_refused(case: RoICase, image: float) -> None:
    arguments = case.arguments()
    with pytest.raises(ValueError, match=r"batch indices must be in 0 \.\.\. 1 for a batch of 2"):
        of_image(arguments, image).call(getattr(dcn_tvm, case.op))
    input, boxes, *rest = operator_arguments(case, arguments)
    backward = getattr(torch.ops.dcn_tvm, f"{case.op}_backward")
    needed = [name in case.needed for name in ("input", "boxes", *case.needed[1:])]
    good = backward(arguments.grad_output, input, boxes, *rest, needed)
    assert torch.equal(good[0], run(case, arguments)["input"])
    wrong = of_image(arguments, image).tensors["boxes"]
    with pytest.raises(ValueError, match=r"batch indices must be in 0 \.\.\. 1"):
        backward(arguments.grad_output, input, wrong, *rest, needed)
