"""Contenders of deformable position-sensitive RoI pooling: OpenVINO has the released grid."""

from __future__ import annotations

from typing import Any

from dcn_tvm.bench.roi import openvino_peer, problem_of, roi_bench
from dcn_tvm.suites import Case

GAMMA = 0.1


def _options(case: Case) -> dict[str, Any]:
    return {
        "group_size": case.pair("group_size")[0],
        "part_size": case.pair("part_size")[0],
        "sample_per_part": case.integer("sample_per_part"),
        "gamma": GAMMA,
        "sampling": case.text("sampling"),
    }


def _node(case: Case, input: Any, boxes: Any, offset: Any) -> Any:
    from openvino import opset1

    samples = case.integer("sample_per_part")
    return opset1.deformable_psroi_pooling(
        input,
        boxes,
        problem_of(case).output_channels,
        1 / case.integer("stride"),
        case.pair("group_size")[0],
        "bilinear_deformable",
        samples,
        samples,
        GAMMA,
        case.pair("part_size")[0],
        offset,
    )


BENCH = roi_bench(
    "deform_ps_roi_pool",
    _options,
    # It has one size for groups and bins.
    (
        openvino_peer(
            _node,
            lambda case: (
                case.text("sampling") == "grid"
                and case.pair("group_size") == case.pair("output_size")
            ),
        ),
    ),
)
