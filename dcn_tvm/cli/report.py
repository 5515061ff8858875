"""`dcn-tvm report`: a page of what benchmarks found, and whether it is worse than it was."""

from __future__ import annotations

import webbrowser
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dcn_tvm.cli.console import needs_extra, user_input, wide

if TYPE_CHECKING:
    from dcn_tvm.results import Results
    from dcn_tvm.results.compare import Change


def report(
    files: Annotated[
        list[Path], typer.Argument(help="What `bench --json` wrote, of any machines.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    baseline: Annotated[
        list[Path] | None, typer.Option(help="Older results to compare with; exit code 1 if worse.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="By how many percent a ratio may grow.")
    ] = 10.0,
    browse: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Make a page of tables and charts that needs no network; compare with older results."""
    with needs_extra(code=2):
        from dcn_tvm.results import page
    from dcn_tvm.results.compare import changes

    with user_input():
        inputs = {path.resolve() for path in (*files, *(baseline or []))}
        if output.resolve() in inputs:
            raise ValueError(f"output must be another file than the results, got {output}")
        machines, older = _read(files), _read(baseline or [])
        found = changes(machines, older, tolerance / 100) if baseline else None
        try:
            path = page.make(machines, output, found, tolerance / 100)
        except OSError as error:
            raise ValueError(f"output must be a file that can be written: {error}") from error
    rows = sum(len(results.rows) for results in machines)
    rejected = sum(len(results.rejections) for results in machines)
    noun = "machine" if len(machines) == 1 else "machines"
    typer.echo(f"{rows} rows of {len(machines)} {noun}, {rejected} wrong or failed")
    if found is not None:
        _show(found)
    typer.echo(f"report: {path.resolve()}")
    if browse:
        webbrowser.open(path.resolve().as_uri())
    if any(change.regression for change in found or ()):
        raise typer.Exit(1)
    if found is not None and not any(change.judged for change in found):
        typer.echo("error: no row of ours is in both, so nothing was compared", err=True)
        raise typer.Exit(2)


def _read(files: Sequence[Path]) -> list[Results]:
    """Return what files hold, one per machine."""
    from dcn_tvm.results import read
    from dcn_tvm.results.merge import merge

    try:
        return merge([read(path) for path in files])
    except OSError as error:
        raise ValueError(f"results must be a file that can be read: {error}") from error


def _show(found: Sequence[Change]) -> None:
    """Print how many rows changed, and those of ours that are worse."""
    counts = Counter(change.verdict for change in found)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    typer.echo(f"against older results: {verdicts or 'they have no rows'}")
    worse = [change for change in found if change.regression]
    if not worse:
        return
    table = Table(title="regressions")
    for title in ("op, mode", "problem", "provider", "verdict", "ratio", "time, now / then"):
        table.add_column(title)
    for change in worse:
        old, new = change.old, change.new
        ratio = f"{old.ratio:.3g} → {new.ratio:.3g}" if new and new.ratio else change.reason
        time = f"{change.time:.2f}" if change.time else ""
        what = f"{old.op}, {old.mode}"
        cells = (what, old.problem, old.variant, change.verdict, ratio, time)
        table.add_row(*map(escape, cells))  # a peer's reason is no markup
    wide().print(table)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
