"""How far two calls are from one another, as a guess at how well one's choices suit the other.

A distance is a sum of costs, in units of one doubling of a static size. The costs rank neighbours
and say where to give up; they do not foretell a time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from math import log2
from operator import sub
from typing import NamedTuple

from dcn_tvm.problem import Problem
from dcn_tvm.records.checks import field_types

# Channels, kernel size, stride: loops' extents at compile time, so they decide which tiles divide.
_FIELD = 1.0  # per doubling of n + 1: zeros count, and 0 → 1 is a doubling
# A stream of data more or less (bias, mask, offsets), on the same loops.
_FLAG = 0.5
# Other loads, stores and bytes moved; the same arithmetic and, as it accumulates, the same tiles.
_DTYPE = 1.0
# Free variables of one build: any choices are legal; they shift the balance of caches and threads.
_SIZE = 0.5  # per doubling
_THREADS = 0.5  # per doubling
# A size that one of the two does not have: as far as a factor of four.
_MISSING = 1.0
# All of a deformable convolution's channels doubled and an image of four times the pixels is just
# near; a kernel of 5×5 for one of 1×1 is not.
FAR = 3.0


class Point(NamedTuple):
    """A call, ready to be compared.

    Attributes:
        kind: what must be equal: op, kernel, accumulation type and all words but the dtype.
        dtype: of the data.
        names: of the free sizes.
        coordinates: costs from the origin, of threads, sizes, fields and flags.
    """

    kind: tuple[str, ...]
    dtype: str
    names: tuple[str, ...]
    coordinates: tuple[float, ...]


def locate(problem: Problem, kernel: str, sizes: Mapping[str, int], threads: int) -> Point:
    """Return the point of a call of `kernel` with these free sizes, on so many threads."""
    words, numbers, flags = _fields(problem.op)
    names = tuple(sorted(sizes))
    integers: list[int] = []
    for name in numbers:
        value = getattr(problem, name)
        integers.extend(value if isinstance(value, tuple) else (value,))
    return Point(
        kind=(problem.op, kernel, problem.accumulate, *(getattr(problem, n) for n in words)),
        dtype=problem.dtype,
        names=names,
        coordinates=(
            *(_SIZE * log2(max(sizes[name], 1)) for name in names),
            _THREADS * log2(max(threads, 1)),
            *(_FIELD * log2(max(value, 0) + 1) for value in integers),
            *(_FLAG * getattr(problem, name) for name in flags),
        ),
    )


def distance(a: Point, b: Point) -> float | None:
    """Return how far apart two calls are, or None if the choices of one mean nothing to the other.

    Example:
        >>> half = locate(problem, "forward", {"batch": 1, "height": 19, "width": 63}, threads=2)
        >>> whole = locate(problem, "forward", {"batch": 1, "height": 38, "width": 63}, threads=2)
        >>> distance(half, whole)
        0.5
    """
    if a.kind != b.kind:
        return None
    cost: float = 0.0 if a.dtype == b.dtype else _DTYPE
    if a.names == b.names:
        cost += sum(map(abs, map(sub, a.coordinates, b.coordinates)))
        return cost
    one, other = (dict(zip(p.names, p.coordinates, strict=False)) for p in (a, b))
    cost += sum(abs(one[name] - other[name]) for name in one.keys() & other.keys())
    cost += _MISSING * len(one.keys() ^ other.keys())
    rest_a, rest_b = a.coordinates[len(a.names) :], b.coordinates[len(b.names) :]
    cost += sum(map(abs, map(sub, rest_a, rest_b)))
    return cost


@functools.cache
def _fields(op: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of the fields that are words (but the dtype), integers or pairs of them, and flags."""
    types = field_types(op)
    words = tuple(name for name, kind in types.items() if kind is str and name != "dtype")
    flags = tuple(name for name, kind in types.items() if kind is bool)
    numbers = tuple(n for n in types if n != "dtype" and n not in (*words, *flags))
    return words, numbers, flags
