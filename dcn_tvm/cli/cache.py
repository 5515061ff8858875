"""`dcn-tvm cache`: the compiled kernels kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dcn_tvm import settings
from dcn_tvm.cli.console import user_input

if TYPE_CHECKING:
    from dcn_tvm.cache import BuildCache


def info() -> None:
    """Tell where the compiled kernels are and how much room they take."""
    found = builds().info()
    typer.echo(f"{found.path}: {found.entries} kernels, {found.bytes / 2**20:.1f} MiB")


def clear() -> None:
    """Remove the compiled kernels; they are compiled again when needed."""
    typer.echo(f"{builds().clear()} kernels removed")


def builds() -> BuildCache:
    """Return the cache in the user's home for dcn_tvm."""
    from dcn_tvm.cache import BuildCache

    with user_input():
        return BuildCache(settings.home() / "builds")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = typer.Typer(help="The compiled kernels kept on disk.", no_args_is_help=True)
    commands.command()(info)
    commands.command()(clear)
    app.add_typer(commands, name="cache")
