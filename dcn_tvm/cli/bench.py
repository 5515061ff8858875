"""`dcn-tvm bench`: every op against its peers and the machine's own limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.status import Status

from dcn_tvm import suites
from dcn_tvm.cli.console import Threads, needs_extra, set_threads, user_input, wide

if TYPE_CHECKING:
    from dcn_tvm.results import Results

Names = list[str] | None


def bench(
    what: Annotated[Names, typer.Argument(metavar="[SUITE]...", help="All if absent.")] = None,
    suite: Annotated[Names, typer.Option(help="As an argument.")] = None,
    op: Annotated[Names, typer.Option(help="Only these ops of the suites; all if absent.")] = None,
    mode: Annotated[
        Names,
        typer.Option(help="forward, backward (with its forward), both, or network; all if absent."),
    ] = None,
    dtype: Annotated[
        Names, typer.Option(help="float32, and bfloat16 forward, if absent; or float16, float64.")
    ] = None,
    memory_format: Annotated[
        Names, typer.Option(help="contiguous or channels_last; both if absent.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    against: Annotated[
        Names,
        typer.Option(help="Contenders, as in torchvision,conv2d; all that are here if absent."),
    ] = None,
    cache: Annotated[
        str, typer.Option(help="warm, or cold: caches are overwritten before each call.")
    ] = "warm",
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Curves, too: sizes that grow one at a time.")
    ] = False,
    ceilings: Annotated[
        bool, typer.Option("--ceilings", help="Only the machine's limits: products and copies.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0, help="For each problem and mode; a network gets 20 times that.")
    ] = 3.0,
    threads: Threads = None,
    memory: Annotated[bool, typer.Option(help="Measure memory, too.")] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny problem of each op: does it all work?")
    ] = False,
    networks: Annotated[
        bool, typer.Option("--networks", help="The paper's networks instead, plain and deformable.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write every row to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write tables to this file.")] = None,
) -> None:
    """Time every op against its peers, a baseline that does less, and what the machine can do.

    Contenders take turns in one process; results are compared with the oracle first, and who is
    wrong is reported, not ranked. `dcn-tvm report` makes a page of JSON files of any machines.
    The exit code is 1 if our own results were wrong.
    """
    set_threads(threads)
    if networks:
        with user_input():
            if what or suite or op or mode or dtype or memory_format or against:
                raise ValueError("networks have no suites, ops, modes, dtypes and contenders")
            if scaling or ceilings or device != "cpu" or cache != "warm":
                raise ValueError("networks are timed alone, on the CPU, with warm caches")
            _check_outputs(json, markdown)
        _bench_networks(seconds, quick, json, markdown)
        return
    with user_input():
        cases = _cases([*(what or []), *(suite or [])], _split(op))
    from dcn_tvm.bench import command, plan

    with user_input():
        chosen = plan.Plan(
            modes=plan.parse_modes(_split(mode)),
            dtypes=plan.parse_dtypes(_split(dtype)),
            memory_formats=plan.parse_memory_formats(_split(memory_format)),
            device=plan.parse_device(device),
            against=plan.parse_against(_split(against), [case.op for case in cases]),
            cold=plan.parse_cache(cache),
            seconds=seconds,
            memory=memory,
        )
        if ceilings and (what or suite or op or mode or against or scaling or quick):
            raise ValueError("ceilings have no suites, ops, modes, contenders and curves")
        if ceilings and (memory_format or cache != "warm"):
            raise ValueError("ceilings have no memory formats, and copies that no cache holds")
        if quick and scaling:
            raise ValueError("--quick and --scaling exclude each other")
        _check_outputs(json, markdown)
    with _status() as status:
        report = status.update
        if ceilings:
            results = command.measure_ceilings(_split(dtype), chosen.device, report=report)
        elif quick:
            results = command.run_quick(cases, chosen, report=report)
        else:
            results = command.run_all(cases, chosen, scaling=scaling, report=report)
    _show(results, json, markdown)


def _show(results: Results, json: Path | None, markdown: Path | None) -> None:
    """Print and write results; exit with 1 if ours were rejected."""
    from dcn_tvm.bench import tables
    from dcn_tvm.results import to_json

    _write(json, to_json(results))  # first: to measure it took long
    _write(markdown, tables.markdown(results))
    tables.show(results, wide())
    if any(rejection.role == "ours" for rejection in results.rejections):
        typer.echo("error: our own results are among those that are not ranked", err=True)
        raise typer.Exit(1)


def _cases(names: Sequence[str], ops: Sequence[str] | None) -> list[suites.Case]:
    """Return the cases of suites, all if there are none, that belong to some ops, all if none."""
    cases = [case for name in names or list(suites.SUITES) for case in suites.named(name)]
    known = {case.op: None for case in cases}
    for op in ops or ():
        if op not in known:
            raise ValueError(f"op must be one of {', '.join(known)}, got {op}")
    return [case for case in cases if case.op in (ops or known)]


def _split(texts: Sequence[str] | None) -> list[str] | None:
    """Return the names in texts such as "torchvision,openvino", None if there are no texts."""
    if not texts:
        return None
    return [name.strip() for text in texts for name in text.split(",")]


def _status() -> Status:
    """Return what shows the progress, seldom: to draw takes time from what is measured."""
    return Console(stderr=True).status("starting", refresh_per_second=1)


def _check_outputs(*paths: Path | None) -> None:
    """Find out before all is measured whether it can be kept.

    Raises:
        ValueError: a file cannot be written.
    """
    for path in paths:
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("a").close()
            except OSError as error:
                raise ValueError(f"a file must be one that can be written: {error}") from error


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text, encoding="utf-8")


def _bench_networks(seconds: float, quick: bool, json: Path | None, markdown: Path | None) -> None:
    with needs_extra():
        from dcn_tvm.bench import network_tables, networks
    with _status() as status:
        # A forward pass takes seconds: a network gets more time than a problem of one op.
        rows = networks.run(
            seconds=0.0 if quick else 20 * seconds,
            min_rounds=1 if quick else 5,
            scale=0.1 if quick else 1.0,
            report=status.update,
        )
    network_tables.show(rows, wide())
    _write(json, network_tables.to_json(rows))
    _write(markdown, network_tables.markdown(rows))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)
