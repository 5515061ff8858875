"""The portable kernels as OpenCL, run by PoCL on the processor: numbers, types, layouts."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("tvm")

from dcn_tvm.knobs import Knobs
from tests import emulator
from tests.cases import CASES, Arguments
from tests.devices import on_device, opencl
from tests.emulator.operators import same_bits
from tests.oracles import assert_matches_reference
from tests.roi_cases import ROI_CASES, channels_last
from tests.roi_oracles import assert_roi_matches_reference

pytestmark = pytest.mark.skipif(
    emulator.available() is not None or opencl.unavailable() is not None,
    reason=emulator.available() or opencl.unavailable() or "",
)

# One call of every op; PoCL takes seconds for each, as it compiles and links every kernel.
CONVOLUTIONS = (("groups_crossed", False), ("msra_plain", True))
ROIS = (
    *(("max", False), ("align_adaptive", True), ("ps", True)),
    *(("ps_align_adaptive", False), ("deform", True), ("dps_parts", False)),
)


@functools.cache
def device(options: tuple[str, ...] = ("-cl-opt-disable",)) -> opencl.OpenCL:
    return opencl.OpenCL(options)


def convolution(name: str, *, last: bool, dtype: torch.dtype = torch.float32) -> Arguments:
    drawn = CASES[name].arguments(dtype)
    return drawn.mapped(_last, ["input"]) if last else drawn


def _last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def pooling(name: str, *, last: bool, dtype: torch.dtype = torch.float32) -> Arguments:
    drawn = ROI_CASES[name].arguments(dtype)
    return channels_last(drawn) if last else drawn


def check_pooling(
    name: str,
    *,
    last: bool,
    dtype: torch.dtype = torch.float32,
    choose: Callable[[], Knobs] = Knobs,
) -> None:
    case = ROI_CASES[name]
    function = on_device(case.op, device(), choose)
    given = pooling(name, last=last, dtype=dtype)
    assert_roi_matches_reference(function, case.reference, given, case.needed)


@pytest.mark.parametrize(("name", "last"), CONVOLUTIONS)
def test_deform_conv2d(name: str, last: bool) -> None:
    assert_matches_reference(on_device("deform_conv2d", device()), convolution(name, last=last))


def test_with_optimisations() -> None:
    function = on_device("deform_conv2d", device(()))
    assert_matches_reference(function, convolution("msra_plain", last=False), ())


@pytest.mark.parametrize(("name", "last"), ROIS)
def test_roi_ops(name: str, last: bool) -> None:
    check_pooling(name, last=last)


def test_float64() -> None:
    if not device().has("cl_khr_fp64"):
        pytest.skip("this device has no float64")
    check_pooling("avg", last=True, dtype=torch.float64)
    function = on_device("deform_conv2d", device())
    assert_matches_reference(function, convolution("point", last=True, dtype=torch.float64))


def test_float16() -> None:
    if not device().has("cl_khr_fp16"):
        pytest.skip("this PoCL has no float16 (cl_khr_fp16)")
    function = on_device("deform_conv2d", device())
    assert_matches_reference(function, convolution("point", last=False, dtype=torch.float16))
    check_pooling("avg", last=True, dtype=torch.float16)


@pytest.mark.parametrize("name", ("depthwise", "max_uneven"))
def test_random_points_compute_the_same(name: str) -> None:
    chosen: list[Knobs] = []

    def choose() -> Knobs:
        chosen.append(Knobs(rng=random.Random(name)))
        return chosen[-1]

    try:
        if name in CASES:
            function = on_device("deform_conv2d", device(), choose)
            assert_matches_reference(function, convolution(name, last=True))
        else:
            check_pooling(name, last=True, choose=choose)
    except AssertionError as error:
        raise AssertionError(f"{error}; chosen: {[knobs.chosen for knobs in chosen]}") from error


def test_the_same_bits_in_every_run() -> None:
    given = convolution("groups_crossed", last=False)
    function = on_device("deform_conv2d", device())
    first, again = given.run(function), given.run(function)
    assert all(same_bits(first[name], again[name]) for name in first)
    case, boxes = ROI_CASES["deform"], pooling("deform", last=True)
    pool = on_device(case.op, device())
    first, again = boxes.run(pool, case.needed), boxes.run(pool, case.needed)
    assert all(same_bits(first[name], again[name]) for name in first)


def test_nan_stays_where_it_is() -> None:
    nan, given = float("nan"), convolution("groups_crossed", last=False)
    given.tensors["input"][0, 3, 4, 5] = nan
    given.tensors["offset"][1, 2, 3, 4] = nan
    assert_matches_reference(on_device("deform_conv2d", device()), given, ())
    case, boxes = ROI_CASES["max"], pooling("max", last=False)
    boxes.tensors["input"][0, 0, 4, 5] = nan
    boxes.tensors["boxes"][2, 1] = nan
    actual = boxes.run(on_device(case.op, device()), ())
    expected = boxes.run(case.reference, ())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
