"""Any point of the RoI schedules' search spaces computes the same, and so do lower levels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import dcn_tvm
from dcn_tvm import ops
from tests.roi_cases import ROI_CASES, RoICase, channels_last
from tests.roi_oracles import assert_roi_matches_reference
from tests.test_schedules import MACHINE, schedule_at

# Of every op those with most channels to cut, and the rules that differ most.
NAMES = (
    *("max_64", "avg", "aligned", "ps", "ps_align_adaptive", "deform_64", "deform_adaptive"),
    *("dps_7", "dps_paper_parts"),
)
POINTS = (0, 1)  # seeds; the odd one runs in channels_last
# Classes of some vectors and a half, which blocks of two do not fill: the default never takes them.
# Every op meets three types and both layouts (nhwc: True).
DEPTH = 40
GROUPS = {"max_64": 1, "align_64": 1, "ps_7": 49, "ps_align": 49, "deform_64": 1, "dps_7": 49}
_TYPES = (torch.float64, torch.float16, torch.bfloat16, torch.float32)
PLACES = tuple(
    (name, place, _TYPES[(number + turn) % len(_TYPES)], (number + turn) % 2 == 1)
    for number, name in enumerate(GROUPS)
    for turn, place in enumerate(("first", "second", "last"))
)
LOWER = {
    "x86-64-v2": ("max_64", "rfcn", "deform_uneven"),
    "x86-64-v3": ("aligned", "ps_align_adaptive", "dps_7"),
}


def check(case: RoICase, last: bool, dtype: torch.dtype = torch.float32) -> None:
    arguments = case.sized(2, 5, 6, 9).arguments(dtype)
    assert_roi_matches_reference(
        getattr(dcn_tvm, case.op),
        case.reference,
        channels_last(arguments) if last else arguments,
        case.needed,
    )


@pytest.mark.parametrize("seed", POINTS)
@pytest.mark.parametrize("name", NAMES)
def test_random_points_compute_the_same(
    name: str, seed: int, random_point: Callable[..., Any]
) -> None:
    case = ROI_CASES[name]
    with random_point(f"{name} {seed}") as chosen:
        check(case, last=seed % 2 == 1)
    assert set(chosen) == set(ops.registry()[case.op].kernels())


@pytest.mark.parametrize(("name", "place", "dtype", "last"), PLACES)
def test_blocks_of_all_sizes_compute_the_same(
    name: str, place: str, dtype: torch.dtype, last: bool, scheduled_by: Callable[..., None]
) -> None:
    met: set[str] = set()
    scheduled_by(schedule_at(place, met), MACHINE)
    case = replace(ROI_CASES[name], channels=DEPTH * GROUPS[name])
    check(case, last, dtype)
    assert met == set(ops.registry()[case.op].kernels())


@pytest.mark.parametrize(
    ("level", "name"), [(level, name) for level, names in LOWER.items() for name in names]
)
def test_levels_below_the_machines_compute_the_same(
    level: str, name: str, at_level: Callable[[str], None]
) -> None:
    at_level(level)
    check(ROI_CASES[name], last=level == "x86-64-v2")


def test_every_op_is_here() -> None:
    every = {case.op for case in ROI_CASES.values()}
    for names in (NAMES, GROUPS, sum(LOWER.values(), ())):
        assert {ROI_CASES[name].op for name in names} == every
