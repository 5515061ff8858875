"""Any point of the RoI schedules' search spaces computes the same, and so do lower levels."""

from collections.abc import Callable
from typing import Any

import pytest

import dcn_tvm
from dcn_tvm import ops
from tests.roi_cases import ROI_CASES, RoICase, channels_last
from tests.roi_oracles import assert_roi_matches_reference

# Of every op those with most channels to cut, and the rules that differ most.
NAMES = (
    *("max_64", "avg", "aligned", "ps", "ps_align_adaptive", "deform_64", "deform_adaptive"),
    *("dps_7", "dps_paper_parts"),
)
POINTS = (0, 1)  # seeds; the odd one runs in channels_last
LOWER = {
    "x86-64-v2": ("max_64", "rfcn", "deform_uneven"),
    "x86-64-v3": ("aligned", "ps_align_adaptive", "dps_7"),
}


def check(case: RoICase, last: bool) -> None:
    arguments = case.sized(2, 5, 6, 9).arguments()
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
    for names in (NAMES, sum(LOWER.values(), ())):
        assert {ROI_CASES[name].op for name in names} == every
