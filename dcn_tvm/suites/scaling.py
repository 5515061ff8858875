"""Scaling curves: for each op one problem, and the sizes that change about it, one at a time.

The keys of an op are what changes: "pixels" (height × width, of the same shape), "channels",
"batch", "boxes", and "threads", whose only point is run with 1, 2, 4 ... threads. Boxes stay where
they are on the image when its map gets finer, so they then cover more of the map's pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dcn_tvm.suites.case import Case
from dcn_tvm.suites.deform_conv2d import layer
from dcn_tvm.suites.roi import BINS, SUITES

Sweeps = dict[str, tuple[Case, ...]]

_BATCHES = (1, 2, 4, 8)
_BOXES = (75, 150, 300, 600, 1200, 2400)
_FINER = (1, 2, 4)  # times the pixels along each side


def _layer(batch: int = 1, channels: int = 128, height: int = 38, width: int = 63) -> Case:
    return layer(batch, channels, height, width, channels, 1, 1, 1)


def _convolution() -> Sweeps:
    sides = ((19, 32), (38, 63), (57, 95), (76, 126))
    return {
        "pixels": tuple(_layer(height=h, width=w) for h, w in sides),
        "channels": tuple(_layer(channels=c) for c in (32, 64, 128, 256, 512)),
        "batch": tuple(_layer(batch=n) for n in _BATCHES),
        "threads": (_layer(),),
    }


def _pooling(base: Case, channels: Iterable[int]) -> Sweeps:
    """Return the curves around a call; on a finer map the stride is less."""
    height, width, stride = (base.integer(name) for name in ("height", "width", "stride"))
    return {
        "pixels": tuple(
            base.resized(height=height * f, width=width * f, stride=stride // f) for f in _FINER
        ),
        "channels": tuple(base.resized(channels=c) for c in channels),
        "batch": tuple(base.resized(batch=n) for n in _BATCHES),
        "boxes": tuple(base.resized(boxes=k) for k in _BOXES),
        "threads": (base,),
    }


def _channels(base: Case) -> Sequence[int]:
    """Return numbers of channels; position-sensitive maps have whole multiples of the bins."""
    if base.integer("channels") % BINS**2 == 0:
        return [classes * BINS**2 for classes in (5, 10, 21, 42, 84)]
    return [64, 128, 256, 512, 1024]


SCALING: dict[str, Sweeps] = {
    "deform_conv2d": _convolution(),
    **{op: _pooling(cases[0], _channels(cases[0])) for op, cases in SUITES.items()},
}
