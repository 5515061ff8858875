"""`dcn-tvm records`: list, check, merge and prune what tuning found."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dcn_tvm.cli.console import needs_extra, user_input, wide

if TYPE_CHECKING:
    from dcn_tvm.records import Damage, Line, Summary

app = typer.Typer(help="The records of tuning: which choices won.", no_args_is_help=True)

Ids = Annotated[
    list[str] | None,
    typer.Option(
        "--target", metavar="ID", help="Only these targets' records; cuda, cuda:1: a device's."
    ),
]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="The user's own folder if absent.")
]
Shipped = Annotated[bool, typer.Option("--shipped", help="The records that come with dcn_tvm.")]


@app.command("list")
def show(root: Root = None, shipped: Shipped = False, target: Ids = None) -> None:
    """Show all records: what was tuned, how much faster it is, by which choices."""
    for path, lines, damage in _read(_root(root, shipped), target):
        table = Table(
            *("", "kernel", "problem", "sizes", "choices", "default ms", "faster", "date"),
            title=str(path),
            title_justify="left",
        )
        for line in lines:
            table.add_row(str(line.number), *_cells(line))
        wide().print(table)
        _warn(damage)


@app.command()
def check(
    root: Root = None,
    shipped: Shipped = False,
    target: Ids = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Time each beside the default for so long.")
    ] = None,
) -> None:
    """Replay every record that this machine can run: do its kernels still compute the right thing?

    Exit code 1 if a record is wrong, cannot be replayed, or a line cannot be read.
    """
    with needs_extra():
        from dcn_tvm.tuning import audit

    wrong, timed, count = 0, [], 0
    for path, lines, damage in _read(_root(root, shipped), target):
        _warn(damage)
        wrong += len([item for item in damage if not item.newer])
        machine = audit.machine_of(path.parent.name)
        if machine is None:
            typer.echo(f"{path}: passed over, this machine cannot run code for {path.parent.name}")
            continue
        with audit.Audit(machine) as auditor:
            for finding in auditor.check(lines, seconds):
                count += 1
                _print_finding(finding)
                wrong += finding.wrong is not None
                timed += [finding] if finding.ratio else []
    typer.echo(f"{count} records checked, {wrong} wrong")
    if timed and (means := audit.speedup(timed)):
        typer.echo(
            f"default time / record time: geometric mean {means[0]:.3f}, least {means[1]:.3f}"
        )
    if wrong:
        raise typer.Exit(1)


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Files, targets' folders, or whole roots.")],
    root: Root = None,
) -> None:
    """Add the records of other files; for each problem the later one wins."""
    from dcn_tvm import records

    with user_input():
        summary = records.merge(sources, _root(root))
    _summarise(summary)


@app.command()
def prune(root: Root = None, target: Ids = None) -> None:
    """Keep only the last record of each problem, drop those that no longer replay, and sort."""
    from dcn_tvm import records

    with needs_extra():
        from dcn_tvm.tuning import audit

    folder = _root(root)
    with user_input():
        ids = _ids(target) or sorted({path.parent.name for path in records.files(folder)})
    total = records.Summary()
    for target_id in ids:
        machine = audit.machine_of(target_id)
        legal = None if machine is None else functools.partial(audit.illegal, target=machine.target)
        with user_input():
            total += records.prune(folder, [target_id], legal)
    _summarise(total)


def _root(root: Path | None, shipped: bool = False) -> Path:
    from dcn_tvm import records

    with user_input():
        if root is not None and shipped:
            raise ValueError("--root and --shipped exclude each other")
        if root is not None and not root.is_dir():
            raise ValueError(f"--root must be a folder, got {root}")
        return root or (records.shipped_root() if shipped else records.user_root())


def _ids(target: Sequence[str] | None) -> list[str] | None:
    """The names of folders; a device stands for all that are for it."""
    if not any(text.startswith("cuda") for text in target or ()):
        return None if target is None else list(target)
    with needs_extra():
        from dcn_tvm.tuning import machine as machines
    found: list[str] = []
    for text in target or ():
        found += machines.parse(text).target.ids if machines.is_device(text) else [text]
    return found


def _read(
    root: Path, target: Sequence[str] | None
) -> Iterator[tuple[Path, list[Line], list[Damage]]]:
    from dcn_tvm import records

    with user_input():
        paths = records.files(root, _ids(target))
    if not paths:
        typer.echo(f"no records in {root}")
    for path in paths:
        yield (path, *records.read(path))


def _cells(line: Line) -> Iterator[str]:
    record = line.record
    yield record.kernel
    yield ", ".join(f"{name} {value}" for name, value in record.problem.particulars().items())
    yield " ".join(f"{name} {size}" for name, size in record.sizes.items())
    chosen = record.choices
    yield "default" if chosen is None else ", ".join(f"{n} {v}" for n, v in chosen.items())
    yield f"{record.default_us / 1e3:.3g}"
    yield f"{record.speedup:.2f}x"
    yield record.date[:10]


def _print_finding(finding: object) -> None:
    from dcn_tvm.tuning.audit import Finding

    assert isinstance(finding, Finding)
    record, line = finding.line.record, finding.line
    sizes = " ".join(f"{name} {size}" for name, size in record.sizes.items())
    outcome = finding.wrong or "ok"
    speed = f", {1 / finding.ratio:.3f}x as fast as the default" if finding.ratio else ""
    place = f"{line.path.parent.name}/{line.path.name}:{line.number}"
    typer.echo(f"{place}: {record.kernel} {sizes}: {outcome}{speed}")


def _warn(damage: Sequence[Damage]) -> None:
    for item in damage:
        typer.echo(f"not used: {item}", err=True)


def _summarise(summary: Summary) -> None:
    typer.echo(f"{summary.kept} kept, {summary.added} added, {summary.removed} removed")
    for item in summary.dropped:
        typer.echo(f"dropped: {item}")
    for item in summary.newer:
        typer.echo(f"left as it is, of a later version: {item}")
    for item in summary.moved:
        typer.echo(f"moved to the .damaged file beside it: {item}", err=True)
    for item in summary.skipped:
        typer.echo(f"passed over: {item}", err=True)


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="records")
