"""Many files as one picture: each machine once, each of its rows once, the later one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dcn_tvm.results.ceilings import Ceiling
from dcn_tvm.results.file import Results
from dcn_tvm.results.row import Finding, Rejection, Row


class Asked(NamedTuple):
    """What was asked of whom: the part of a key that rows and rejections share."""

    op: str
    problem: str
    provider: str
    mode: str
    dtype: str
    memory_format: str


class Key(NamedTuple):
    """What a row measures, wherever it was measured."""

    asked: Asked
    cache: str
    sweep: str


class Place(NamedTuple):
    """Where a row was measured, as far as times depend on it."""

    device: str
    threads: int

    def __str__(self) -> str:
        return f"{self.device}, {self.threads} thread{'s' * (self.threads != 1)}"


def asked(part: Row | Rejection) -> Asked:
    """Return what was asked of whom."""
    return Asked(*(getattr(part, name) for name in Asked._fields))


def key(row: Row) -> Key:
    """Return what a row measures."""
    return Key(asked(row), row.cache, row.sweep)


def place(row: Row) -> Place:
    """Return where a row was measured."""
    return Place(row.device, row.threads)


def latest(results: Results) -> str:
    """Return the date of the last row or ceiling, "" if there is none."""
    dates = [row.date for row in results.rows] + [c.date for c in results.ceilings]
    return max(dates, default="")


def merge(files: Sequence[Results]) -> list[Results]:
    """Return one `Results` per machine, in the order of their first files.

    Of rows that measure the same on the same machine the later one stays. What a later file calls
    wrong or failed is a row no longer, and what it has timed is no longer called so.

    Args:
        files: of any machines; a machine is a processor and its number of threads.

    Example:
        >>> from dcn_tvm.report import Machine
        >>> one, other = Machine("CPU", 2, {"torch": "2.6"}), Machine("CPU", 8, {})
        >>> merged = merge([Results(one), Results(other), Results(one)])
        >>> [results.machine.threads for results in merged]
        [2, 8]
    """
    machines: dict[Place, list[Results]] = {}
    for results in files:
        here = Place(results.machine.device, results.machine.threads)
        machines.setdefault(here, []).append(results)
    return [_merged(sorted(group, key=latest)) for group in machines.values()]


def _merged(files: Sequence[Results]) -> Results:
    """Merge files of one machine, the oldest first."""
    rows: dict[tuple[Key, Place], Row] = {}
    rejections: dict[Asked, Rejection] = {}
    ceilings: dict[tuple[str, str, int, int], Ceiling] = {}
    findings: dict[tuple[str, str, str], Finding] = {}
    for results in files:
        timed = {asked(row) for row in results.rows}
        rejected = {asked(rejection): rejection for rejection in results.rejections}
        rejections = {k: v for k, v in rejections.items() if k not in timed} | rejected
        rows = {k: v for k, v in rows.items() if k[0].asked not in rejected}
        for row in sorted(results.rows, key=lambda row: row.date):
            rows[key(row), place(row)] = row
        ceilings |= {(c.kind, c.dtype, c.threads, c.size): c for c in results.ceilings}
        findings |= {(f.what, f.provider, f.problem): f for f in results.findings}
    last = files[-1]
    return Results(
        last.machine,
        tuple(rows.values()),
        tuple(rejections.values()),
        tuple(ceilings.values()),
        tuple(findings.values()),
        last.absent,
    )
