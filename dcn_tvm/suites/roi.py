"""Heads of detectors: what R-FCN, Faster R-CNN and a feature pyramid ask of the RoI ops.

Maps belong to an image of about 600×1000 pixels (the pyramid's to 800×1344), of which `stride`
pixels make one of the map: the op's `spatial_scale` is 1 / stride.
"""

from __future__ import annotations

from typing import NamedTuple

from dcn_tvm.suites.case import Case, Size

BINS = 7


class _Head(NamedTuple):
    """The free sizes of a call, and its channels."""

    channels: int
    height: int
    width: int
    boxes: int
    stride: int


# Position-sensitive maps of 21 classes (PASCAL VOC) and of 81 (COCO).
_RFCN = tuple(_Head(classes * BINS**2, 38, 63, 300, 16) for classes in (21, 81))
_FASTER = tuple(_Head(c, 38, 63, boxes, 16) for c in (256, 1024) for boxes in (300, 2000))
_PYRAMID = _Head(256, 200, 336, 512, 4)
_ALL = (*_FASTER, _PYRAMID)
_SOME = (_FASTER[0], _PYRAMID)


def _case(op: str, head: _Head, variant: str = "", **options: Size) -> Case:
    """Return a call with BINS×BINS bins; `variant` is what the table says of the options."""
    sizes = {"batch": 1, **head._asdict(), "output_size": (BINS, BINS), **options}
    template = "{batch}x{channels}x{height}x{width} {boxes} boxes"
    return Case(op, sizes, template + (f" {variant}" if variant else ""))


def _roi_align(head: _Head, ratio: int) -> Case:
    variant = f"{ratio}x{ratio}" if ratio else "adaptive"
    return _case("roi_align", head, variant, sampling_ratio=ratio, aligned=False)


def _deform_roi_pool(head: _Head, ratio: int | None) -> Case:
    """Return a call with the bins of eq. 6, or with mmcv's grid of samples."""
    if ratio is None:
        return _case("deform_roi_pool", head, "paper", sampling="paper", sampling_ratio=0)
    variant = f"{ratio}x{ratio}"
    return _case("deform_roi_pool", head, variant, sampling="grid", sampling_ratio=ratio)


def _deform_ps_roi_pool(head: _Head, classes: int = 1, samples: int | None = 4) -> Case:
    """Return a call with the released code's grid of samples, or with the bins of eq. 6."""
    variant = "paper" if samples is None else f"{samples}x{samples}"
    return _case(
        "deform_ps_roi_pool",
        head,
        variant + (f" {classes} classes" if classes > 1 else ""),
        group_size=(BINS, BINS),
        part_size=(BINS, BINS),
        offset_classes=classes,
        sample_per_part=samples or 1,
        sampling="paper" if samples is None else "grid",
    )


SUITES: dict[str, tuple[Case, ...]] = {
    "roi_pool": (
        *(_case("roi_pool", head, "max", mode="max") for head in _ALL),
        _case("roi_pool", _FASTER[0], "avg", mode="avg"),
    ),
    "roi_align": (
        *(_roi_align(head, 2) for head in _ALL),
        *(_roi_align(head, 0) for head in _SOME),
    ),
    "ps_roi_pool": tuple(
        _case("ps_roi_pool", head, f"{convention} bins", convention=convention)
        for convention in ("torchvision", "rfcn")
        for head in _RFCN
    ),
    "ps_roi_align": tuple(_case("ps_roi_align", head, "2x2", sampling_ratio=2) for head in _RFCN),
    "deform_roi_pool": (
        *(_deform_roi_pool(head, None) for head in _ALL),
        *(_deform_roi_pool(head, 2) for head in _SOME),
    ),
    "deform_ps_roi_pool": (
        *(_deform_ps_roi_pool(head) for head in _RFCN),
        _deform_ps_roi_pool(_RFCN[0], classes=21),
        _deform_ps_roi_pool(_RFCN[0], samples=None),
    ),
}
