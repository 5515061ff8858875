"""The portable kernels as WGSL, run by wgpu on Mesa's Vulkan for processors: numbers, layouts."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("tvm")

from tests import emulator
from tests.cases import CASES, Arguments
from tests.devices import on_device, webgpu
from tests.emulator.operators import same_bits
from tests.oracles import assert_matches_reference
from tests.roi_cases import ROI_CASES, channels_last
from tests.roi_oracles import assert_roi_matches_reference

pytestmark = pytest.mark.skipif(
    emulator.available() is not None or webgpu.unavailable() is not None,
    reason=emulator.available() or webgpu.unavailable() or "",
)

CONVOLUTIONS = (("groups_crossed", False), ("depthwise", True), ("msra_plain", False))
ROIS = (
    *(("max", False), ("align_adaptive", True), ("ps", True)),
    *(("ps_align_adaptive", False), ("deform", True), ("dps_parts", False)),
)


@functools.cache
def device() -> webgpu.WebGPU:
    return webgpu.WebGPU()


def convolution(name: str, *, last: bool, dtype: torch.dtype = torch.float32) -> Arguments:
    drawn = CASES[name].arguments(dtype)
    if not last:
        return drawn
    return drawn.mapped(lambda t: t.contiguous(memory_format=torch.channels_last), ["input"])


@pytest.mark.parametrize(("name", "last"), CONVOLUTIONS)
def test_deform_conv2d(name: str, last: bool) -> None:
    assert_matches_reference(on_device("deform_conv2d", device()), convolution(name, last=last))


@pytest.mark.parametrize(("name", "last"), ROIS)
def test_roi_ops(name: str, last: bool) -> None:
    case = ROI_CASES[name]
    given = case.arguments()
    given = channels_last(given) if last else given
    assert_roi_matches_reference(on_device(case.op, device()), case.reference, given, case.needed)


def test_float16() -> None:
    if not device().half:
        pytest.skip("this device has no float16 (shader-f16)")
    given = convolution("point", last=False, dtype=torch.float16)
    assert_matches_reference(on_device("deform_conv2d", device()), given)


def test_the_same_bits_in_every_run() -> None:
    given = convolution("groups_crossed", last=False)
    function = on_device("deform_conv2d", device())
    first, again = given.run(function), given.run(function)
    assert all(same_bits(first[name], again[name]) for name in first)
