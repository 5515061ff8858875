"""`dcn-tvm compile`: kernels for other machines, in a bundle that needs no compiler there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from dcn_tvm.cli import workloads
from dcn_tvm.cli.console import user_input, wide
from dcn_tvm.errors import CompileError

if TYPE_CHECKING:
    from dcn_tvm.bundles.making import Job
    from dcn_tvm.bundles.manifest import Manifest
    from dcn_tvm.bundles.targets import Code


def compile(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Suites, or an op and FIELD=VALUE for its fields and sizes."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The bundle's folder.")
    ] = Path("bundle"),
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="cpu (this machine's; if absent), cpu:x86-64-v3, cpu:aarch64, cuda:sm_90, each "
            "with ,FACT=VALUE if need be. Several make a bundle for all of them.",
        ),
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help="As an argument.")] = None,
    op: Annotated[str | None, typer.Option(help="As the first argument.")] = None,
    from_model: Annotated[
        list[Path] | None,
        typer.Option(help="What a model met: a file of record_problems, or a .py file to run."),
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Of suites; float32 if absent.")] = None,
    layout: Annotated[list[str] | None, typer.Option(help="Of suites; nchw if absent.")] = None,
    inference: Annotated[bool, typer.Option("--inference", help="No backward kernels.")] = False,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GRADIENTS",
            help="Such as grad_input,grad_weight: what backward will be asked for at once. Say it "
            "again for other sets. If absent: all, and all but grad_input.",
        ),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="On CUDA, deterministic kernels, too.")
    ] = False,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="On CUDA, kernels that may round to TF32, too.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ARCH",
            help="Of the machines with the GPUs: x86-64 or aarch64; as here if absent.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there.")
    ] = False,
) -> None:
    """Compile kernels into a bundle, which runs where there is no compiler.

    No device is needed here: a GPU's kernels need nvcc or NVRTC, another CPU's a cross compiler
    as a linker. There, dcn_tvm.load_bundle(DIR) or DCN_TVM_BUNDLES=DIR uses it, with torch, numpy
    and apache-tvm-ffi.
    """
    from dcn_tvm.bundles import making, targets

    with user_input():
        names = _names(what, suite, op)
        chosen = workloads.named(names, from_model, dtype, layout, sizes=False)
        codes = _codes(target or ["cpu"], deterministic=deterministic, tf32=tf32)
        if inference and outputs:
            raise ValueError("--inference and --outputs exclude each other")
        gradients = [text.replace(" ", "").split(",") for text in outputs or []]
        launcher = None if host is None else targets.parse_host(host)
        jobs = making.plan(chosen, codes, gradients, inference=inference, host=launcher)
        making.check_place(output, overwrite=overwrite)
    console = wide()
    try:
        with user_input():
            made = _make(output, jobs, overwrite=overwrite, console=console)
    except (CompileError, NotImplementedError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    _show(made, console)
    size = sum(library.bytes for library in made.libraries())
    typer.echo(f"{output}: {len(made.kernels)} kernels, {size / 2**20:.1f} MiB")
    typer.echo(f"sha256: {made.sha256}")


def _names(what: Sequence[str] | None, suite: Sequence[str] | None, op: str | None) -> list[str]:
    """Return the arguments as if all had come without options."""
    names = [*([op] if op else []), *(what or [])]
    if suite and any("=" in name for name in names):
        raise ValueError("an op's fields and --suite exclude each other")
    return [*names, *(suite or [])]


def _codes(texts: Sequence[str], *, deterministic: bool, tf32: bool) -> list[Code]:
    """Return the targets, and those of GPUs also in the manners asked for."""
    from dcn_tvm.bundles import targets
    from dcn_tvm.gpu import Gpu

    codes: list[Code] = []
    for code in map(targets.parse, texts):
        codes.append(code)
        if isinstance(code, Gpu):
            codes += [replace(code, deterministic=True)] if deterministic else []
            codes += [replace(code, tf32=True)] if tf32 else []
            codes += (
                [replace(code, deterministic=True, tf32=True)] if deterministic and tf32 else []
            )
    if (deterministic or tf32) and not any(isinstance(code, Gpu) for code in codes):
        raise ValueError("--deterministic and --tf32 are for CUDA; kernels for CPUs always repeat")
    return codes


def _make(output: Path, jobs: Sequence[Job], *, overwrite: bool, console: Console) -> Manifest:
    from dcn_tvm.bundles import making

    progress = Progress(
        *(TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with progress:
        bar = progress.add_task("kernels", total=len(jobs))

        def started(job: Job, number: int) -> None:
            progress.update(bar, completed=number, description=str(job))

        return making.make(output, jobs, overwrite=overwrite, started=started)


def _show(made: Manifest, console: Console) -> None:
    from dcn_tvm.bundles import targets

    table = Table("kernel", "problem", "target", "KiB", Column("choices from", overflow="fold"))
    for kernel in made.kernels:
        facts = kernel.problem.particulars()
        table.add_row(
            f"{kernel.problem.op}.{kernel.kernel} -> {', '.join(kernel.outputs)}",
            ", ".join(f"{name} {value}" for name, value in facts.items()),
            targets.name(kernel.code),
            f"{kernel.library.bytes / 1024:.0f}",
            kernel.provenance,
        )
    console.print(table)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compile)
