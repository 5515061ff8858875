"""Deformable convolution's kernels for GPUs, on the emulator: numbers, types, orders of threads."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("tvm")

import dcn_tvm
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from dcn_tvm.target import detect
from tests import emulator
from tests.cases import CASES, Arguments, Case
from tests.emulator import operators
from tests.emulator.operators import HOPPER, emulated, in_order, same_bits
from tests.oracles import assert_matches_reference

pytestmark = pytest.mark.skipif(
    emulator.available() is not None or detect().kind != "llvm",
    reason=emulator.available() or "no host",
)

REPEATABLE = replace(HOPPER, deterministic=True)
TF32 = replace(HOPPER, tf32=True)
TURING = Gpu("cuda", "", "sm_75")  # no tensor cores that take these products
PLAIN = Gpu("opencl", "", "")  # a device without atomics
HALVES = (torch.float16, torch.bfloat16)
# One layout for each case; the three that differ most have both.
LAST = ("msra", "no_bias", "seven", "groups", "groups_joined", "depthwise_widened", "channels_3")
BOTH = ("modulated", "groups_crossed", "channels_64_plain")


def arguments(case: Case, *, last: bool = False, dtype: torch.dtype = torch.float32) -> Arguments:
    drawn = case.arguments(dtype)
    return drawn.mapped(channels_last, ["input"]) if last else drawn


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def check(
    case: Case,
    target: Gpu = HOPPER,
    *,
    last: bool = False,
    dtype: torch.dtype = torch.float32,
    choose: Callable[[], Knobs] = Knobs,
    needed: tuple[str, ...] | None = None,
) -> dict[str, Tensor]:
    function = emulated("deform_conv2d", target, choose)
    return assert_matches_reference(function, arguments(case, last=last, dtype=dtype), needed)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_float32(case: Case) -> None:
    check(case, last=case.name in LAST)


@pytest.mark.parametrize("name", BOTH)
def test_channels_last(name: str) -> None:
    check(CASES[name], last=True)


@pytest.mark.parametrize("name", ("modulated", "msra", "groups_crossed"))
def test_float64(name: str) -> None:
    check(CASES[name], dtype=torch.float64, last=name == "msra")


@pytest.mark.parametrize(
    ("name", "dtype", "last"),
    (
        ("channels_64", torch.float16, True),
        ("channels_64", torch.bfloat16, False),
        ("channels_64_plain", torch.float16, False),
        ("channels_30", torch.bfloat16, True),
        ("channels_30", torch.float16, False),
        ("groups_crossed", torch.bfloat16, False),
    ),
)
def test_half_types(name: str, dtype: torch.dtype, last: bool) -> None:
    check(CASES[name], dtype=dtype, last=last)


@pytest.mark.parametrize(("name", "last"), (("channels_30", False), ("no_bias_modulated", True)))
def test_tf32(name: str, last: bool) -> None:
    """The emulator does not round to TF32: where the numbers go is what is tested."""
    check(CASES[name], TF32, last=last)


@pytest.mark.parametrize(
    ("name", "dtype", "target", "seed"),
    (
        ("channels_64", torch.float16, HOPPER, None),
        ("channels_64", torch.bfloat16, HOPPER, 1),
        ("channels_30", torch.float16, HOPPER, 2),
        ("channels_64", torch.float32, TF32, None),
        ("channels_30", torch.float32, TF32, 3),
    ),
)
def test_fragments_of_tensor_cores(
    name: str, dtype: torch.dtype, target: Gpu, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each lane loads, multiplies and stores, by the code that runs on a device."""

    def image_of_lanes(source: str) -> bytes:
        assert "DCN_TVM_LANES" in source or "dcn_multiply" not in source
        return emulator.image("#define DCN_TVM_LANES 1\n" + source)

    def choose() -> Knobs:  # of its own, so that all is built anew
        return Knobs(rng=None if seed is None else random.Random(seed))

    monkeypatch.setattr(operators, "image", image_of_lanes)
    check(CASES[name].sized(1, 6, 7), target, dtype=dtype, choose=choose)


def test_half_types_before_ampere() -> None:
    check(CASES["no_bias_modulated"], TURING, dtype=torch.float16)


@pytest.mark.parametrize(("name", "last"), (("groups_crossed", False), ("modulated", True)))
def test_without_atomics(name: str, last: bool) -> None:
    check(CASES[name], PLAIN, last=last)


@pytest.mark.parametrize(
    ("name", "target", "dtype"),
    (
        ("modulated", REPEATABLE, torch.float32),
        ("channels_64", REPEATABLE, torch.float16),
        ("groups_crossed", REPEATABLE, torch.float64),
    ),
)
def test_deterministic_gradients_are_the_same_in_every_order(
    name: str, target: Gpu, dtype: torch.dtype
) -> None:
    case = CASES[name].sized(1, 5, 6)
    given = arguments(case, dtype=dtype)
    function = emulated("deform_conv2d", target)
    first = given.run(function)
    if dtype != torch.float64:
        check(case, target, dtype=dtype)
    else:  # sums hold 61 bits below a bound that is far above them
        exact = given.run(dcn_tvm.reference.deform_conv2d)
        torch.testing.assert_close(first, exact, rtol=1e-9, atol=1e-9)
    for order in ("reverse", "shuffle"):
        with in_order(order, seed=1):
            again = given.run(function)
        assert all(same_bits(first[key], again[key]) for key in first), order


def test_deterministic_gradients_of_numbers_that_are_not_finite() -> None:
    given = arguments(CASES["modulated"].sized(1, 5, 6))
    for number in (float("inf"), float("nan")):
        given.grad_output[0, 0, 0, 0] = number
        found = given.run(emulated("deform_conv2d", REPEATABLE), ("input",))
        assert found["input"].isnan().all()


def test_deterministic_gradients_of_zeros_are_zeros() -> None:
    given = arguments(CASES["modulated"].sized(1, 5, 6))
    given.grad_output.zero_()
    found = given.run(emulated("deform_conv2d", REPEATABLE), ("input",))
    assert not found["input"].any()


@pytest.mark.parametrize("order", ("reverse", "shuffle"))
@pytest.mark.parametrize(
    ("name", "dtype"), (("modulated", torch.float32), ("channels_64", torch.float16))
)
def test_no_order_of_threads_matters(name: str, dtype: torch.dtype, order: str) -> None:
    with in_order(order, seed=2):
        check(CASES[name], dtype=dtype)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("name", "dtype", "target"),
    (
        ("modulated", torch.float32, HOPPER),
        ("channels_64", torch.float16, HOPPER),
        ("channels_64_plain", torch.float32, TF32),
    ),
)
def test_random_knobs(name: str, dtype: torch.dtype, target: Gpu, seed: int) -> None:
    choose = functools.partial(lambda seed: Knobs(rng=random.Random(seed)), seed)
    check(CASES[name], target, dtype=dtype, last=seed % 2 == 1, choose=choose)


@pytest.mark.parametrize("batch", (0, 1, 5))
def test_batches(batch: int) -> None:
    check(CASES["modulated"].sized(batch, 9, 11))


@pytest.mark.parametrize(("height", "width"), ((1, 1), (1, 7), (3, 65), (40, 5)))
def test_sizes(height: int, width: int) -> None:
    check(CASES["msra"].sized(2, height, width), last=True)


def test_a_map_that_fills_the_device_is_not_split() -> None:
    few = replace(HOPPER, multiprocessors=1)
    check(CASES["modulated"].sized(3, 20, 21), few)
    check(CASES["channels_64"].sized(2, 20, 21), few, dtype=torch.float16, last=True)


@pytest.mark.parametrize("needed", (("offset",), ("mask",), ("input",), ("weight",), ("bias",)))
def test_single_gradients(needed: tuple[str, ...]) -> None:
    check(CASES["modulated"], needed=needed, last=needed == ("mask",))


@pytest.mark.parametrize("last", (False, True), ids=("nchw", "nhwc"))
def test_positions_that_are_not_finite(last: bool) -> None:
    given = arguments(CASES["modulated"], last=last)
    offset = given.tensors["offset"]
    offset[0, 0, 0, 0] = float("nan")
    offset[0, 1, 1, 1] = float("inf")
    offset[0, 2, 2, 2] = 1e30
    offset[1, 3, 3, 3] = -1e30
    offset[1, 4, 4, 4] = -1.0 - 4 + 1  # exactly -1, where the value is 0 and the slope is not
    assert_matches_reference(emulated("deform_conv2d"), given)
