"""The RoI ops' kernels for GPUs, on the emulator: numbers, NaN, orders of threads, layouts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("tvm")

from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from dcn_tvm.ops.roi_align import RoIAlignProblem
from dcn_tvm.target import detect
from tests import emulator
from tests.cases import Arguments
from tests.emulator.operators import HOPPER, emulated, in_order, same_bits, to_array, to_tensor
from tests.roi_cases import ROI_CASES, RoICase, channels_last
from tests.roi_oracles import assert_roi_matches_reference

pytestmark = pytest.mark.skipif(
    emulator.available() is not None or detect().kind != "llvm",
    reason=emulator.available() or "no host",
)

REPEATABLE = replace(HOPPER, deterministic=True)
PLAIN = Gpu("opencl", "", "")  # a device without atomics
# One case for each rule, with the layout that the next table does not have (nhwc: True).
RULES = (
    *(("avg", True), ("aligned", True), ("rfcn", False), ("ps_align", False)),
    *(("deform_grid", True), ("deform_adaptive", False), ("deform_still", True)),
    *(("dps_groups", False), ("dps_paper_parts", True)),
)
OPS = ("max", "align_adaptive", "ps", "ps_align_adaptive", "deform", "dps_parts")
TYPES = (
    ("max_uneven", torch.float16, True),
    ("avg", torch.bfloat16, False),
    ("deform_64", torch.bfloat16, True),
    ("deform_64", torch.float16, False),
    ("dps_parts", torch.float64, True),
)


def arguments(
    case: RoICase, *, last: bool = False, dtype: torch.dtype = torch.float32
) -> Arguments:
    drawn = case.arguments(dtype)
    return channels_last(drawn) if last else drawn


def check(
    case: RoICase,
    target: Gpu = HOPPER,
    *,
    last: bool = False,
    dtype: torch.dtype = torch.float32,
    choose: Callable[[], Knobs] = Knobs,
) -> None:
    function = emulated(case.op, target, choose)
    given = arguments(case, last=last, dtype=dtype)
    assert_roi_matches_reference(function, case.reference, given, case.needed)


@pytest.mark.parametrize(("name", "last"), RULES)
def test_every_rule(name: str, last: bool) -> None:
    check(ROI_CASES[name], last=last)


@pytest.mark.parametrize("last", (False, True), ids=("nchw", "nhwc"))
@pytest.mark.parametrize("name", OPS)
def test_every_op_in_both_layouts(name: str, last: bool) -> None:
    check(ROI_CASES[name], last=last)


@pytest.mark.parametrize(("name", "dtype", "last"), TYPES)
def test_every_type(name: str, dtype: torch.dtype, last: bool) -> None:
    check(ROI_CASES[name], last=last, dtype=dtype)


@pytest.mark.parametrize("name", ("align_adaptive", "ps_align_adaptive", "deform_adaptive"))
def test_bins_that_no_list_holds(name: str) -> None:
    check(ROI_CASES[name].sized(2, 70, 90, 14))


@pytest.mark.parametrize(("name", "last"), (("aligned", True), ("dps_parts", False)))
def test_samples_that_no_list_holds(name: str, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcn_tvm.schedules.gpu import roi

    monkeypatch.setitem(roi.LISTS_BYTES, "cuda", 0)
    check(ROI_CASES[name], last=last, choose=lambda: Knobs())  # of its own: built anew


@pytest.mark.parametrize("name", ("max", "ps_align_adaptive", "deform"))
def test_without_atomics(name: str) -> None:
    check(ROI_CASES[name], PLAIN, last=name == "deform")


@pytest.mark.parametrize(
    ("name", "dtype", "last"),
    (("max", torch.float16, True), ("deform", torch.float32, False)),
)
def test_deterministic_gradients_are_the_same_in_every_order(
    name: str, dtype: torch.dtype, last: bool
) -> None:
    case = ROI_CASES[name].sized(1, 6, 7, 14)
    check(case, REPEATABLE, dtype=dtype, last=last)
    given = arguments(case, last=last, dtype=dtype)
    first = given.run(emulated(case.op, REPEATABLE), case.needed)
    for order in ("reverse", "shuffle"):
        with in_order(order, seed=1):
            again = given.run(emulated(case.op, REPEATABLE), case.needed)
        assert all(same_bits(first[key], again[key]) for key in first)


@pytest.mark.parametrize("order", ("reverse", "shuffle"))
@pytest.mark.parametrize("name", OPS)
def test_no_order_of_threads_matters(name: str, order: str) -> None:
    with in_order(order):
        check(ROI_CASES[name].sized(2, 5, 6, 9), last=order == "shuffle")


@pytest.mark.parametrize("seed", (0, 1))
@pytest.mark.parametrize("name", ("max_64", "aligned", "deform_64", "dps_7"))
def test_random_points_compute_the_same(name: str, seed: int) -> None:
    chosen: list[Knobs] = []

    def choose() -> Knobs:
        chosen.append(Knobs(rng=random.Random(f"{name} {seed}")))
        return chosen[-1]

    try:
        check(ROI_CASES[name].sized(2, 5, 6, 9), last=seed == 1, choose=choose)
    except AssertionError as error:
        raise AssertionError(f"{error}; chosen: {[knobs.chosen for knobs in chosen]}") from error


def spoiled(given: Arguments) -> Arguments:
    """Boxes and offsets that are no numbers, or no finite ones, and others that are far away."""
    boxes = given.tensors["boxes"].clone()
    wrong = (float("nan"), float("inf"), -float("inf"), 1e30)
    for number, value in enumerate(wrong):
        boxes[number, 1 + number] = value
    boxes[4, 1:] = 1e30
    changed = {"boxes": boxes}
    if "offset" in given.tensors:
        offset = given.tensors["offset"].clone()
        for number, value in enumerate((*wrong, -1e30)):
            offset[5 + number].flatten()[number] = value
        changed["offset"] = offset
    return given.replaced(**changed)


@pytest.mark.parametrize("last", (False, True), ids=("nchw", "nhwc"))
@pytest.mark.parametrize("name", OPS)
def test_what_is_not_finite(name: str, last: bool) -> None:
    case = ROI_CASES[name]
    given = spoiled(arguments(case, last=last))
    actual = given.run(emulated(case.op), case.needed)
    expected = given.run(case.reference, case.needed)
    for key, result in actual.items():
        torch.testing.assert_close(result, expected[key], rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", OPS)
def test_pixels_and_gradients_that_are_not_finite_stay_where_they_are(name: str) -> None:
    case = ROI_CASES[name]
    given = arguments(case)
    given.tensors["input"][0, 0, 4, 5] = float("nan")
    given.tensors["input"][1, 0, 2, 3] = float("inf")
    actual, expected = (given.run(f, ()) for f in (emulated(case.op), case.reference))
    torch.testing.assert_close(
        actual["output"], expected["output"], rtol=1e-4, atol=1e-4, equal_nan=True
    )


@pytest.mark.parametrize(("batch", "boxes"), ((2, 0), (0, 0)))
@pytest.mark.parametrize("name", OPS)
def test_empty_calls(name: str, batch: int, boxes: int) -> None:
    case = ROI_CASES[name].sized(batch, 5, 6, boxes)
    for key, result in arguments(case).run(emulated(case.op), case.needed).items():
        expected = arguments(case).run(case.reference, case.needed)[key]
        assert result.shape == expected.shape
        assert not result.count_nonzero()


def test_a_kernel_without_boxes_fills_its_output() -> None:
    from dcn_tvm.build import Request
    from tests.emulator.operators import kernel

    problem = RoIAlignProblem("float32", "nchw", 3, (3, 3), 0, False)
    request = Request(problem, "backward", ("grad_input",))
    shapes: tuple[tuple[int, ...], ...] = ((0, 3, 3, 3), (0, 5), (2, 3, 4, 5))
    arrays = [to_array(torch.full(shape, 7.0)) for shape in shapes]
    with emulator.using():
        kernel(request, HOPPER)(*arrays, 1.0)
    filled: Tensor = to_tensor(arrays[-1])
    assert not filled.count_nonzero()
