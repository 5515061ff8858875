"""The references of the RoI ops against torchvision, by finite differences, and at the edges."""

import doctest
import importlib
import math

import pytest
import torch
import torchvision
from torch import Tensor

from dcn_tvm import reference
from tests.cases import Arguments
from tests.roi_cases import ROI_CASES, RoICase
from tests.roi_oracles import assert_roi_matches_reference

HEIGHT, WIDTH = 7, 9
STARTS = (-30.0, -3.0, -1.0, -0.5, 0.0, 0.25, 2.5, 5.5, 6.0, 6.5, 7.0, 8.0, 9.0, 12.0)
SIZES = (0.0, -2.0, 0.3, 1.0, 2.5, 6.0, 7.0, 8.0, 60.0)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def intervals() -> Tensor:
    """Return (start, end) inside, at, across and beyond both borders, of every kind of size."""
    return torch.tensor([(s, s + size) for s in STARTS for size in SIZES], dtype=torch.float64)


def border_boxes(dtype: torch.dtype, spatial_scale: float = 1.0) -> Tensor:
    """Return every interval along x with three along y, and the other way round."""
    x = intervals().repeat(6, 1)
    y = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    image = torch.arange(len(x)) % 2
    boxes = torch.stack([image, x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    boxes[:, 1:] /= spatial_scale
    return boxes.to(dtype)


def drawn(dtype: torch.dtype, boxes: Tensor, channels: int, **options: object) -> Arguments:
    """Return a call with these boxes and 3 x 2 bins; its gradient is for `channels` outputs."""
    tensors = {"input": torch.randn(2, 12, HEIGHT, WIDTH, dtype=dtype), "boxes": boxes}
    grad_output = torch.randn(len(boxes), channels, 3, 2, dtype=dtype)
    return Arguments(tensors, {"output_size": (3, 2), **options}, grad_output)


def assert_equals_torchvision(op: str, arguments: Arguments, needed: tuple[str, ...]) -> None:
    expected = arguments.run(getattr(torchvision.ops, op), needed)
    torch.testing.assert_close(arguments.run(getattr(reference, op), needed), expected)


@DTYPES
@pytest.mark.parametrize("scale", [1.0, 0.25, 1 / 16, 0.3])
def test_roi_pool_equals_torchvision(dtype: torch.dtype, scale: float) -> None:
    arguments = drawn(dtype, border_boxes(dtype, scale), 12, spatial_scale=scale)
    assert_equals_torchvision("roi_pool", arguments, ("input",))


@DTYPES
@pytest.mark.parametrize("ratio", [-1, 0, 1, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_equals_torchvision(dtype: torch.dtype, ratio: int, aligned: bool) -> None:
    boxes = border_boxes(dtype, 0.25)
    if aligned and ratio <= 0:
        # torchvision asks for g_y * g_x samples, and a vector of negative length is an error.
        size = boxes[:, 3:] - boxes[:, 1:3]
        boxes = boxes[size.prod(1) >= 0]
    arguments = drawn(dtype, boxes, 12, spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned)
    assert_equals_torchvision("roi_align", arguments, ("input",))


@DTYPES
@pytest.mark.parametrize("ratio", [-1, 2])
def test_ps_roi_align_equals_torchvision(dtype: torch.dtype, ratio: int) -> None:
    boxes = border_boxes(dtype, 0.25)
    arguments = drawn(dtype, boxes, 2, spatial_scale=0.25, sampling_ratio=ratio)
    expected = arguments.run(torchvision.ops.ps_roi_align, ("input",))
    if ratio <= 0:
        # 0/0 where the grid is empty; ours is 0.
        assert expected["output"].isnan().any()
        expected["output"] = expected["output"].nan_to_num(nan=0.0)
    torch.testing.assert_close(arguments.run(reference.ps_roi_align, ("input",)), expected)


@DTYPES
@pytest.mark.parametrize("scale", [1.0, 1 / 16])
def test_ps_roi_pool_equals_torchvision(dtype: torch.dtype, scale: float) -> None:
    boxes = border_boxes(dtype, scale)
    arguments = drawn(dtype, boxes, 2, spatial_scale=scale)
    assert_equals_torchvision("ps_roi_pool", arguments, ())
    # torchvision's backward clips bins to the last row and column, its forward before them.
    before_last = torch.tensor([WIDTH - 2, HEIGHT - 2]) / scale
    inner = boxes[(boxes[:, 3:] <= before_last).all(1) & (boxes[:, 1:3] <= before_last).all(1)]
    assert len(inner) > 100
    assert_equals_torchvision(
        "ps_roi_pool", drawn(dtype, inner, 2, spatial_scale=scale), ("input",)
    )


@pytest.mark.parametrize("length", [300.0, 2000.0])
@pytest.mark.parametrize("start", [-1234.5, -150.25, 0.0, 3.0])
def test_adaptive_grids_of_large_boxes_equal_torchvision(start: float, length: float) -> None:
    """The reference lists only the samples that may touch the map."""
    box = torch.tensor([[0.0, start, start + 1, start + length, start + 1 + length / 3]])
    arguments = drawn(torch.float64, box.double(), 12)
    assert_equals_torchvision("roi_align", arguments, ("input",))


def test_lists_of_boxes_are_the_boxes_of_each_image() -> None:
    boxes = border_boxes(torch.float32)
    parts = [boxes[boxes[:, 0] == image, 1:] for image in (0, 1)]
    arguments = drawn(torch.float32, torch.cat([boxes[::2], boxes[1::2]]), 12)
    as_list = reference.roi_align(arguments.tensors["input"], parts, (3, 2))
    assert torch.equal(as_list, arguments.call(reference.roi_align))


@pytest.mark.parametrize("case", ROI_CASES.values(), ids=lambda case: case.name)
def test_gradcheck(case: RoICase) -> None:
    # 14 boxes: all kinds, some of them at the last row and column.
    leaves = case.sized(2, 5, 6, 14).arguments(torch.float64).detached(case.needed)

    def function(*tensors: Tensor) -> Tensor:
        named = dict(zip(case.needed, tensors, strict=True))
        return leaves.replaced(**named).call(case.reference)

    tensors = tuple(leaves.tensors[name] for name in case.needed)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


def test_the_maximum_of_a_bin_with_nan_is_nan() -> None:
    pixels = torch.arange(12.0).reshape(1, 1, 3, 4)
    pixels[0, 0, 1, 1] = math.nan
    boxes = torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0], [0.0, 2.0, 0.0, 3.0, 2.0]])
    output = reference.roi_pool(pixels, boxes, 1)
    assert output[0].isnan().item()
    assert output[1].item() == 11


@pytest.mark.parametrize("value", [3.0, -math.inf, math.nan])
def test_of_equal_pixels_the_first_gets_the_gradient(value: float) -> None:
    pixels = torch.full((1, 1, 4, 5), value).requires_grad_()
    box = torch.tensor([[0.0, 1.0, 2.0, 3.0, 3.0]])
    reference.roi_pool(pixels, box, 1).sum().backward()
    assert pixels.grad.nonzero().tolist() == [[0, 0, 2, 1]]


def changed(case: RoICase, name: str, index: tuple[int, ...], value: float) -> Arguments:
    arguments = case.arguments(torch.float32)
    tensor = arguments.tensors[name].clone()
    tensor[index] = value
    return arguments.replaced(**{name: tensor})


@pytest.mark.parametrize(
    ("column", "value"), [(1, math.inf), (2, math.nan), (3, -math.inf), (4, math.inf)]
)
@pytest.mark.parametrize("case", ROI_CASES.values(), ids=lambda case: case.name)
def test_boxes_without_numbers_give_nan(case: RoICase, column: int, value: float) -> None:
    clean = case.arguments(torch.float32).run(case.reference, case.needed)
    arguments = changed(case, "boxes", (3, column), value)
    results = arguments.run(case.reference, case.needed)
    others = torch.arange(case.boxes) != 3
    assert results["output"][3].isnan().all()
    if case.classes is not None:
        # Where parts outnumber bins, some offsets move nothing.
        row, column = case.part_of_bins()
        assert results["offset"][3, :, row[:, None], column].isnan().all()
    for name in ("output", "offset")[: len(case.needed)]:
        assert torch.equal(results[name][others], clean[name][others])
    grad_output = arguments.grad_output * others[:, None, None, None]
    without = Arguments(arguments.tensors, arguments.options, grad_output)
    expected = without.run(case.reference, ("input",))["input"]
    torch.testing.assert_close(results["input"], expected)


@pytest.mark.parametrize("op", ["roi_pool", "roi_align", "ps_roi_pool", "ps_roi_align"])
def test_a_size_beyond_the_floats_gives_nan(op: str) -> None:
    box = torch.tensor([[0.0, -3e38, 0.0, 3e38, 5.0], [0.0, 3e38, 0.0, 3.2e38, 5.0]])
    arguments = drawn(torch.float32, box, 12)
    assert arguments.call(getattr(reference, op))[0].isnan().all()
    assert not arguments.call(getattr(reference, op))[1].any()
    scaled = drawn(torch.float32, box / 1e6, 12, spatial_scale=1e9)
    assert scaled.call(getattr(reference, op)).isnan().all()


DEFORMED = [case for case in ROI_CASES.values() if case.classes is not None]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", DEFORMED, ids=lambda case: case.name)
def test_unknown_offsets_give_nan_in_their_bins(case: RoICase, axis: int) -> None:
    clean = case.arguments(torch.float32).run(case.reference, case.needed)
    channel = 2 * (case.classes - 1) + axis  # the last class
    arguments = changed(case, "offset", (2, channel, 0, -1), math.nan)
    results = arguments.run(case.reference, case.needed)
    first, per_class = 2 * (case.classes - 1), case.out_channels // case.classes
    last = case.parts[1] - 1
    unknown = results["offset"].isnan().nonzero().tolist()
    assert unknown == [[2, first, 0, last], [2, first + 1, 0, last]]
    row, column = case.part_of_bins()
    expected = clean["output"].clone()
    expected[2, -per_class:] = torch.where(
        (row[:, None] == 0) & (column == last), math.nan, expected[2, -per_class:]
    )
    torch.testing.assert_close(results["output"], expected, rtol=0, atol=0, equal_nan=True)
    assert results["input"].isfinite().all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e30, 3e38])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", DEFORMED, ids=lambda case: case.name)
def test_infinite_offsets_move_off_the_map(case: RoICase, axis: int, value: float) -> None:
    arguments = case.arguments(torch.float32)
    offset = arguments.tensors["offset"].clone()
    offset[:, axis::2] = value
    results = arguments.replaced(offset=offset).run(case.reference, case.needed)
    size = arguments.tensors["boxes"][:, 3 + axis] - arguments.tensors["boxes"][:, 1 + axis]
    # Without a size a finite offset moves nothing.
    kept = (
        size != 0 if math.isinf(value) or case.options.get("sampling_ratio") is None else size > 0
    )
    moved = torch.ones_like(kept) if math.isinf(value) else kept
    assert not results["output"][moved].any()
    assert not results["offset"][moved].any()
    assert results["input"].isfinite().all()


@pytest.mark.parametrize("case", ROI_CASES.values(), ids=lambda case: case.name)
@pytest.mark.parametrize("batch", [0, 2])
def test_no_boxes(case: RoICase, batch: int) -> None:
    results = case.sized(batch, 5, 6, 0).arguments().run(case.reference, case.needed)
    assert results["output"].shape == (0, case.out_channels, *case.bins)
    assert results["input"].shape == (batch, case.channels, 5, 6)
    assert not results["input"].any()


@pytest.mark.parametrize("image", [-1.0, 2.0, math.nan, math.inf])
def test_boxes_of_no_image_are_refused(image: float) -> None:
    case = ROI_CASES["align_adaptive"]
    with pytest.raises(ValueError, match="images 0 to 1"):
        changed(case, "boxes", (3, 0), image).call(case.reference)


@pytest.mark.parametrize("name", ["max", "align_adaptive", "rfcn", "dps_aware", "deform"])
@pytest.mark.parametrize("huge", [1e8, 1e30])
def test_huge_boxes_work_like_others(name: str, huge: float) -> None:
    case = ROI_CASES[name]
    box = torch.tensor(
        [[0, -huge, -huge, huge, huge], [0, 0, 0, huge, huge], [0, huge, 0, huge, 1]]
    )
    arguments = case.sized(1, 9, 11, 3).arguments().replaced(boxes=box)
    for result in arguments.run(case.reference, case.needed).values():
        assert result.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["max", "aligned_adaptive", "rfcn", "deform", "dps_groups"])
def test_half_types_round_once(name: str, dtype: torch.dtype) -> None:
    case = ROI_CASES[name]
    arguments = case.arguments(dtype)
    half = arguments.run(case.reference, case.needed)
    single = arguments.to(torch.float32).run(case.reference, case.needed)
    for key, result in half.items():
        torch.testing.assert_close(result, single[key].to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["avg", "align_64", "ps_point", "deform_grid", "dps_aware"])
def test_the_tolerance_rule_refuses_a_small_relative_error(name: str) -> None:
    case = ROI_CASES[name]

    def slightly_wrong(**arguments: object) -> Tensor:
        return case.reference(**arguments) * (1 + 3e-5)

    assert_roi_matches_reference(case.reference, case.reference, case.arguments())
    with pytest.raises(AssertionError, match="rounding band"):
        assert_roi_matches_reference(slightly_wrong, case.reference, case.arguments())


@pytest.mark.parametrize(
    ("op", "option"),
    [("roi_pool", "mode"), ("ps_roi_pool", "convention"), ("deform_ps_roi_pool", "sampling")],
)
def test_unknown_conventions_are_refused(op: str, option: str) -> None:
    case = next(case for case in ROI_CASES.values() if case.op == op)
    with pytest.raises(ValueError, match=f"{option}.*'median'"):
        case.arguments().with_options(**{option: "median"}).call(case.reference)


@pytest.mark.parametrize("op", sorted({case.op for case in ROI_CASES.values()}))
def test_examples(op: str) -> None:
    module = importlib.import_module(f"dcn_tvm.reference.{op}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 1
    assert result.failed == 0
