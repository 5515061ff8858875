"""Contenders of position-sensitive RoI pooling: each convention has a peer of its own."""

from __future__ import annotations

from typing import Any

from dcn_tvm.bench.contender import Setting
from dcn_tvm.bench.openvino_peer import Node, openvino_peer
from dcn_tvm.bench.roi import example_tensors, problem_of, roi_bench, torchvision_peer
from dcn_tvm.suites import Case


def _openvino(case: Case, setting: Setting) -> Node:
    from openvino import opset1

    def node(input: Any, boxes: Any) -> Any:
        bins, scale = case.pair("output_size")[0], 1 / case.integer("stride")
        dim = problem_of(case).output_channels
        return opset1.psroi_pooling(input, boxes, dim, bins, scale, 1, 1, "average")

    return Node(example_tensors(case, setting), node)


BENCH = roi_bench(
    "ps_roi_pool",
    lambda case: {"convention": case.text("convention")},
    (
        torchvision_peer("ps_roi_pool", serves=lambda c: c.text("convention") == "torchvision"),
        openvino_peer(_openvino, serves=lambda c: c.text("convention") == "rfcn"),
    ),
)
