"""Look-up: which records may say how a call's kernel is to be scheduled, in the order to be tried.

The user's folder comes first, then what is shipped; in each the same problem at the same sizes
first, then its neighbours. Files are read once per process.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from dcn_tvm.problem import Problem
from dcn_tvm.records import store
from dcn_tvm.records.nearness import FAR, Point, distance, locate
from dcn_tvm.records.record import Record
from dcn_tvm.records.store import Damage, Line

Source = Literal["user", "shipped"]
_MOST = 4  # candidates: each that is not legal costs a schedule
_SHIPPED = 2  # of these, kept for the shipped ones
_THREADS = 4  # times as many or few: beyond, tiles would leave threads idle, or cut work too small


@dataclass(frozen=True)
class Found:
    """A record that may serve a call.

    Attributes:
        exact: it was measured for the same problem, kernel and sizes, if not the same threads.
        distance: from the call, see `dcn_tvm.records.nearness`.
        target_id: under which it is kept.
        number: its line in the file at `path`.
    """

    record: Record
    source: Source
    exact: bool
    distance: float
    target_id: str
    path: Path
    number: int

    @property
    def provenance(self) -> str:
        """Where the choices come from, for people."""
        sizes = ", ".join(f"{name} {size}" for name, size in self.record.sizes.items())
        how = "exact" if self.exact else f"nearest ({sizes}; distance {self.distance:.2g})"
        if self.exact and self.distance:
            how = f"exact (but on {self.record.threads} threads)"
        found = f"{self.source}: {how}, {self.target_id}/{self.path.name}:{self.number}"
        return found if self.record.choices is not None else f"{found}: the default was the best"


class _Entry(NamedTuple):
    line: Line
    point: Point


def find(
    problem: Problem, kernel: str, sizes: Mapping[str, int], ids: tuple[str, ...], threads: int
) -> tuple[Found, ...]:
    """Return the records to try for a call, in order; the first whose choices are legal is it.

    A record without choices is the last: it says that the default is best, so no other is tried.
    Those made with more than four times as many threads, or fewer than a quarter, are passed over.

    Args:
        problem: the call's.
        kernel: its name.
        sizes: free sizes of the call.
        ids: target ids whose records suit the machine, the most specific first.
        threads: of the call.

    Raises:
        ValueError: an id is not a plain lower-case file name, or `DCN_TVM_HOME` is no folder.

    Example:
        >>> sizes = {"batch": 1, "height": 38, "width": 63}
        >>> [found.provenance for found in find(problem, "forward", sizes, ("x86-64-v4",), 2)]
        ['user: exact, x86-64-v4/deform_conv2d.jsonl:12']
    """
    sizes = dict(sizes)
    here = locate(problem, kernel, sizes, threads)
    user = _nearest("user", store.user_root(), problem, sizes, ids, threads, here)
    shipped = _nearest("shipped", store.shipped_root(), problem, sizes, ids, threads, here)
    candidates = [*user[: _MOST - min(_SHIPPED, len(shipped))], *shipped][:_MOST]
    for count, found in enumerate(candidates, start=1):
        if found.record.choices is None:
            return tuple(candidates[:count])
    return tuple(candidates)


def forget() -> None:
    """Read the files again when they are needed next, as after they were written."""
    _index.cache_clear()


def _nearest(
    source: Source,
    root: Path,
    problem: Problem,
    sizes: Mapping[str, int],
    ids: tuple[str, ...],
    threads: int,
    here: Point,
) -> list[Found]:
    near: list[tuple[bool, float, int]] = []
    entries: list[tuple[str, Line]] = []
    for target_id in ids:
        for line, point in _index(root, target_id, problem.op).get(here.kind, ()):
            if not threads <= _THREADS * line.record.threads <= _THREADS**2 * threads:
                continue
            cost = distance(here, point)
            assert cost is not None  # they are of one kind
            exact = line.record.sizes == sizes and line.record.problem == problem
            if exact or cost <= FAR:
                near.append((not exact, cost, len(entries)))  # of equals, the earlier id wins
                entries.append((target_id, line))
    near.sort()
    return [
        Found(line.record, source, not other, cost, target_id, line.path, line.number)
        for other, cost, place in near[:_MOST]
        for target_id, line in (entries[place],)
    ]


@functools.cache
def _index(root: Path, target_id: str, op: str) -> dict[tuple[str, ...], list[_Entry]]:
    """Return the records of a file by what must be equal to compare; of equals the last counts."""
    path = store.file_of(root, target_id, op)
    lines, damage = store.read(path)
    _warn(damage)
    last: dict[Point, Line] = {}
    for line in lines:
        record = line.record
        last[locate(record.problem, record.kernel, record.sizes, record.threads)] = line
    index: dict[tuple[str, ...], list[_Entry]] = {}
    for point, line in last.items():
        index.setdefault(point.kind, []).append(_Entry(line, point))
    return index


_warned: set[str] = set()


def _warn(damage: list[Damage]) -> None:
    """Name the file and its first line that is not used, once per process."""
    news = [item for item in damage if str(item) not in _warned]
    _warned.update(map(str, news))
    if news:
        more = f" (and {len(news) - 1} more lines of this file)" if len(news) > 1 else ""
        warnings.warn(f"a record is not used: {news[0]}{more}", stacklevel=5)
