"""The references of the position-sensitive ops against OpenVINO's CPU plugin, forward only."""

import numpy as np
import openvino
import pytest
import torch
from openvino import opset1
from torch import Tensor

from dcn_tvm import reference

SIZE = (9, 11)
POOLED = 3


def run(make: object, *tensors: Tensor) -> Tensor:
    """Compile the node for the CPU, in float32, and run it."""
    parameters = [opset1.parameter(list(tensor.shape), np.float32) for tensor in tensors]
    model = openvino.Model([make(*parameters)], parameters)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", hint)
    return torch.from_numpy(compiled([tensor.numpy() for tensor in tensors])[0].copy())


def drawn_boxes(count: int, spatial_scale: float, step: float = 1.0) -> Tensor:
    """Return boxes inside, across and outside the map, some without or with negative size."""
    limit = torch.tensor([*SIZE[::-1], *SIZE[::-1]]) / spatial_scale
    boxes = torch.zeros(count, 5)
    boxes[:, 0] = torch.arange(count) % 2
    ends = (torch.rand(count, 4) * 2 - 0.5) * limit
    boxes[:, 1:] = (ends / step).floor() * step
    boxes[::7, 3:] = boxes[::7, 1:3]
    ordered = boxes[1::2, 1:].reshape(-1, 2, 2).sort(1).values
    boxes[1::2, 1:] = ordered.reshape(-1, 4)
    return boxes


@pytest.mark.parametrize("spatial_scale", [1.0, 1 / 16])
@pytest.mark.parametrize("step", [1.0, 0.25])
def test_ps_roi_pool_equals_openvino(spatial_scale: float, step: float) -> None:
    data = torch.randn(2, 4 * POOLED**2, *SIZE)
    boxes = drawn_boxes(200, spatial_scale, step)
    # OpenVINO rounds x2 + 1, R-FCN adds 1 to the rounded x2: that differs below 0, at halves.
    halves = (boxes[:, 3:] < 0) & (boxes[:, 3:] % 1 == 0.5)
    actual = reference.ps_roi_pool(data, boxes, POOLED, spatial_scale, convention="rfcn")
    theirs = run(
        lambda x, y: opset1.psroi_pooling(x, y, 4, POOLED, spatial_scale, 1, 1, "average"),
        data,
        boxes,
    )
    same = ~halves.any(1)
    torch.testing.assert_close(actual[same], theirs[same])


@pytest.mark.parametrize("spatial_scale", [1.0, 1 / 16])
@pytest.mark.parametrize(
    ("classes", "parts"), [(None, 3), (1, 3), (2, 3), (4, 3), (1, 1), (2, 2), (4, 5)]
)
def test_deform_ps_roi_pool_equals_openvino(
    classes: int | None, parts: int, spatial_scale: float
) -> None:
    data = torch.randn(2, 4 * POOLED**2, *SIZE)
    boxes = drawn_boxes(200, spatial_scale)
    tensors = [data, boxes]
    if classes is not None:
        tensors.append(torch.randn(200, 2 * classes, parts, parts))
    theirs = run(
        lambda *nodes: opset1.deformable_psroi_pooling(
            nodes[0],
            nodes[1],
            4,
            spatial_scale,
            POOLED,
            "bilinear_deformable",
            4,
            4,
            0.1,
            parts,
            *nodes[2:],
        ),
        *tensors,
    )
    offset = tensors[2] if classes is not None else None
    actual = reference.deform_ps_roi_pool(
        data, boxes, offset, POOLED, spatial_scale, output_dim=4, part_size=parts
    )
    torch.testing.assert_close(actual, theirs)
