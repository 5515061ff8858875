"""Files of results: JSON, a row per line, with what rows share written once.

A row is the values of "common", those of its list in "rows" by the names in "columns", and, where
such a value is a number in a column that "tables" names, what stands in that table at that place.
So files stay small enough for version control, and a changed row is a changed line:

    {"schema": 1, "machine": {...}, "common": {"device": "CPU", ...},
     "columns": ["op", "sizes", ...], "tables": {"sizes": [{...}, ...], ...},
     "rows": [["roi_pool", 0, ...], ...], "ceilings": [...], ...}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dcn_tvm.report import Machine
from dcn_tvm.results.ceilings import Ceiling, Ceilings
from dcn_tvm.results.checks import checked
from dcn_tvm.results.row import Finding, Rejection, Row

SCHEMA = 1
DIGITS = 5  # of what was measured; the last of them is noise on any machine

_TABLES = ("sizes", "records", "versions")  # columns of long values, which many rows share

_Part = TypeVar("_Part")
_Value = TypeVar("_Value")


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
    columns = [name for name in (rows or [{}])[0] if name not in common]
    tables = {name: _distinct(row[name] for row in rows) for name in columns if name in _TABLES}
    own = [
        [tables[name].index(row[name]) if name in tables else row[name] for name in columns]
        for row in rows
    ]
    parts = {
        "schema": SCHEMA,
        "machine": dataclasses.asdict(results.machine),
        "common": common,
        "columns": columns,
        "tables": tables,
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
        return Results(
            Machine(**checked(Machine, parts["machine"])),
            tuple(_made(Row, row) for row in _rows(parts)),
            tuple(_made(Rejection, x) for x in parts["rejections"]),
            tuple(_made(Ceiling, x) for x in parts["ceilings"]),
            tuple(_made(Finding, x) for x in parts["findings"]),
            {str(name): str(why) for name, why in parts["absent"].items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no file of results: {error}") from error


def _rows(parts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the fields of every row.

    Raises:
        ValueError: a row has more or fewer values than there are columns, or names no place.
    """
    for values in parts["rows"]:
        row = dict(zip(parts["columns"], values, strict=True))
        for name, table in parts["tables"].items():
            if row[name] not in range(len(table)):
                raise ValueError(f"{name} must be a place in a table of {len(table)}")
            row[name] = table[row[name]]
        yield {**parts["common"], **row}


def _distinct(values: Iterable[_Value]) -> list[_Value]:
    found: list[_Value] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _common(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields that are the same in all rows."""
    first, *others = rows or [{}]
    return {k: v for k, v in first.items() if all(row[k] == v for row in others)}


def _plain(part: Any) -> dict[str, Any]:
    return {k: _rounded(v) for k, v in dataclasses.asdict(part).items()}


def _rounded(value: object) -> object:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _made(kind: type[_Part], plain: Mapping[str, Any]) -> _Part:
    return kind(**checked(kind, {name: _from_json(value) for name, value in plain.items()}))


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
        return json.dumps(part, ensure_ascii=False, allow_nan=False)
    return "[\n" + ",\n".join(_lines(part)) + "\n]"


def _lines(items: Iterable[object]) -> Iterable[str]:
    return (json.dumps(item, ensure_ascii=False, allow_nan=False) for item in items)
