"""The bilinear rule, its slopes and the boundary conventions: the one place that knows them.

Bilinear sampling (paper, eq. 3-4) is a product over the two axes of the hat max(0, 1 - |q - p|), so
a position has two neighbours on each axis (side 0 and 1), each with an index, a weight and the
weight's slope d/dp. Four corners are the products of two sides.

Comparisons are written so that NaN fails them: a NaN position keeps NaN weights and slopes, while
+-inf is simply outside. The kink at an integer position has the slope of the cell above it.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

Expr = Any  # tvm's expression nodes carry no static types

BOUNDARIES = ("zeros", "msra")


def index(position: Expr, size: Expr, side: Expr) -> Expr:
    """Neighbour's index as int32, clamped into [0, size): safe to read whatever the position."""
    dtype = _dtype(position)
    bounded = te.min(te.floor(position), size.astype(dtype))
    # min came first: in TVM min(NaN, b) = b, so only small finite numbers are converted.
    cell = te.max(bounded, tirx.const(-2.0, dtype)).astype("int32")
    limit = (size - 1).astype("int32")
    return te.max(te.min(cell + side, limit), tirx.const(0, "int32"))


def weight(position: Expr, size: Expr, side: Expr, boundary: str) -> Expr:
    """Neighbour's share of the value: 1 - fraction at side 0, fraction at side 1, 0 if missing."""
    dtype = _dtype(position)
    fraction = position - te.floor(position)
    sign = (2 * side - 1).astype(dtype)
    share = (1 - side).astype(dtype) + sign * fraction
    return tirx.Select(_missing(position, size, side, boundary), tirx.const(0.0, dtype), share)


def slope(position: Expr, size: Expr, side: Expr, boundary: str) -> Expr:
    """d(weight)/d(position): -1 at side 0, +1 at side 1, 0 if missing, NaN at a NaN position."""
    dtype = _dtype(position)
    zero, sign = tirx.const(0.0, dtype), (2 * side - 1).astype(dtype)
    # NaN is neither missing nor anywhere (isnan would keep this from becoming vector code)
    somewhere = tirx.any(position < zero, position < size.astype(dtype))
    return tirx.Select(
        _missing(position, size, side, boundary), zero, tirx.Select(somewhere, sign, position)
    )


def outside(position: Expr, size: Expr, boundary: str, *, slopes: bool = False) -> Expr:
    """Whether nothing of the map is within reach of `position`: value 0, with `slopes` also those.

    They differ at -1 exactly, where the value is 0 and the slope is that of the cell above it.
    """
    dtype = _dtype(position)
    before = position < tirx.const(0.0, dtype)
    if boundary == "zeros":
        first = tirx.const(-1.0, dtype)
        before = position < first if slopes else position <= first
    return tirx.any(before, position >= size.astype(dtype))


def skipped(
    y: Expr, x: Expr, height: Expr, width: Expr, boundary: str, *, slopes: bool = False
) -> Expr:
    """Whether a sample is 0 without reading anything; never so if a coordinate is NaN."""
    beyond = tirx.any(
        outside(y, height, boundary, slopes=slopes), outside(x, width, boundary, slopes=slopes)
    )
    return tirx.all(beyond, tirx.Not(tirx.any(tirx.isnan(y), tirx.isnan(x))))


def _missing(position: Expr, size: Expr, side: Expr, boundary: str) -> Expr:
    """Whether a neighbour does not count: `msra` clamps the one beyond the last point instead."""
    if boundary == "msra":
        return outside(position, size, boundary)
    dtype = _dtype(position)
    point = te.floor(position) + side.astype(dtype)
    return tirx.any(point < tirx.const(0.0, dtype), point > (size - 1).astype(dtype))


def _dtype(value: Expr) -> str:
    return str(value.ty.dtype)
