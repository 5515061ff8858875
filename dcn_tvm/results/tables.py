"""Tables of the report page, as data for DataTables: titles, cells, and how columns are filtered.

Numbers stay numbers, so that they are sorted and filtered as such.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dcn_tvm.results.causes import sentences
from dcn_tvm.results.compare import Change
from dcn_tvm.results.drawing import short
from dcn_tvm.results.file import Results
from dcn_tvm.results.means import mean_ratio, speedups, variants
from dcn_tvm.results.merge import Key, Place, place
from dcn_tvm.results.row import Row
from dcn_tvm.results.scaling import THREADS, Curve, position, whole

Cell = str | float | None
LIST, TEXT, NUMBER = "searchList", "search", "number"
# DataTables reads titles as markup, and a file of results may come from anywhere.
_NO_MARKUP = str.maketrans("<>&", "()+")


class Column(NamedTuple):
    """A column: its title, how it is filtered, and whether it is shown at first."""

    title: str
    filter: str = LIST
    shown: bool = True

    def plain(self) -> dict[str, Any]:
        """Return the column as DataTables wants it."""
        number = self.filter == NUMBER
        return {
            "title": self.title,
            "type": "num" if number else "string",
            "className": "number" if number else "",
            "visible": self.shown,
            "columnControl": [[TEXT if number else self.filter]],  # a list in a list: a drop-down
        }


class Table(NamedTuple):
    """A table that can be sorted and filtered."""

    name: str
    columns: Sequence[Column]
    data: Sequence[Sequence[Cell]]

    def plain(self) -> dict[str, Any]:
        """Return the table as JSON can hold it."""
        return {
            "id": self.name,
            "columns": [column.plain() for column in self.columns],
            "data": [list(cells) for cells in self.data],
        }


_ROW: tuple[tuple[Column, Callable[[Row], Cell]], ...] = (
    (Column("op"), lambda row: row.op),
    (Column("mode"), lambda row: row.mode),
    (Column("problem", TEXT), lambda row: row.problem),
    (Column("provider"), lambda row: row.provider),
    (Column("version", shown=False), lambda row: row.version),
    (Column("role", shown=False), lambda row: row.role),
    (Column("type"), lambda row: row.dtype),
    (Column("layout"), lambda row: row.memory_format),
    (Column("threads", shown=False), lambda row: str(row.threads)),
    (Column("cache", shown=False), lambda row: row.cache),
    (Column("median, ms", NUMBER), lambda row: short(row.median_us / 1e3)),
    (Column("p20, ms", NUMBER, shown=False), lambda row: short(row.p20_us / 1e3)),
    (Column("p80, ms", NUMBER, shown=False), lambda row: short(row.p80_us / 1e3)),
    (Column("ratio", NUMBER), lambda row: short(row.ratio)),
    (Column("roofline, %", NUMBER), lambda row: short(row.roofline and 100 * row.roofline)),
    (Column("GFLOP/s", NUMBER), lambda row: short(row.gflop_per_s)),
    (Column("GB/s", NUMBER), lambda row: short(row.gbyte_per_s)),
    (Column("bound", shown=False), lambda row: row.bound or ""),
    (Column("peak, MiB", NUMBER), lambda row: short(row.peak_mib)),
    (Column("page faults", NUMBER, shown=False), lambda row: short(row.faults)),
    (Column("error", NUMBER, shown=False), lambda row: short(row.error)),
    (Column("records", TEXT, shown=False), lambda row: "; ".join(row.records)),
    (Column("device", shown=False), lambda row: row.device),
    (Column("date", TEXT, shown=False), lambda row: row.date[:10]),
)


def all_rows(rows: Iterable[Row]) -> Table:
    """Return every row of no sweep."""
    ranked = [row for row in rows if not row.sweep]
    data = [[cell(row) for _, cell in _ROW] for row in ranked]
    several = {"threads", "cache", "device"}  # what distinguishes rows, if it does, is shown
    columns = [
        column._replace(shown=len({cell(row) for row in ranked}) > 1)
        if column.title in several
        else column
        for column, cell in _ROW
    ]
    return Table("rows", columns, data)


def sweep_rows(curves: Iterable[Curve]) -> Table:
    """Return every row of every curve, with what its sweep changes."""
    left_out = {
        "role",
        "version",
        "GB/s",
        "error",
        "records",
        "date",
    }  # as the other table has them
    cells = [(column, cell) for column, cell in _ROW if column.title not in left_out]
    columns = [Column("against"), Column("at", NUMBER), *(column for column, _ in cells)]
    data = [
        [row.sweep, position(row), *(cell(row) for _, cell in cells)]
        for curve in curves
        for row in curve.rows
    ]
    return Table("points", columns, data)


def key_figures(machines: Sequence[Results]) -> Table:
    """Return how each of our variants stands against each peer and the baseline, by op and mode."""
    columns = [
        *(Column(title) for title in ("op, mode", "ours", "against")),
        *(Column(title, NUMBER) for title in ("times as fast", "at least")),
        Column("there", TEXT, shown=False),
        *(Column(title, NUMBER) for title in ("problems", "time / baseline", "roofline, %")),
        Column("cache", shown=False),
        Column("machine", shown=len(machines) > 1),
    ]
    data = [cells for results in machines for cells in _standings(results)]
    return Table("figures", columns, data)


def growths(curves: Iterable[Curve]) -> Table:
    """Return the exponents of each curve, and what is to be said about it."""
    columns = [
        *(Column(title) for title in ("op", "mode", "provider", "against")),
        *(Column(title, NUMBER) for title in ("from", "to")),
        *(Column(title, NUMBER) for title in ("time exponent", "memory exponent")),
        Column("speed-up", NUMBER),
        Column("verdict"),
    ]
    return Table("growths", columns, [_growth(curve) for curve in curves])


def across_machines(pairs: Mapping[Key, Mapping[Place, Row]]) -> Table:
    """Return the times of each row on each machine, and over the first machine's."""
    places = list(dict.fromkeys(where for found in pairs.values() for where in found))
    names = [str(where).translate(_NO_MARKUP) for where in places]
    columns = [
        *(Column(title) for title in ("op", "mode")),
        Column("problem", TEXT),
        Column("provider"),
        *(Column(f"{name}, ms", NUMBER) for name in names),
        *(Column(f"{name}, times the first", NUMBER) for name in names[1:]),
    ]
    data = []
    for found in pairs.values():
        row = next(iter(found.values()))
        times = [found[where].median_us / 1e3 if where in found else None for where in places]
        base = times[0]
        ratios = [t / base if t is not None and base is not None else None for t in times[1:]]
        what = (row.op, row.mode, row.problem, row.variant)
        data.append([*what, *(short(number) for number in (*times, *ratios))])
    return Table("machines", columns, data)


def changed(changes: Iterable[Change]) -> Table:
    """Return what became of each older row."""
    columns = [
        *(Column(title) for title in ("verdict", "op", "mode")),
        Column("problem", TEXT),
        *(Column(title) for title in ("provider", "role")),
        *(Column(title, NUMBER) for title in ("ratio then", "ratio now", "now / then")),
        Column("time, now / then", NUMBER),
        Column("reason", TEXT, shown=False),
    ]
    return Table("changes", columns, [_changed(change) for change in changes])


def _standings(results: Results) -> Iterable[list[Cell]]:
    """Yield a line for each of our variants and each of its peers."""
    groups: dict[tuple[str, str, Place], list[Row]] = {}
    for name, rows in results.modes().items():
        for row in rows:
            groups.setdefault((name, row.cache, place(row)), []).append(row)
    for (name, cache, where), rows in groups.items():
        for variant in variants(row for row in rows if row.role == "ours"):
            own = [row for row in rows if row.variant == variant]
            shares = [100 * row.roofline for row in own if row.roofline]
            share = short(statistics.geometric_mean(shares)) if shares else None
            last = [short(mean_ratio(rows, variant)), share, cache, str(where)]
            means = [mean for mean in speedups(rows) if mean.variant == variant]
            for m in means:
                fast = [m.against, short(m.mean), short(m.worst), m.worst_problem, m.problems]
                yield [name, variant, *fast, *last]
            if not means:
                yield [name, variant, "", None, None, "", len({r.problem for r in own}), *last]


def _growth(curve: Curve) -> list[Cell]:
    span, threads = whole(curve), curve.sweep == THREADS
    return [
        curve.op,
        curve.mode,
        curve.variant + (", cold" if curve.cache == "cold" else ""),
        curve.sweep,
        position(span.first),
        position(span.last),
        None if threads else short(span.time),
        short(span.memory),
        short(span.speedup) if threads else None,
        "worse than linear" if sentences(curve) else "linear or better",
    ]


def _changed(change: Change) -> list[Cell]:
    old, new = change.old, change.new
    names = (change.verdict, old.op, old.mode, old.problem, old.variant, old.role)
    numbers = (old.ratio, new.ratio if new else None, change.ratio, change.time)
    return [*names, *(short(number) for number in numbers), change.reason]
