"""Layers: deformable convolution and RoI pooling, with given offsets or with their own."""

from dcn_tvm.nn.conv import DeformConv2d, DeformConv2dPack
from dcn_tvm.nn.conversion import convert
from dcn_tvm.nn.deform_ps_roi import DeformPSRoIPool, DeformPSRoIPoolPack
from dcn_tvm.nn.deform_roi import DeformRoIPool, DeformRoIPoolPack
from dcn_tvm.nn.parameters import parameter_groups
from dcn_tvm.nn.roi import PSRoIAlign, PSRoIPool, RoIAlign, RoIPool

__all__ = [
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformPSRoIPool",
    "DeformPSRoIPoolPack",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "PSRoIAlign",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "convert",
    "parameter_groups",
]
