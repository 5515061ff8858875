"""Whole networks: the layers in which they call our ops, each once; convolutions have no bias."""

from __future__ import annotations

from dcn_tvm.suites.case import Case
from dcn_tvm.suites.deform_conv2d import layer
from dcn_tvm.suites.roi import SUITES

# Images of 600×1000 pixels. Stage 5 of ResNet-101 at stride 16, with the released code's four
# offset groups; its three layers are the same call (Dai et al. 2017, section 4.1).
RESNET101_DCN = (layer(1, 512, 38, 63, 512, 1, 2, 4, bias=False),)

# Images of 800×1344 pixels. Stages 3 to 5 with modulation, as in Deformable ConvNets v2; the first
# layer of each stage has stride 2.
RESNET101_DCN_V2 = tuple(
    layer(1, channels, height, width, channels, stride, 1, 1, bias=False, modulated=True)
    for channels, height, width, stride in (
        (128, 200, 336, 2),
        (128, 100, 168, 1),
        (256, 100, 168, 2),
        (256, 50, 84, 1),
        (512, 50, 84, 2),
        (512, 25, 42, 1),
    )
)

# R-FCN for PASCAL VOC: stage 5, and the scores of 21 classes pooled with the released grid.
RFCN_DCN = (*RESNET101_DCN, SUITES["deform_ps_roi_pool"][0])

NETWORKS: dict[str, tuple[Case, ...]] = {
    "resnet101-dcn": RESNET101_DCN,
    "resnet101-dcn-v2": RESNET101_DCN_V2,
    "rfcn-dcn": RFCN_DCN,
}
