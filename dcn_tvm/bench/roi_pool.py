"""Contenders of RoI pooling: the others have the maximum only.

ONNX Runtime's and OpenVINO's bins are those of torchvision, of boxes that are rounded first. mmcv's
are not: it is no peer of this function.
"""

from __future__ import annotations

from typing import Any

from dcn_tvm.bench.contender import Setting
from dcn_tvm.bench.onnx_peer import Node as OnnxNode
from dcn_tvm.bench.onnx_peer import onnx_peer
from dcn_tvm.bench.openvino_peer import Node as OpenVinoNode
from dcn_tvm.bench.openvino_peer import openvino_peer
from dcn_tvm.bench.roi import example_tensors, roi_bench, torchvision_peer
from dcn_tvm.suites import Case

OPSET = 16


def _takes_maximum(case: Case) -> bool:
    return case.text("mode") == "max"


def _onnx(case: Case, setting: Setting) -> OnnxNode:
    attributes = {
        "pooled_shape": list(case.pair("output_size")),
        "spatial_scale": 1 / case.integer("stride"),
    }
    inputs = dict(zip(("X", "rois"), example_tensors(case, setting), strict=True))
    return OnnxNode("MaxRoiPool", OPSET, attributes, inputs)


def _openvino(case: Case, setting: Setting) -> OpenVinoNode:
    from openvino import opset2

    def node(input: Any, boxes: Any) -> Any:
        size, scale = list(case.pair("output_size")), 1 / case.integer("stride")
        return opset2.roi_pooling(input, boxes, size, scale, "max")

    return OpenVinoNode(example_tensors(case, setting), node)


BENCH = roi_bench(
    "roi_pool",
    lambda case: {"mode": case.text("mode")},
    (
        torchvision_peer("roi_pool", serves=_takes_maximum),
        onnx_peer(_onnx, serves=_takes_maximum),
        openvino_peer(_openvino, serves=_takes_maximum),
    ),
)
