"""Geometric means over the problems of rows of one op and mode."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dcn_tvm.results.row import Row


@dataclass(frozen=True)
class Mean:
    """A geometric mean over the problems that two variants share, and the least favourable one."""

    variant: str
    against: str
    mean: float
    worst: float
    worst_problem: str
    problems: int


def variants(rows: Iterable[Row]) -> list[str]:
    """Return the variants in the order of their first row."""
    return list(dict.fromkeys(row.variant for row in rows))


def mean_ratio(rows: Iterable[Row], variant: str) -> float | None:
    """Return the geometric mean of a variant's ratios to the baseline."""
    ratios = [row.ratio for row in rows if row.variant == variant and row.ratio]
    return statistics.geometric_mean(ratios) if ratios else None


def speedups(rows: Sequence[Row]) -> list[Mean]:
    """Return how many times faster each of our variants is than each peer, by the medians.

    The rows must be of one mode. Peers are compared in their own dtype, in all memory formats, and
    a mean is over the problems that the peer can do.
    """
    found = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        own = [row for row in rows if row.dtype == dtype]
        ours = variants(row for row in own if row.role == "ours")
        peers = variants(row for row in own if row.role == "peer")
        found += [_speedup(own, variant, peer) for variant in ours for peer in peers]
    return [mean for mean in found if mean is not None]


def half_speedups(rows: Sequence[Row]) -> list[Mean]:
    """Return how many times faster our bfloat16 is than our float32; rows of one mode."""
    halves = variants(row for row in rows if row.role == "ours" and row.dtype == "bfloat16")
    means = (_speedup(rows, half, half.replace(" bf16", "")) for half in halves)
    return [mean for mean in means if mean is not None]


def _speedup(rows: Sequence[Row], variant: str, against: str) -> Mean | None:
    """Return the mean over the problems of both, None if they share none."""
    times = {(row.variant, row.problem): row.median_us for row in rows}
    problems = [p for v, p in times if v == variant and (against, p) in times]
    ratios = {p: times[against, p] / times[variant, p] for p in problems}
    if not ratios:
        return None
    worst = min(ratios, key=lambda problem: ratios[problem])
    mean = statistics.geometric_mean(ratios.values())
    return Mean(variant, against, mean, ratios[worst], worst, len(ratios))
