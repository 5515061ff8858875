"""Contenders of RoI align.

ONNX Runtime and OpenVINO take the corners and the images of the boxes apart: they are parted before
the call. OpenVINO's `half_pixel_for_nn` is torchvision's `aligned`; its `half_pixel` is another.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dcn_tvm.bench import mmcv_peer, onnx_peer, openvino_peer
from dcn_tvm.bench.contender import Call, Setting, example_of
from dcn_tvm.bench.roi import MODES, roi_bench, torch_call, torchvision_peer
from dcn_tvm.suites import Case

OPSET = 16  # the first with a mode of coordinates


def _options(case: Case) -> dict[str, Any]:
    ratio, aligned = case.integer("sampling_ratio"), bool(case.integer("aligned"))
    return {"sampling_ratio": ratio, "aligned": aligned}


def _parted(case: Case, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Return the map, the corners `[K, 4]` and the images `[K]`."""
    input, boxes = example_of(case, setting).tensors
    assert input is not None
    assert boxes is not None
    return input, boxes[:, 1:].contiguous(), boxes[:, 0].long()


def _onnx(case: Case, setting: Setting) -> onnx_peer.Node:
    height, width = case.pair("output_size")
    attributes = {
        "mode": "avg",
        "output_height": height,
        "output_width": width,
        "sampling_ratio": case.integer("sampling_ratio"),
        "spatial_scale": 1 / case.integer("stride"),
        "coordinate_transformation_mode": (
            "half_pixel" if case.integer("aligned") else "output_half_pixel"
        ),
    }
    inputs = dict(zip(("X", "rois", "batch_indices"), _parted(case, setting), strict=True))
    return onnx_peer.Node("RoiAlign", OPSET, attributes, inputs)


def _openvino(case: Case, setting: Setting) -> openvino_peer.Node:
    from openvino import opset9

    def node(input: Any, corners: Any, images: Any) -> Any:
        return opset9.roi_align(
            input,
            corners,
            images,
            *case.pair("output_size"),
            case.integer("sampling_ratio"),
            1 / case.integer("stride"),
            "avg",
            "half_pixel_for_nn" if case.integer("aligned") else "asymmetric",
        )

    return openvino_peer.Node(_parted(case, setting), node)


def _mmcv(case: Case, setting: Setting) -> Call:
    return torch_call(mmcv_peer.roi_align, _options(case), case, setting)


BENCH = roi_bench(
    "roi_align",
    _options,
    (
        torchvision_peer("roi_align", _options),
        onnx_peer.onnx_peer(_onnx, ("float32", "float64")),
        openvino_peer.openvino_peer(_openvino),
        mmcv_peer.mmcv_peer(_mmcv, MODES, ("float32", "float64")),
    ),
)
