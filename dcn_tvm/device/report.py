"""What was found, as Markdown and for a terminal: goals, failures, rows with their floors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from dcn_tvm.device import behaviour, benchmark, correctness, goals, machine, tune
from dcn_tvm.device.journal import FAILED, Journal, Result, write

FILE = "report.md"
_FORMATS = {"contiguous": "nchw", "channels_last": "nhwc"}
_LISTED = 40  # failures


class Grid(NamedTuple):
    """A table as text."""

    title: str
    header: list[str]
    lines: list[list[str]]


def write_report(out: Path) -> Path:
    """Write the report of a folder's results."""
    path = out / FILE
    write(path, markdown(out))
    return path


def markdown(out: Path) -> str:
    """Return the report as Markdown."""
    parts = [f"# {headline(out)}", "", "Medians in microseconds."]
    for grid in grids(out):
        lines = [grid.header, ["---"] * len(grid.header), *grid.lines]
        parts += ["", f"## {grid.title}", "", *("| " + " | ".join(x) + " |" for x in lines)]
    return "\n".join(parts) + "\n"


def show(out: Path, console: Console) -> None:
    """Print what matters most; the times are in the file."""
    for grid in summary(out):
        table = Table(title=grid.title, title_justify="left", header_style="bold")
        for name in grid.header:
            table.add_column(name, overflow="fold")
        for line in grid.lines:
            table.add_row(*line)
        console.print(table)
    console.print(headline(out), markup=False, highlight=False)


def headline(out: Path) -> str:
    """Return the machine in one line."""
    facts = machine.known_facts(out)
    if not facts:
        return "no machine was looked at"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    driver = f", driver {facts['driver']}" if facts.get("driver") else ""
    return (
        f"{facts['device']}{driver}, CUDA {facts['cuda']}, {facts['compiler']}, {versions}, "
        f"commit {facts['commit']}, {facts['date']}"
    )


def summary(out: Path) -> list[Grid]:
    """Return the tables before those of times, if there is something in them."""
    rows, tuned = _all_rows(out)
    found = [_rates(out), _failures(out), _steps(out), _goals(rows, tuned)]
    return [grid for grid in found if grid.lines]


def grids(out: Path) -> list[Grid]:
    """Return every table that has something in it."""
    rows, tuned = _all_rows(out)
    found = summary(out)
    for title, among in _groups(rows).items():
        found.append(_times(title, among))
    for title, among in _groups(tuned).items():
        found.append(_times(f"With records: {title}", among))
    return found


def _all_rows(out: Path) -> tuple[list[Result], list[Result]]:
    rows, tuned = (
        benchmark.found_rows(out, step) for step in (benchmark.STEP, benchmark.TUNED_STEP)
    )
    return rows, tuned


def _steps(out: Path) -> Grid:
    names = (machine.STEP, correctness.STEP, behaviour.STEP, benchmark.STEP, tune.STEP)
    lines = []
    for name in (*names, benchmark.TUNED_STEP):
        journal = Journal(out, name)
        results = journal.results().values()
        counts = Counter(str(result["outcome"]) for result in results)
        seconds = sum(float(result["seconds"]) for result in results)
        state = "finished" if journal.finished else "not finished"
        cells = [str(counts[outcome]) for outcome in ("passed", "failed", "skipped")]
        lines.append([name, state, *cells, f"{seconds:.0f}"])
    return Grid("Steps", ["step", "", "passed", "failed", "skipped", "s"], lines)


def _rates(out: Path) -> Grid:
    results = Journal(out, machine.STEP).results()
    lines = [
        [name, f"{rate / 1e6:.0f} TFLOP/s" if name != "copy" else f"{rate / 1e6:.2f} TB/s"]
        for name, rate in machine.rates(results).items()
    ]
    return Grid("Rates of the library's products, and of a copy", ["", "measured"], lines)


def _goals(rows: Sequence[Result], tuned: Sequence[Result]) -> Grid:
    lines = []
    for goal in goals.goals(rows, tuned):
        sign = "≤" if goal.most else "≥"
        mean = "not measured" if goal.mean is None else f"{goal.mean:.2f}"
        reached = {None: "", True: "yes", False: "no"}[goal.reached]
        worst = "" if goal.worst is None else f"{goal.values[goal.worst]:.2f}: {goal.worst}"
        lines.append(
            [goal.text, f"{sign} {goal.least:g}", mean, reached, worst, str(len(goal.values))]
        )
    header = ["goal", "wanted", "geometric mean", "reached", "worst", "rows"]
    return Grid("Goals", header, lines)


def _failures(out: Path) -> Grid:
    names = (machine.STEP, correctness.STEP, behaviour.STEP, benchmark.STEP, tune.STEP)
    lines = [
        [name, key, str(result.get("wrong") or result.get("why"))]
        for name in (*names, benchmark.TUNED_STEP)
        for key, result in Journal(out, name).results().items()
        if result["outcome"] == FAILED
    ]
    more = len(lines) - _LISTED
    lines = lines[:_LISTED] + ([["", f"and {more} more", ""]] if more > 0 else [])
    return Grid("Failures", ["step", "what", "why"], lines)


def _groups(rows: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for row in rows:
        form = _FORMATS[str(row["memory_format"])]
        title = f"{row['op']}, {row['mode']}, {row['precision']}, {form}"
        found.setdefault(title, []).append(row)
    return dict(sorted(found.items()))


def _times(title: str, rows: Sequence[Result]) -> Grid:
    """Return a line for each problem: work, floor, and every contender's time over it."""
    names = list(dict.fromkeys(str(time["name"]) for row in rows for time in row["times"]))
    lines = []
    for row in sorted(rows, key=lambda row: str(row["problem"])):
        times = {time["name"]: float(time["median_us"]) for time in row["times"]}
        floor = row["floor_us"]
        cells = [_cell(times.get(name), floor) for name in names]
        work = [f"{row['flops'] / 1e9:.2f}", f"{row['bytes'] / 2**20:.1f}"]
        bound = "" if floor is None else f"{floor:.1f} {row['bound']}"
        lines.append([str(row["problem"]), *work, bound, *cells])
    return Grid(title, ["problem", "GFLOP", "MiB", "floor", *names], lines)


def _cell(time_us: float | None, floor_us: float | None) -> str:
    if time_us is None:
        return ""
    return f"{time_us:.1f}" + (f" ({time_us / floor_us:.1f})" if floor_us else "")
