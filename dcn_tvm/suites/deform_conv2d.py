"""Layers of networks with deformable convolutions."""

from __future__ import annotations

from dcn_tvm.suites.case import Case, Size


def layer(
    batch: int,
    in_channels: int,
    height: int,
    width: int,
    out_channels: int,
    stride: int,
    dilation: int,
    offset_groups: int,
    **options: Size,
) -> Case:
    """Return a 3×3 layer that keeps the map's size at stride 1 (padding = dilation).

    Options are other fields of the problem: `bias`, `modulated`.
    """
    extras = [("s", stride), ("d", dilation), ("G", offset_groups)]
    words = "".join(f" {name}" for name in ("modulated",) if options.get(name))
    return Case(
        op="deform_conv2d",
        sizes={
            "batch": batch,
            "in_channels": in_channels,
            "height": height,
            "width": width,
            "out_channels": out_channels,
            "kernel_size": (3, 3),
            "stride": (stride, stride),
            "padding": (dilation, dilation),
            "dilation": (dilation, dilation),
            "offset_groups": offset_groups,
            "bias": True,
            **options,
        },
        template="{batch}x{in_channels}x{height}x{width}->{out_channels}"
        + "".join(f" {name}{value}" for name, value in extras if value != 1)
        + words,
    )


# Layers of the paper's networks: conv5 of ResNet-101 with the released detectors' four offset
# groups (1st), the same stage and earlier ones at detection sizes, a classifier's 56×56 stage, a
# restoration network's many offset groups (6th) and a stride-2 layer (7th).
CASES = (
    layer(1, 512, 38, 63, 512, 1, 2, 4),
    layer(1, 256, 38, 63, 256, 1, 1, 1),
    layer(2, 128, 50, 84, 128, 1, 1, 1),
    layer(2, 512, 25, 42, 512, 1, 1, 1),
    layer(1, 64, 56, 56, 64, 1, 1, 1),
    layer(1, 64, 128, 128, 64, 1, 1, 8),
    layer(1, 256, 50, 84, 256, 2, 1, 1),
)
