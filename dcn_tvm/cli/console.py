"""How commands talk to their user: mistakes, tables, and the options that several of them have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

WIDTH_OF_A_FILE = 160  # columns, where there is no terminal to ask

Threads = Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number if absent.")]


@contextmanager
def user_input() -> Iterator[None]:
    """Answer what a user got wrong with one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError) as error:
        message = " ".join(str(error).split())
        Console(stderr=True).print(f"error: {message}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error


@contextmanager
def needs_extra(code: int = 1) -> Iterator[None]:
    """Answer an import that fails for want of a package with one line and an exit code."""
    try:
        yield
    except ImportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(code) from error


def wide() -> Console:
    """Return a console for tables, which in a file need not fit any window."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_OF_A_FILE)


def set_threads(threads: int | None) -> None:
    """Let torch, and so the kernels, run on this many threads, if a number is given."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
