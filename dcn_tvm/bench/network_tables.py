"""Rows of whole networks as tables for a terminal, for Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dcn_tvm.bench.networks import NetworkRow
from dcn_tvm.bench.tables import Grid, grid_markdown

_HEADER = [
    "network",
    "image",
    "proposals",
    "parameters, M",
    "more, M (paper)",
    "plain, ms",
    "deformable, ms",
    "ratio (paper)",
    "with torchvision's op",
    "ratio",
]


def grid(rows: Sequence[NetworkRow]) -> Grid:
    """Return table 4 of the paper as it is here."""
    title = "Whole networks, plain and deformable: one forward pass"
    return Grid(title, _HEADER, [_line(row) for row in rows])


def _line(row: NetworkRow) -> list[str]:
    low, high = row.paper_parameters
    paper = "" if row.paper_ratio is None else f" ({row.paper_ratio:.2f})"
    return [
        row.network,
        f"{row.image[0]} x {row.image[1]}",
        "" if row.proposals is None else ", ".join(map(str, dict.fromkeys(row.proposals))),
        " → ".join(f"{count / 1e6:.1f}" for count in row.parameters),
        f"{row.increment_millions:+.2f} ({high - low:+.1f})",
        f"{row.ms['plain']:.0f}",
        f"{row.ms['dcn_tvm']:.0f}",
        f"{row.ratios['dcn_tvm']:.2f}{paper}",
        f"{row.ms['torchvision']:.0f} ms",
        f"{row.ratios['torchvision']:.2f}",
    ]


def show(rows: Sequence[NetworkRow], console: Console) -> None:
    """Print the table and the machine."""
    found = grid(rows)
    table = Table(title=found.title, title_justify="left", header_style="bold")
    for index, name in enumerate(found.header):
        table.add_column(name, justify="right" if index > 2 else "left", overflow="fold")
    for line in found.lines:
        table.add_row(*line)
    console.print(table, rows[0].machine.line)


def markdown(rows: Sequence[NetworkRow]) -> str:
    """Return the table in Markdown, under a line that names the machine."""
    return "\n".join([rows[0].machine.line, "", grid_markdown(grid(rows))])


def to_json(rows: Sequence[NetworkRow]) -> str:
    """Return the rows as JSON; every one is complete in itself."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
