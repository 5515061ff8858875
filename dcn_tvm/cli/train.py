"""`dcn-tvm train`: plain against deformable networks, on handwritten digits."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dcn_tvm.cli.console import Threads, needs_extra, set_threads, user_input


def train(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of checkpoints, results and report; train-results if absent.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="A few steps of each network: does it all work?")
    ] = False,
    fresh: Annotated[
        bool, typer.Option(help="Forget what the folder has, and begin anew.")
    ] = False,
    browse: Annotated[bool, typer.Option("--open", help="Show the report in a browser.")] = False,
    threads: Threads = None,
) -> None:
    """Train plain and deformable networks on digits, compare them, write a report.

    Interrupted, it goes on where it stopped. Several processes share each batch when started so:
    torchrun --nproc_per_node=2 -m dcn_tvm train
    """
    with needs_extra():
        from dcn_tvm import training

    set_threads(threads)
    if folder is None:  # results of the two kinds would replace each other
        folder = Path("train-results-quick" if quick else "train-results")
    plan = training.quick_plan() if quick else training.full_plan()
    with user_input():
        _make(folder)
    path = training.run_all(plan, folder, Console(), fresh=fresh)
    if path is not None:
        typer.echo(f"report: {path.resolve()}")
        if browse:
            webbrowser.open(path.resolve().as_uri())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output must be a folder that can be written: {error}") from error


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)
