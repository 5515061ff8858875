"""Comparisons: of machines with each other, and of results with older ones.

Times of different machines, or of one machine on different days, differ for reasons that no kernel
has. What is compared with older results is therefore a row's ratio to its baseline contender, which
took its turns in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dcn_tvm.results.file import Results
from dcn_tvm.results.merge import Asked, Key, Place, asked, key, place
from dcn_tvm.results.row import Rejection, Row

TOLERANCE = 0.1  # of a ratio; shared machines repeat theirs within about this
SLOWER, FASTER, SAME, UNRELATED, GONE = "slower", "faster", "same", "no ratio", "gone"


class Change(NamedTuple):
    """What became of a row.

    Attributes:
        old: the row.
        verdict: "slower", "faster" or "same", by the ratios; "no ratio", if one lacks it; "wrong"
            or "failed", if it is not timed any more for that reason; "gone", if for none.
        ratio: the new ratio over the old one, if both have one.
        time: the new median over the old one, if both are of one machine; for information only.
        new: the new row, if there is one.
        reason: why it is wrong or failed.
    """

    old: Row
    verdict: str
    ratio: float | None = None
    time: float | None = None
    new: Row | None = None
    reason: str = ""

    @property
    def regression(self) -> bool:
        """Whether it is ours, and worse than it was, or has lost the ratio that would tell."""
        lost = self.verdict == UNRELATED and self.old.ratio is not None
        return self.old.role == "ours" and (lost or self.verdict in {SLOWER, "wrong", "failed"})

    @property
    def judged(self) -> bool:
        """Whether it is ours, and something can be said of it."""
        return self.old.role == "ours" and self.verdict not in {GONE, UNRELATED}


def changes(
    new: Sequence[Results], old: Sequence[Results], tolerance: float = TOLERANCE
) -> list[Change]:
    """Return what became of every old row, regressions first.

    A row is slower if its ratio grew by more than the tolerance and, with the times between p20 and
    p80 in place of the medians, the best ratio now is still above the worst one then; faster, the
    other way round. It is compared with the row of the same machine, else with that of another.

    Args:
        new: one per machine.
        old: the same.
        tolerance: of a ratio, 0.1 for 10 %.

    Raises:
        ValueError: the tolerance is negative or not finite.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be finite and at least 0, got {tolerance}")
    rows: dict[Key, list[Row]] = {}
    for row in (row for results in new for row in results.rows):
        rows.setdefault(key(row), []).append(row)
    rejections: dict[Asked, dict[Place, Rejection]] = {}
    for results in new:
        here = Place(results.machine.device, results.machine.threads)
        for rejection in results.rejections:
            rejections.setdefault(asked(rejection), {})[here] = rejection
    before = [row for results in old for row in results.rows]
    found = [
        _change(row, rows.get(key(row), []), rejections.get(asked(row), {}), tolerance)
        for row in before
    ]
    return sorted(found, key=lambda change: (not change.regression, -(change.ratio or 0.0)))


def _change(
    old: Row, candidates: Sequence[Row], rejections: dict[Place, Rejection], tolerance: float
) -> Change:
    """Return what became of one row: on its own machine, else on any other."""
    here = place(old)
    rejection = rejections.get(here) or next(iter(rejections.values()), None)
    timed = any(place(row) == here for row in candidates) if here in rejections else candidates
    if rejection is not None and not timed:
        return Change(old, rejection.kind, reason=rejection.reason)
    # Curves over threads differ in nothing else, so another number of threads is another row.
    alike = [row for row in candidates if not old.sweep or row.threads == old.threads]
    if not alike:
        return Change(old, GONE)
    new = min(alike, key=lambda row: (place(row) != place(old), row.threads != old.threads))
    time = new.median_us / old.median_us if place(new) == place(old) else None
    if not new.ratio or not old.ratio:
        return Change(old, UNRELATED, time=time, new=new)
    return Change(old, _verdict(new, old, tolerance), new.ratio / old.ratio, time, new)


def _verdict(new: Row, old: Row, tolerance: float) -> str:
    """Return whether the ratio of a row changed by more than tolerance and noise."""
    (low, ratio, high), (old_low, old_ratio, old_high) = _spread(new), _spread(old)
    if ratio > (1 + tolerance) * old_ratio and low > old_high:
        return SLOWER
    if old_ratio > (1 + tolerance) * ratio and old_low > high:
        return FASTER
    return SAME


def _spread(row: Row) -> tuple[float, float, float]:
    """Return the ratio, between what it were with the times p20 and p80 instead of the median."""
    ratio = row.ratio or 0.0
    low, high = row.p20_us / row.median_us, row.p80_us / row.median_us
    return ratio * low, ratio, ratio * high


def across(rows: Iterable[Row]) -> dict[Key, dict[Place, Row]]:
    """Return the rows of no sweep that were measured in several places, by what they measure.

    Example:
        >>> across([])
        {}
    """
    groups: dict[Key, dict[Place, Row]] = {}
    for row in rows:
        if not row.sweep:
            groups.setdefault(key(row), {})[place(row)] = row
    return {what: places for what, places in groups.items() if len(places) > 1}
