"""Rows as tables for a terminal, for Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Console, Group
from rich.table import Table

from dcn_tvm.bench.probe import Finding
from dcn_tvm.bench.rows import Mean, Row, half_speedups, mean_ratio, speedups, variants
from dcn_tvm.report import Machine


class Results(NamedTuple):
    """All that one benchmark found."""

    machine: Machine
    rows: Sequence[Row]
    findings: Sequence[Finding]
    absent: dict[str, str]

    def modes(self) -> dict[str, list[Row]]:
        """Return the rows by op and mode."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(f"{row.op}, {row.mode}", []).append(row)
        return groups


class Grid(NamedTuple):
    """A table as text."""

    title: str
    header: list[str]
    lines: list[list[str]]


def grids(results: Results) -> list[Grid]:
    """Return every table of the results."""
    times = [_times(title, rows) for title, rows in results.modes().items()]
    means = [
        [title, mean.variant, mean.against, *_mean_cells(mean)]
        for title, rows in results.modes().items()
        for mean in [*speedups(rows), *half_speedups(rows)]
    ]
    header = ["mode", "ours", "against", "times as fast", "at the least", "where", "problems"]
    findings = [
        [f.what, f.provider, f.problem, f"{f.value:.4g} {f.unit}"] for f in results.findings
    ]
    absent = [list(item) for item in results.absent.items()]
    return [
        *times,
        *_unless_empty("Geometric means of the speed-ups", header, means),
        *_unless_empty("Once per process", ["what", "provider", "problem", "value"], findings),
        *_unless_empty("Absent", ["provider", "why; how to get it"], absent),
    ]


def _times(title: str, rows: Sequence[Row]) -> Grid:
    """Return a line for each problem, a column for each variant, and the geometric means."""
    columns = variants(rows)
    cells = {(row.problem, row.variant): _time_cell(row) for row in rows}
    problems = list(dict.fromkeys(row.problem for row in rows))
    lines = [[p, *(cells.get((p, column), "") for column in columns)] for p in problems]
    ratios = [mean_ratio(rows, column) for column in columns]
    means = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return Grid(f"{title}: ms (ratio)", ["problem", *columns], [*lines, ["mean ratio", *means]])


def _time_cell(row: Row) -> str:
    time = f"{row.median_us / 1e3:.3g}"
    return time if row.ratio is None else f"{time} ({row.ratio:.2f})"


def _mean_cells(mean: Mean) -> list[str]:
    return [f"{mean.mean:.2f}", f"{mean.worst:.2f}", mean.worst_problem, str(mean.problems)]


def _unless_empty(title: str, header: list[str], lines: list[list[str]]) -> list[Grid]:
    return [Grid(title, header, lines)] if lines else []


def show(results: Results, console: Console) -> None:
    """Print the tables."""
    tables = []
    for grid in grids(results):
        table = Table(title=grid.title, title_justify="left", header_style="bold")
        for index, name in enumerate(grid.header):
            number = index > 0 and grid.title in _titles_of_times(results)
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for line in grid.lines:
            table.add_row(*line, style="bold" if line[0] == "mean ratio" else None)
        tables.append(table)
    console.print(Group(*tables, results.machine.line))


def _titles_of_times(results: Results) -> set[str]:
    return {f"{title}: ms (ratio)" for title in results.modes()}


def markdown(results: Results) -> str:
    """Return the tables in Markdown, under a line that names the machine."""
    return "\n".join([results.machine.line, "", *map(grid_markdown, grids(results))])


def grid_markdown(grid: Grid) -> str:
    """Return one table in Markdown, under its title."""
    lines = [grid.header, ["---"] * len(grid.header), *grid.lines]
    return "\n".join([f"**{grid.title}**", "", *("| " + " | ".join(x) + " |" for x in lines), ""])


def to_json(results: Results) -> str:
    """Return everything as JSON; every row is complete in itself."""
    parts = {
        "machine": dataclasses.asdict(results.machine),
        "rows": _plain(results.rows),
        "findings": _plain(results.findings),
        "absent": results.absent,
    }
    return json.dumps(parts, indent=1)


def _plain(items: Iterable[Row] | Iterable[Finding]) -> list[dict[str, object]]:
    return [dataclasses.asdict(item) for item in items]
