"""Named suites of problem sizes: plain data for the benchmark, `explain` and the tuner.

A case names the op's own problem fields where the op has them (`in_channels`, `stride` …) and,
beside them, the free sizes of a call (`batch`, `height`, `width` …). A suite belongs to the op of
its name; a new op adds an entry here and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Case:
    """The sizes of one call of an op, and how a table writes them."""

    op: str
    sizes: Mapping[str, Size]
    template: str

    @property
    def label(self) -> str:
        """The case in a few characters."""
        return self.template.format_map(self.sizes)

    def integer(self, name: str) -> int:
        """Return the size `name`, an integer.

        Raises:
            TypeError: the size is a pair.
        """
        size = self.sizes[name]
        if not isinstance(size, int):
            raise TypeError(f"{name} must be an integer, got {size}")
        return size

    def pair(self, name: str) -> tuple[int, int]:
        """Return the size `name` as (vertical, horizontal)."""
        size = self.sizes[name]
        return (size, size) if isinstance(size, int) else size

    def resized(self, **sizes: Size) -> Case:
        """Return the case with other sizes."""
        return replace(self, sizes={**self.sizes, **sizes})


def _deform_conv2d(
    batch: int,
    in_channels: int,
    height: int,
    width: int,
    out_channels: int,
    stride: int,
    dilation: int,
    offset_groups: int,
) -> Case:
    """Return a 3×3 layer that keeps the map's size at stride 1 (padding = dilation)."""
    extras = [("s", stride), ("d", dilation), ("G", offset_groups)]
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
        },
        template="{batch}x{in_channels}x{height}x{width}->{out_channels}"
        + "".join(f" {name}{value}" for name, value in extras if value != 1),
    )


# Layers of the paper's networks: conv5 of ResNet-101 with the released detectors' four offset
# groups (1st), the same stage and earlier ones at detection sizes, a classifier's 56×56 stage, a
# restoration network's many offset groups (6th) and a stride-2 layer (7th).
SUITES: dict[str, tuple[Case, ...]] = {
    "deform_conv2d": (
        _deform_conv2d(1, 512, 38, 63, 512, 1, 2, 4),
        _deform_conv2d(1, 256, 38, 63, 256, 1, 1, 1),
        _deform_conv2d(2, 128, 50, 84, 128, 1, 1, 1),
        _deform_conv2d(2, 512, 25, 42, 512, 1, 1, 1),
        _deform_conv2d(1, 64, 56, 56, 64, 1, 1, 1),
        _deform_conv2d(1, 64, 128, 128, 64, 1, 1, 8),
        _deform_conv2d(1, 256, 50, 84, 256, 2, 1, 1),
    ),
}
