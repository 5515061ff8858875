"""`dcn-tvm demo`: a network trained, checked and timed on a photograph."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dcn_tvm.cli.console import Threads, set_threads


def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")] = Path(
        "report"
    ),
    browse: Annotated[bool, typer.Option("--open", help="Show the report in a browser.")] = False,
    threads: Threads = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 100,
    seconds: Annotated[float, typer.Option(min=0, help="For measuring times.")] = 16.0,
) -> None:
    """Train a small deformable network on a photograph, check it, time it, write a report."""
    from dcn_tvm import demo as demonstration

    set_threads(threads)
    path = demonstration.run(folder, Console(), steps=steps, seconds=seconds).resolve()
    typer.echo(f"report: {path}")
    if browse:
        webbrowser.open(path.as_uri())


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)
