"""`dcn-tvm bench`: every op against its peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dcn_tvm import suites
from dcn_tvm.cli.console import Threads, needs_extra, set_threads, user_input, wide


def bench(
    suite: Annotated[list[str] | None, typer.Argument(help="Suites; all if absent.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="Modes; all if absent.")] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="For each problem and mode; a network gets 20 times that.")
    ] = 3.0,
    threads: Threads = None,
    quick: Annotated[
        bool, typer.Option(help="A tiny problem of each op: does it all work?")
    ] = False,
    networks: Annotated[
        bool, typer.Option(help="Time the paper's networks instead, plain and deformable.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write every row to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write tables to this file.")] = None,
) -> None:
    """Time every op against its peers, and against a baseline that does less: conv2d or a copy."""
    if networks:
        if suite or mode:
            with user_input():
                raise ValueError("networks have no suites and no modes, got --networks with some")
        set_threads(threads)
        _bench_networks(seconds, quick, json, markdown)
        return
    with user_input():
        cases = [case for name in suite or list(suites.SUITES) for case in suites.named(name)]
    from dcn_tvm.bench import command, tables

    with user_input():
        modes = command.check_modes(mode)
    set_threads(threads)
    with Console(stderr=True).status("starting") as status:
        results = command.run_all(cases, modes, seconds=seconds, quick=quick, report=status.update)
    tables.show(results, wide())
    for path, text in ((json, tables.to_json), (markdown, tables.markdown)):
        if path is not None:
            path.write_text(text(results), encoding="utf-8")


def _bench_networks(seconds: float, quick: bool, json: Path | None, markdown: Path | None) -> None:
    with needs_extra():
        from dcn_tvm.bench import network_tables, networks
    with Console(stderr=True).status("starting") as status:
        # A forward pass takes seconds: a network gets more time than a problem of one op.
        rows = networks.run(
            seconds=0.0 if quick else 20 * seconds,
            min_rounds=1 if quick else 5,
            scale=0.1 if quick else 1.0,
            report=status.update,
        )
    network_tables.show(rows, wide())
    for path, text in ((json, network_tables.to_json), (markdown, network_tables.markdown)):
        if path is not None:
            path.write_text(text(rows), encoding="utf-8")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)
