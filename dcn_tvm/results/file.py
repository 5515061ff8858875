"""Files of results: JSON, a row per line, with what all rows share written once.

`{"schema": 1, "machine": {...}, "common": {...}, "rows": [...], "ceilings": [...], ...}`; a row is
its own fields and those of `common`. Versions and dates are most of a row, so files stay small
enough to be kept under version control, and a changed row is a changed line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dcn_tvm.report import Machine
from dcn_tvm.results.ceilings import Ceiling, Ceilings
from dcn_tvm.results.row import Finding, Rejection, Row

SCHEMA = 1
DIGITS = 5  # of what was measured; the last of them is noise on any machine

_Part = TypeVar("_Part")


class Results(NamedTuple):
    """All that one benchmark found.

    Attributes:
        machine: where.
        rows: what was timed.
        rejections: what was wrong or refused.
        ceilings: what the machine can do at most.
        findings: what happens once per process.
        absent: providers that are not installed → why, and how to get them.
    """

    machine: Machine
    rows: Sequence[Row] = ()
    rejections: Sequence[Rejection] = ()
    ceilings: Sequence[Ceiling] = ()
    findings: Sequence[Finding] = ()
    absent: Mapping[str, str] = {}

    @property
    def limits(self) -> Ceilings:
        """The ceilings, to ask for floors."""
        return Ceilings(self.ceilings)

    def modes(self) -> dict[str, list[Row]]:
        """Return the rows of no scaling curve by op and mode."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if not row.sweep:
                groups.setdefault(f"{row.op}, {row.mode}", []).append(row)
        return groups


def write(results: Results, path: Path) -> None:
    """Write results to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(results), encoding="utf-8")


def to_json(results: Results) -> str:
    """Return results as JSON."""
    rows = [_plain(row) for row in results.rows]
    common = _common(rows)
    own = [{k: v for k, v in row.items() if k not in common} for row in rows]
    parts = {
        "schema": SCHEMA,
        "machine": dataclasses.asdict(results.machine),
        "common": common,
        "rows": own,
        "rejections": [_plain(x) for x in results.rejections],
        "ceilings": [_plain(x) for x in results.ceilings],
        "findings": [_plain(x) for x in results.findings],
        "absent": dict(results.absent),
    }
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {_dump(v)}" for k, v in parts.items()) + "\n}\n"


def read(path: Path) -> Results:
    """Return the results that a file holds.

    Raises:
        ValueError: it is no such file, or one of another schema.
        OSError: it cannot be read.
    """
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no file of results: {error}") from error
    if not isinstance(parts, dict) or "rows" not in parts:
        raise ValueError(f"{path} is no file of results: it has no rows")
    if parts.get("schema") != SCHEMA:
        raise ValueError(f"{path} must have schema {SCHEMA}, got {parts.get('schema')}")
    try:
        common = parts["common"]
        return Results(
            Machine(**parts["machine"]),
            tuple(_made(Row, {**common, **row}) for row in parts["rows"]),
            tuple(_made(Rejection, x) for x in parts["rejections"]),
            tuple(_made(Ceiling, x) for x in parts["ceilings"]),
            tuple(_made(Finding, x) for x in parts["findings"]),
            parts["absent"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of results: {error}") from error


def _common(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields that are the same in all rows."""
    first, *others = rows or [{}]
    return {k: v for k, v in first.items() if all(row[k] == v for row in others)}


def _plain(part: Any) -> dict[str, Any]:
    return {k: _rounded(v) for k, v in dataclasses.asdict(part).items()}


def _rounded(value: object) -> object:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _made(kind: type[_Part], plain: Mapping[str, Any]) -> _Part:
    return kind(**{name: _from_json(value) for name, value in plain.items()})


def _from_json(value: Any) -> Any:
    """Return pairs and records as the tuples that they were."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict):
        return {name: _from_json(inner) for name, inner in value.items()}
    return value


def _dump(part: object) -> str:
    """Return JSON, a list's items on lines of their own."""
    if not isinstance(part, list) or not part:
        return json.dumps(part, ensure_ascii=False)
    return "[\n" + ",\n".join(_lines(part)) + "\n]"


def _lines(items: Iterable[object]) -> Iterable[str]:
    return (json.dumps(item, ensure_ascii=False) for item in items)
