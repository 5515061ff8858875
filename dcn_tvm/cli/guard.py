"""`dcn-tvm guard`: do kernels execute more instructions than they did?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dcn_tvm.cli.console import user_input, wide
from dcn_tvm.errors import CacheError, CompileError

if TYPE_CHECKING:
    from dcn_tvm.guard import Budget, Finding, Guarded

_MEANING = {
    "more": "more instructions than the budget",
    "fewer": "fewer: improved, update the budget",
    "new": "new: has no budget yet",
    "gone": "gone: has a budget, is not guarded",
}


def guard(
    op: Annotated[list[str] | None, typer.Option(help="Of this op only; may be repeated.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Write what is counted now as the budget.")
    ] = False,
    budget: Annotated[
        Path | None,
        typer.Option(help="The file; benchmarks/instructions.json of the checkout if absent."),
    ] = None,
    if_possible: Annotated[
        bool, typer.Option("--if-possible", help="Where nothing can be counted, say so and pass.")
    ] = False,
) -> None:
    """Count the instructions of kernels under valgrind and compare them with their budget.

    Exit code 0: all are within 2 % of it; 1: some are not, be it for the better, have none, or
    cannot be compiled; 2: nothing can be counted here, or there is no budget to compare with.
    """
    from dcn_tvm import guard as guards
    from dcn_tvm.guard.budget import PATH

    path, ops = budget or PATH, op or []
    with user_input():
        if update and not path.parent.is_dir():
            raise ValueError(f"budget must be a file in a folder that is there, got {path}")
        kernels = guards.guarded(ops)
        if reason := guards.absent_because():
            _skip(reason, if_possible=if_possible)
            return
        known = _known(path, ops, update=update)
    try:
        counts = _count(kernels)
    except (CompileError, CacheError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    with user_input():
        if not update:
            assert known is not None
            _judge(known.only(ops).compare(counts))
            return
        made = known.updated(counts, ops) if known else guards.Budget.of(counts)
    made.write(path)
    typer.echo(f"{path}: {len(counts)} of {len(made.kernels)} kernels counted anew")


def _skip(reason: str, *, if_possible: bool) -> None:
    if not if_possible:
        raise ValueError(reason)
    typer.echo(f"instruction counts: skipped: {reason}")


def _known(path: Path, ops: Sequence[str], *, update: bool) -> Budget | None:
    """Return the budget that there is, before minutes are spent; None if it is to be replaced."""
    from dcn_tvm.guard import Budget

    if update and not (ops and path.exists()):
        return None
    found = Budget.read(path)
    found.refuse_other_code()
    return found


def _count(kernels: Sequence[Guarded]) -> dict[str, int]:
    from dcn_tvm.guard import count

    with Console(stderr=True).status("starting") as status:
        return count(kernels, started=lambda what: status.update(what))


def _judge(findings: Sequence[Finding]) -> None:
    """Show what differs from the budget, and exit with 1 if something does."""
    different = [finding for finding in findings if finding.verdict != "same"]
    if not different:
        typer.echo(f"instruction counts: all {len(findings)} kernels are within their budget")
        return
    table = Table("kernel", header_style="bold")
    for name in ("budget", "now", "change"):
        table.add_column(name, justify="right")
    table.add_column("")
    for finding in sorted(different, key=lambda each: -(each.change or 0.0)):
        change = "" if finding.change is None else f"{finding.change:+.1%}"
        numbers = (f"{n:,}" if n is not None else "" for n in (finding.budget, finding.now))
        table.add_row(finding.name, *numbers, change, _MEANING[finding.verdict])
    wide().print(table)
    typer.echo(
        f"{len(different)} of {len(findings)} kernels differ from their budget; if that is meant "
        "to be, run dcn-tvm guard --update and commit what it writes"
    )
    raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(guard)
