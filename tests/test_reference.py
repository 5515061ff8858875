"""The reference against torchvision, against the paper's formula written out, and at the edges."""

import math

import pytest
import torch
import torchvision
from torch import Tensor

from dcn_tvm import reference
from tests.cases import CASES, Arguments, Case
from tests.oracles import assert_matches_reference

TORCHVISION_CASES = [
    case for case in CASES.values() if case.boundary == "zeros" and case.in_channels < 100
]


def torchvision_op(boundary: str = "zeros", **arguments: object) -> Tensor:
    assert boundary == "zeros", "torchvision knows no other"
    return torchvision.ops.deform_conv2d(**arguments)


@pytest.mark.parametrize("case", TORCHVISION_CASES, ids=lambda case: case.name)
def test_equals_torchvision_forward_and_backward(case: Case) -> None:
    arguments = case.arguments(torch.float64)
    expected = arguments.run(torchvision_op)
    torch.testing.assert_close(arguments.run(reference.deform_conv2d), expected)


@pytest.mark.parametrize("batch", [0, 1, 33])
def test_equals_torchvision_at_any_batch(batch: int) -> None:
    arguments = CASES["modulated"].sized(batch, 4, 3).arguments(torch.float64)
    expected = arguments.run(torchvision_op)
    torch.testing.assert_close(arguments.run(reference.deform_conv2d), expected)


def test_slopes_at_integer_positions_are_torchvisions() -> None:
    case = CASES["point"].sized(2, 5, 6)
    drawn = case.arguments(torch.float64)
    whole = torch.randint(-3, 4, drawn.tensors["offset"].shape).double()
    arguments = drawn.replaced(offset=whole)
    expected = arguments.run(torchvision_op)
    torch.testing.assert_close(arguments.run(reference.deform_conv2d), expected)


@pytest.mark.parametrize("name", ["plain", "modulated", "msra", "uneven", "groups_crossed"])
def test_gradcheck(name: str) -> None:
    case = CASES[name].sized(1, 4, 5)
    leaves = case.arguments(torch.float64).detached()

    def function(*tensors: Tensor) -> Tensor:
        named = dict(zip(leaves.tensors, tensors, strict=True))
        return leaves.replaced(**named).call(reference.deform_conv2d)

    assert torch.autograd.gradcheck(function, tuple(leaves.tensors.values()), fast_mode=True)


def sampled(pixels: Tensor, y: float, x: float, boundary: str) -> float:
    """Sample one position of a one-channel map through a 1x1 kernel with weight 1."""
    height, width = pixels.shape
    offset = torch.tensor([y, x], dtype=pixels.dtype).reshape(1, 2, 1, 1)
    one = torch.ones(1, 1, 1, 1, dtype=pixels.dtype)
    stride = (height, width)
    maps = pixels.reshape(1, 1, height, width)
    return reference.deform_conv2d(maps, offset, one, stride=stride, boundary=boundary).item()


def equation_3(pixels: Tensor, y: float, x: float) -> float:
    """Sum over all pixels, literally: max(0, 1 - |q_y - p_y|) max(0, 1 - |q_x - p_x|) x(q)."""
    return sum(
        max(0.0, 1 - abs(row - y)) * max(0.0, 1 - abs(column - x)) * pixels[row, column].item()
        for row in range(pixels.shape[0])
        for column in range(pixels.shape[1])
    )


def released_code(pixels: Tensor, y: float, x: float) -> float:
    """The bilinear rule of the released v1 code (deformable_im2col), literally."""
    height, width = pixels.shape
    if not (0 <= y < height and 0 <= x < width):
        return 0.0
    top, left = math.floor(y), math.floor(x)
    if top >= height - 1:
        top = bottom = height - 1
        y = float(top)
    else:
        bottom = top + 1
    if left >= width - 1:
        left = right = width - 1
        x = float(left)
    else:
        right = left + 1
    down, across = y - top, x - left
    upper = (1 - across) * pixels[top, left] + across * pixels[top, right]
    lower = (1 - across) * pixels[bottom, left] + across * pixels[bottom, right]
    return ((1 - down) * upper + down * lower).item()


POSITIONS = [
    -7.0,
    -1.0,
    -0.9,
    -0.1,
    0.0,
    0.3,
    1.0,
    1.75,
    2.0,
    2.1,
    2.9,
    3.0,
    3.4,
    4.0,
    1e6,
    math.inf,
]


@pytest.mark.parametrize(("boundary", "rule"), [("zeros", equation_3), ("msra", released_code)])
def test_equals_the_formula_written_out(boundary: str, rule: object) -> None:
    pixels = torch.randn(3, 4, dtype=torch.float64)
    for y in POSITIONS:
        for x in POSITIONS:
            got = torch.tensor(sampled(pixels, y, x, boundary), dtype=torch.float64)
            expected = torch.tensor(rule(pixels, y, x), dtype=torch.float64)
            torch.testing.assert_close(got, expected, msg=f"at {y}, {x}")


@pytest.mark.parametrize("boundary", ["zeros", "msra"])
@pytest.mark.parametrize("far", [1e6, 1e30, -1e30, math.inf, -math.inf])
def test_far_positions_give_zero_and_no_gradient(boundary: str, far: float) -> None:
    results = everywhere(far, boundary).run(reference.deform_conv2d)
    for name in ("output", "input", "offset", "weight", "mask"):
        assert not results[name].any(), name


@pytest.mark.parametrize("boundary", ["zeros", "msra"])
def test_unknown_positions_spread_to_all_but_the_pixels(boundary: str) -> None:
    results = everywhere(math.nan, boundary).run(reference.deform_conv2d)
    for name in ("output", "offset", "weight", "mask"):
        assert results[name].isnan().all(), name
    assert not results["input"].any()
    assert results["bias"].isfinite().all()


@pytest.mark.parametrize("boundary", ["zeros", "msra"])
@pytest.mark.parametrize("other", [1.0, -1.0, 99.0, math.inf, math.nan])
def test_one_unknown_coordinate_is_enough(boundary: str, other: float) -> None:
    pixels = torch.ones(3, 4)
    assert math.isnan(sampled(pixels, math.nan, other, boundary))
    assert math.isnan(sampled(pixels, other, math.nan, boundary))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("y", "x"), [(-1.0, 0.0), (3.0, 1.0), (1.5, 4.0), (1e30, 0.0)])
def test_what_lies_on_the_map_never_leaks_out_of_it(value: float, y: float, x: float) -> None:
    assert sampled(torch.full((3, 4), value), y, x, "zeros") == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_round_once(dtype: torch.dtype) -> None:
    arguments = CASES["groups_split"].arguments(dtype)
    half = arguments.run(reference.deform_conv2d)
    single = arguments.to(torch.float32).run(reference.deform_conv2d)
    for name, result in half.items():
        torch.testing.assert_close(result, single[name].to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["modulated", "channels_64"])
def test_the_tolerance_rule_refuses_a_small_relative_error(name: str, dtype: torch.dtype) -> None:
    error = 1000 * torch.finfo(dtype).eps

    def slightly_wrong(**arguments: object) -> Tensor:
        return reference.deform_conv2d(**arguments) * (1 + error)

    arguments = CASES[name].arguments(dtype)
    assert_matches_reference(reference.deform_conv2d, arguments)
    with pytest.raises(AssertionError, match="rounding band"):
        assert_matches_reference(slightly_wrong, arguments)


def test_an_unknown_boundary_is_refused() -> None:
    arguments = CASES["point"].arguments().with_options(boundary="reflect")
    with pytest.raises(ValueError, match="'reflect'"):
        arguments.call(reference.deform_conv2d)


def everywhere(position: float, boundary: str) -> Arguments:
    arguments = CASES["modulated"].sized(1, 4, 5).arguments().with_options(boundary=boundary)
    offset = torch.full_like(arguments.tensors["offset"], position)
    return arguments.replaced(offset=offset, bias=torch.zeros_like(arguments.tensors["bias"]))
