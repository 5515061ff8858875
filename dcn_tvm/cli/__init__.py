"""The command line: `dcn-tvm`, also as `python -m dcn_tvm`.

Each command has a module here, whose `register` adds it to the app. Commands import what they need
when they run, so that `--help` answers at once. No command knows an op: names come from the
registry, options from the fields of the op's problem.
"""

from __future__ import annotations

import typer

from dcn_tvm.cli import (
    bench,
    cache,
    compile,
    demo,
    explain,
    gpu,
    guard,
    records,
    report,
    train,
    tune,
)

__all__ = ["app"]

app = typer.Typer(
    help="Deformable operators compiled for this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (
    bench,
    report,
    guard,
    gpu,
    demo,
    train,
    explain,
    tune,
    records,
    compile,
    cache,
):  # the order of --help
    module.register(app)
