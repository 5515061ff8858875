"""Results as tables, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from dcn_tvm.results import Results, Row, scaling
from dcn_tvm.results.ceilings import GEMM
from dcn_tvm.results.means import Mean, half_speedups, mean_ratio, speedups, variants

_UNITS = ": ms (time over the baseline's) part of the roofline"


class Grid(NamedTuple):
    """A table as text."""

    title: str
    header: list[str]
    lines: list[list[str]]


def grids(results: Results) -> list[Grid]:
    """Return every table of the results."""
    means = [
        [title, mean.variant, mean.against, *_mean_cells(mean)]
        for title, rows in results.modes().items()
        for mean in [*speedups(rows), *half_speedups(rows)]
    ]
    header = ["mode", "ours", "against", "times as fast", "at the least", "where", "problems"]
    return [
        *(times(title + _UNITS, rows) for title, rows in results.modes().items()),
        *_unless_empty("Geometric means of the speed-ups", header, means),
        *_scaling(results),
        *_rejections(results),
        *_ceilings(results),
        *_once(results),
    ]


def _scaling(results: Results) -> list[Grid]:
    """Return the curves: how time grows with each size, and every point's."""
    header = ["op, mode", "provider", "size", "from", "to", "time grows as", "ms"]
    lines = []
    for curve in scaling.curves(results.rows):
        span, ends = scaling.whole(curve), (curve.rows[0], curve.rows[-1])
        times = ", ".join(f"{row.median_us / 1e3:.3g}" for row in curve.rows)
        places = [f"{scaling.position(row):,.0f}" for row in ends]
        name = f"{curve.op}, {curve.mode}"
        power = f"{curve.sweep}^{span.time:.2f}"
        lines.append([name, curve.variant, curve.sweep, *places, power, times])
    return _unless_empty("Scaling", header, lines)


def _rejections(results: Results) -> list[Grid]:
    """Return who is not ranked, each with the problems that its reason is for."""
    problems: dict[tuple[str, ...], list[str]] = {}
    for r in results.rejections:
        where = f"{r.op}, {r.mode}"
        key = (where, f"{r.provider} {r.version}", f"{r.dtype} {r.memory_format}", r.kind, r.reason)
        problems.setdefault(key, []).append(r.problem)
    lines = [[*key, ", ".join(dict.fromkeys(found))] for key, found in problems.items()]
    header = ["op, mode", "provider", "setting", "is", "because", "on"]
    return _unless_empty("Not ranked", header, lines)


def _ceilings(results: Results) -> list[Grid]:
    """Return the measured rates: a line for each dtype and number of threads."""
    groups: dict[tuple[str, int], dict[str, float]] = {}
    for c in results.ceilings:
        size = f"{c.size}²" if c.kind == GEMM else _bytes(c.size)
        groups.setdefault((c.dtype, c.threads), {})[f"{c.kind} {size}"] = c.rate
    names = list(dict.fromkeys(name for rates in groups.values() for name in rates))
    lines = [
        [dtype, str(threads), *(f"{rates[n]:.4g}" if n in rates else "" for n in names)]
        for (dtype, threads), rates in groups.items()
    ]
    title = "Ceilings: products in GFLOP/s, copies in GB/s"
    return _unless_empty(title, ["dtype", "threads", *names], lines)


def _once(results: Results) -> list[Grid]:
    findings = [
        [f.what, f.provider, f.problem, f"{f.value:.4g} {f.unit}"] for f in results.findings
    ]
    absent = [list(item) for item in results.absent.items()]
    return [
        *_unless_empty("Once per process", ["what", "provider", "problem", "value"], findings),
        *_unless_empty("Absent", ["provider", "why; how to get it"], absent),
    ]


def _bytes(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def times(title: str, rows: Sequence[Row], *, roofline: bool = True) -> Grid:
    """Return a line for each problem, a column for each variant, and the geometric means."""
    columns = variants(rows)
    cells = {(row.problem, row.variant): _time_cell(row, roofline=roofline) for row in rows}
    problems = list(dict.fromkeys(row.problem for row in rows))
    lines = [[p, *(cells.get((p, column), "") for column in columns)] for p in problems]
    ratios = [mean_ratio(rows, column) for column in columns]
    means = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    return Grid(title, ["problem", *columns], [*lines, ["mean ratio", *means]])


def _time_cell(row: Row, *, roofline: bool) -> str:
    told = [f"{row.median_us / 1e3:.3g}"]
    told += [] if row.ratio is None else [f"({row.ratio:.2f})"]
    told += [] if row.roofline is None or not roofline else [f"{row.roofline:.0%}"]
    return " ".join(told)


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
            # Peers' words, such as "[ONNXRuntimeError]", are no markup.
            table.add_row(*map(escape, line), style="bold" if line[0] == "mean ratio" else None)
        tables.append(table)
    console.print(Group(*tables, escape(results.machine.line)))


def _titles_of_times(results: Results) -> set[str]:
    return {title + _UNITS for title in results.modes()}


def markdown(results: Results) -> str:
    """Return the tables in Markdown, under a line that names the machine."""
    return "\n".join([results.machine.line, "", *map(grid_markdown, grids(results))])


def grid_markdown(grid: Grid) -> str:
    """Return one table in Markdown, under its title."""
    return "\n".join([f"**{grid.title}**", "", *grid_lines(grid), ""])


def grid_lines(grid: Grid) -> list[str]:
    """Return the lines of a table in Markdown, without its title."""
    lines = [grid.header, ["---"] * len(grid.header), *grid.lines]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
