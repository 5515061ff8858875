"""`dcn-tvm tune`: search faster choices for problems, on this machine or behind a tracker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcn_tvm import suites
from dcn_tvm.cli import workloads
from dcn_tvm.cli.console import needs_extra, user_input, wide
from dcn_tvm.errors import CompileError

if TYPE_CHECKING:
    from dcn_tvm.gpu import Gpu
    from dcn_tvm.target import Target
    from dcn_tvm.tuning.remote import Tracker
    from dcn_tvm.tuning.task import Task


def tune(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Suites, or an op and FIELD=VALUE for its fields and sizes."),
    ] = None,
    from_model: Annotated[
        list[Path] | None,
        typer.Option(help="What a model met: a file of record_problems, or a .py file to run."),
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Of suites; float32 if absent.")] = None,
    layout: Annotated[list[str] | None, typer.Option(help="Of suites; nchw if absent.")] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="Only these; all if absent.")] = None,
    trials: Annotated[int, typer.Option(min=2, help="Points that each kernel tries.")] = 64,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="For all together; what takes longest comes first."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the CPU; all cores if absent.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="Such as x86-64-v3, see explain --target; or cuda, cuda:1."
        ),
    ] = None,
    tracker: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Measure on servers behind a tracker.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Of the servers at the tracker.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on where an earlier session stopped.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only tell what would be tuned.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the records; your own if absent.")
    ] = None,
) -> None:
    """Search faster choices for problems and keep them as records, which later calls use.

    Ctrl-C keeps what was found; --resume goes on. The tracker's protocol has no authentication:
    use it in trusted networks only.
    """
    with user_input():
        chosen = workloads.restricted(
            workloads.named(what, from_model, dtype, layout, sizes=True), kernel
        )
    from dcn_tvm import records

    with needs_extra():
        from dcn_tvm.tuning import machine as machines
        from dcn_tvm.tuning import session

    with user_input():
        servers = _tracker(tracker, key)
        machine = machines.parse(target, threads, servers)
        root = output or records.user_root()
        tasks = session.plan_tasks(chosen, machine.target, machine.threads)
        if dry_run:
            _show_plan(tasks, trials, machine.target)
            return
    from dcn_tvm.cli.progress import Live

    console = wide()
    with Live(console) as live:
        try:
            with user_input():
                found = session.tune(
                    chosen,
                    target=target,
                    trials=trials,
                    minutes=minutes,
                    threads=threads,
                    seed=seed,
                    resume=resume,
                    tracker=servers,
                    root=root,
                    reporter=live,
                )
        except (CompileError, OSError) as error:  # no tracker and no server are OSErrors, too
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
    better = [record for record in found if record.choices is not None]
    console.print(
        f"{len(better)} of {len(found)} kernels run faster than by default; records: "
        f"{root / machine.target.ids[0]}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if left := len(tasks) - len(found) - live.failures:
        console.print(f"{left} kernels are left: --resume goes on")
    if live.failures and not found:
        raise typer.Exit(1)


def _tracker(address: str | None, key: str | None) -> Tracker | None:
    if (address is None) != (key is None):
        raise ValueError("--tracker and --key belong together")
    if address is None or key is None:
        return None
    from dcn_tvm.tuning.remote import Tracker

    return Tracker.parse(address, key)


def _show_plan(tasks: Sequence[Task], trials: int, target: Target | Gpu) -> None:
    from rich.table import Table

    table = Table("kernel", "points", "trials", "knobs", title=f"for {target.ids[0]}")
    for task in tasks:
        space = task.space
        knobs = ", ".join(f"{name} {len(options)}" for name, options in space.knobs.items())
        table.add_row(str(task), str(space.size), str(min(trials, space.size)), knobs)
    wide().print(table)
    total = sum(min(trials, task.space.size) for task in tasks)
    typer.echo(f"{len(tasks)} kernels, {total} trials")


def register(app: typer.Typer) -> None:
    """Add the command."""
    assert suites.SUITES  # the names that `what` may have
    app.command()(tune)
