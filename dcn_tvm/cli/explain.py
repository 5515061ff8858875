"""`dcn-tvm explain`: which kernels a problem needs, and what the machine is that they are for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from dcn_tvm.cli import problems
from dcn_tvm.cli.cache import builds
from dcn_tvm.cli.console import user_input, wide
from dcn_tvm.problem import Problem

if TYPE_CHECKING:
    from dcn_tvm.gpu import Gpu
    from dcn_tvm.kernels import KernelExplanation
    from dcn_tvm.target import Target

_BYTES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def explain(
    op: Annotated[str | None, typer.Argument(help="The op's name.")] = None,
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Such as in_channels=64 kernel_size=3x3."),
    ] = None,
    target: Annotated[
        bool, typer.Option("--target", help="Tell all facts of this machine, its GPUs too.")
    ] = False,
    machine: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="SPEC", help="Tell all facts of x86-64-v3,cores=8 or armv8 or sm_80."
        ),
    ] = None,
) -> None:
    """Tell which kernels a problem needs, with which choices, from where, and whether cached.

    A field's name may be shortened as long as it is unique. Without fields: the op's suite.
    """
    with user_input():
        if op is None and machine is None and not target:
            raise ValueError("name an op, or say --target")
        if machine is not None and (op is not None or target):
            raise ValueError("--for tells of a machine only: leave the op and --target out")
    if machine is not None:
        with user_input():
            described = _described(machine)
        _show(described)
        return
    from dcn_tvm import target as targets

    with user_input():
        cases = [] if op is None else problems.cases(op, fields or [])
        here = targets.detect()
    if target:
        _show_machine(here)
    if op is not None:
        _show_kernels(cases, here)


def _described(spec: str) -> Target | Gpu:
    if spec.startswith("sm_"):
        from dcn_tvm import gpu

        return gpu.assumed(spec)
    from dcn_tvm import target as targets

    return targets.parse(spec, foreign=True)


def _show_machine(here: Target) -> None:
    from dcn_tvm import gpu

    _show(here)
    devices = gpu.detect()
    for device in devices:
        _show(device)
    if not devices:
        typer.echo("no CUDA device")


def _show(machine: Target | Gpu) -> None:
    """Show the facts, under the names by which a spec sets them, and the spec itself."""
    table = Table("fact", "value", title=machine.id, title_justify="left")
    for name, value in dataclasses.asdict(machine).items():
        table.add_row(name, _written(name, value))
    table.add_row("choices from", " → ".join((*machine.ids, "default")))
    wide().print(table)
    typer.echo(f"spec: {machine.spec}\n")


def _written(name: str, value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(value) or "none"
    if not value:
        return "unknown"
    if not isinstance(value, int) or "bytes" not in name:
        return str(value)
    unit = "GiB" if value >> 30 else "MiB" if value >> 20 else "KiB"
    return f"{value / _BYTES[unit]:.4g} {unit}"


def _show_kernels(cases: Sequence[tuple[Problem, Mapping[str, int]]], here: Target) -> None:
    from dcn_tvm import kernels

    console = Console()
    console.print(f"target: {here.spec}", soft_wrap=True, highlight=False, markup=False)
    for problem, sizes in cases:
        console.print(_explanation(problem, sizes, kernels.explain(problem, sizes)))
    console.print("cache:", str(builds().info().path), soft_wrap=True)


def _explanation(
    problem: Problem, sizes: Mapping[str, int], kernels: Sequence[KernelExplanation]
) -> Table:
    facts = {**dataclasses.asdict(problem), **sizes}
    title = ", ".join(f"{name} {value}" for name, value in facts.items())
    table = Table(
        *("kernel", "target", "choices", Column("from", overflow="fold"), "cached"),
        title=title,
        title_justify="left",
    )
    for kernel in kernels:
        choices = "\n".join(f"{name} = {value}" for name, value in kernel.choices.items())
        cached = "yes" if kernel.cached else "no"
        table.add_row(kernel.kernel, kernel.target, choices, kernel.provenance, cached)
    return table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(explain)
