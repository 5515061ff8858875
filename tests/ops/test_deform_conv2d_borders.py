"""Positions on, beside and far beyond the map's border, and numbers that are none."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dcn_tvm
from tests.cases import CASES, Arguments, Case
from tests.oracles import assert_matches_reference

HEIGHT, WIDTH = 5, 6
# One output pixel per image, at (0, 0): so the offset is the position, with no rounding.
ONE_SAMPLE = Case(
    "one_sample",
    3,
    2,
    kernel=(1, 1),
    stride=(HEIGHT, WIDTH),
    padding=(0, 0),
    height=HEIGHT,
    width=WIDTH,
)


def border_positions(size: int) -> list[float]:
    tiny = torch.finfo(torch.float32).tiny
    below = torch.nextafter(torch.tensor(float(size)), torch.tensor(0.0)).item()
    above = torch.nextafter(torch.tensor(-1.0), torch.tensor(0.0)).item()
    small = 2.0**-7
    last = size - 1.0
    near = [-1 - small, -1.0, above, -1 + small, -small, -tiny, 0.0, tiny, small, 1.5]
    near += [last - small, last, last + small, size - small, below, float(size), size + small]
    return [*near, -1e6, 1e6, -1e30, 1e30, -math.inf, math.inf, math.nan]


PAIRS = list(itertools.product(border_positions(HEIGHT), border_positions(WIDTH)))


def border_arguments(dtype: torch.dtype, boundary: str) -> Arguments:
    drawn = ONE_SAMPLE.sized(len(PAIRS), HEIGHT, WIDTH).arguments(torch.float64)
    positions = torch.tensor(PAIRS, dtype=torch.float64).reshape(-1, 2, 1, 1)
    no_bias = torch.zeros_like(drawn.tensors["bias"])
    return drawn.replaced(offset=positions, bias=no_bias).with_options(boundary=boundary).to(dtype)


def is_outside(offset: Tensor, boundary: str) -> Tensor:
    y, x = offset[:, 0, 0, 0], offset[:, 1, 0, 0]
    if boundary == "zeros":
        outside = (y <= -1) | (y >= HEIGHT) | (x <= -1) | (x >= WIDTH)
    else:
        outside = (y < 0) | (y >= HEIGHT) | (x < 0) | (x >= WIDTH)
    return outside & ~y.isnan() & ~x.isnan()


@pytest.mark.parametrize("boundary", ["zeros", "msra"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_border_table(dtype: torch.dtype, boundary: str) -> None:
    arguments = border_arguments(dtype, boundary)
    results = assert_matches_reference(dcn_tvm.deform_conv2d, arguments)
    outside = is_outside(arguments.tensors["offset"], boundary)
    assert not results["output"][outside].any(), "a sample outside is exactly 0"
    assert not results["mask"][outside].any()
    assert not results["input"][outside].any()
    # At -1 itself the slope is that of the cell that begins there.
    edge = (arguments.tensors["offset"] == -1).flatten(1).any(1)
    assert not results["offset"][outside & ~edge].any()


@pytest.mark.parametrize("boundary", ["zeros", "msra"])
def test_unknown_positions_touch_what_uses_them_only(boundary: str) -> None:
    name = {"zeros": "modulated", "msra": "msra"}[boundary]
    arguments = CASES[name].arguments()
    clean = arguments.run(dcn_tvm.deform_conv2d)
    offset = arguments.tensors["offset"].clone()
    offset[1, 5, 2, 3] = math.nan  # group 0, tap 2, x: one output pixel of one image
    results = assert_matches_reference(dcn_tvm.deform_conv2d, arguments.replaced(offset=offset))
    used = torch.zeros_like(clean["output"], dtype=torch.bool)
    used[1, :, 2, 3] = True
    assert results["output"][used].isnan().all()
    assert torch.equal(results["output"][~used], clean["output"][~used])
    assert results["weight"].isnan().flatten(2).any(1).any(0).nonzero().flatten().tolist() == [2]
    assert results["offset"].isnan().nonzero().tolist() == [[1, 4, 2, 3], [1, 5, 2, 3]]
    assert results["mask"].isnan().nonzero().tolist() == [[1, 2, 2, 3]]
    assert results["input"].isfinite().all()


FAR = [(-1.0, 2.0), (HEIGHT, 2.0), (2.0, -1.0), (2.0, WIDTH), (1e6, 1e6), (1e30, 0.0)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_lies_on_the_map_never_leaks_out_of_it(dtype: torch.dtype, value: float) -> None:
    drawn = ONE_SAMPLE.sized(len(FAR), HEIGHT, WIDTH).arguments(dtype)
    arguments = drawn.replaced(
        input=torch.full_like(drawn.tensors["input"], value),
        offset=torch.tensor(FAR, dtype=dtype).reshape(-1, 2, 1, 1),
        bias=torch.zeros_like(drawn.tensors["bias"]),
    )
    assert not arguments.call(dcn_tvm.deform_conv2d).any()


def test_unknown_data_reaches_the_samples_beside_it_only() -> None:
    arguments = ONE_SAMPLE.sized(len(PAIRS), HEIGHT, WIDTH).arguments()
    offset = torch.tensor([[1.5, 2.5], [3.5, 2.5], [1.5, 4.5]] * 192).reshape(-1, 2, 1, 1)
    image = torch.zeros(HEIGHT, WIDTH)
    image[1, 2] = math.nan
    data = image.expand(192 * 3, 3, HEIGHT, WIDTH)
    short = arguments.part(0, 192 * 3).replaced(input=data, offset=offset)
    output = short.call(dcn_tvm.deform_conv2d)
    assert output[0::3].isnan().all()
    assert output[1::3].isfinite().all()
    assert output[2::3].isfinite().all()


@pytest.mark.parametrize("far", [1e6, 1e30, -1e30, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["modulated", "msra", "channels_64"])
def test_all_positions_far(name: str, far: float) -> None:
    arguments = CASES[name].arguments()
    moved = arguments.replaced(offset=torch.full_like(arguments.tensors["offset"], far))
    results = moved.run(dcn_tvm.deform_conv2d)
    bias = arguments.tensors["bias"][:, None, None]
    assert torch.equal(results["output"], bias.expand_as(results["output"]))
    for gradient in ("input", "offset", "weight", "mask"):
        assert not results[gradient].any(), gradient


@pytest.mark.parametrize("name", ["modulated", "msra", "strided"])
def test_whole_pixel_offsets(name: str) -> None:
    arguments = CASES[name].arguments()
    whole = torch.randint(-4, 5, arguments.tensors["offset"].shape).float()
    assert_matches_reference(dcn_tvm.deform_conv2d, arguments.replaced(offset=whole))


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=40), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_any_float_is_an_offset(values: list[float], seed: int) -> None:
    arguments = CASES["modulated"].sized(1, 5, 6).arguments(seed=seed)
    offset = arguments.tensors["offset"]
    order = torch.randperm(offset.numel(), generator=torch.Generator().manual_seed(seed))
    drawn = offset.flatten().clone()
    drawn[order[: len(values)]] = torch.tensor(values)
    assert_matches_reference(
        dcn_tvm.deform_conv2d, arguments.replaced(offset=drawn.reshape(offset.shape))
    )
