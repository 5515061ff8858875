"""Contenders of deformable position-sensitive RoI pooling: OpenVINO has the released grid."""

from __future__ import annotations

from typing import Any

from dcn_tvm.bench.contender import Setting
from dcn_tvm.bench.openvino_peer import Node, openvino_peer
from dcn_tvm.bench.roi import example_tensors, problem_of, roi_bench
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


def _openvino(case: Case, setting: Setting) -> Node:
    from openvino import opset1

    def node(input: Any, boxes: Any, offset: Any) -> Any:
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

    return Node(example_tensors(case, setting), node)


def _has_released_grid(case: Case) -> bool:
    """Return whether OpenVINO can do it: it has one size for groups and bins."""
    return case.text("sampling") == "grid" and case.pair("group_size") == case.pair("output_size")


BENCH = roi_bench(
    "deform_ps_roi_pool", _options, (openvino_peer(_openvino, serves=_has_released_grid),)
)
