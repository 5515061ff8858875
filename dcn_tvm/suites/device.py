"""What is asked of a device beside the suites: larger batches, and problems that no network has."""

from __future__ import annotations

from dcn_tvm.suites import deform_conv2d, roi
from dcn_tvm.suites.case import Case

BATCHES = (16, 32)  # a layer for one image leaves most of a large device idle

LARGE: dict[str, tuple[Case, ...]] = {
    "deform_conv2d": (
        *(case.resized(batch=batch) for batch in BATCHES for case in deform_conv2d.CASES),
        *deform_conv2d.CASES,
    ),
    **roi.SUITES,
}


def _layer(words: str, channels: tuple[int, int], **options: int | str | tuple[int, int]) -> Case:
    """Return a layer for three images; `words` are what a table says of it."""
    sizes = {
        "batch": 3,
        "in_channels": channels[0],
        "height": 19,
        "width": 23,
        "out_channels": channels[1],
        "kernel_size": (3, 3),
        "padding": (1, 1),
        **options,
    }
    return Case("deform_conv2d", sizes, f"{channels[0]}->{channels[1]} {words}")


def _pool(op: str, channels: int, words: str, **options: int | str | tuple[int, int]) -> Case:
    """Return boxes on two maps; `words` are what a table says of it."""
    sizes = {
        "batch": 2,
        "channels": channels,
        "height": 25,
        "width": 31,
        "boxes": 37,
        "stride": 8,
        "output_size": (5, 7),
        **options,
    }
    return Case(op, sizes, f"{channels} {words}")


# Channels that fill no tile, windows and bins that are not square, groups of every kind.
ODD: dict[str, tuple[Case, ...]] = {
    "deform_conv2d": (
        _layer("modulated", (8, 6), offset_groups=2, modulated=True, bias=True),
        _layer("msra 3x2", (30, 20), kernel_size=(3, 2), stride=(2, 1), boundary="msra"),
        _layer("groups", (12, 18), groups=3, offset_groups=4, dilation=(1, 2), modulated=True),
        _layer("depthwise", (6, 6), groups=6, offset_groups=3, bias=True),
    ),
    "roi_pool": (
        _pool("roi_pool", 13, "max", mode="max"),
        _pool("roi_pool", 13, "avg", mode="avg"),
    ),
    "roi_align": (
        _pool("roi_align", 13, "adaptive, aligned", sampling_ratio=0, aligned=True),
        _pool("roi_align", 13, "3x3", sampling_ratio=3, aligned=False),
    ),
    "ps_roi_pool": (
        _pool("ps_roi_pool", 70, "torchvision", convention="torchvision"),
        _pool("ps_roi_pool", 70, "rfcn", convention="rfcn"),
    ),
    "ps_roi_align": (_pool("ps_roi_align", 70, "adaptive", sampling_ratio=0),),
    "deform_roi_pool": (
        _pool("deform_roi_pool", 13, "paper", sampling="paper", sampling_ratio=0),
        _pool("deform_roi_pool", 13, "2x2", sampling="grid", sampling_ratio=2),
    ),
    "deform_ps_roi_pool": (
        _pool(
            *("deform_ps_roi_pool", 126, "classes"),
            output_size=(6, 6),
            group_size=(3, 3),
            part_size=(2, 2),
            offset_classes=7,
            sample_per_part=3,
            sampling="grid",
        ),
        _pool(
            *("deform_ps_roi_pool", 70, "paper"),
            group_size=(5, 7),
            part_size=(5, 7),
            offset_classes=1,
            sample_per_part=1,
            sampling="paper",
        ),
    ),
}
