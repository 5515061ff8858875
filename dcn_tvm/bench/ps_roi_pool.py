"""Contenders of position-sensitive RoI pooling: each convention has a peer of its own."""

from __future__ import annotations

from typing import Any

from dcn_tvm.bench.roi import openvino_peer, problem_of, roi_bench, torchvision_peer
from dcn_tvm.suites import Case


def _node(case: Case, input: Any, boxes: Any) -> Any:
    from openvino import opset1

    bins, scale = case.pair("output_size")[0], 1 / case.integer("stride")
    dim = problem_of(case).output_channels
    return opset1.psroi_pooling(input, boxes, dim, bins, scale, 1, 1, "average")


BENCH = roi_bench(
    "ps_roi_pool",
    lambda case: {"convention": case.text("convention")},
    (
        torchvision_peer("ps_roi_pool", serves=lambda c: c.text("convention") == "torchvision"),
        openvino_peer(_node, serves=lambda c: c.text("convention") == "rfcn"),
    ),
)
