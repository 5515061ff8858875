"""`dcn-tvm gpu`: everything that needs a device, and what one without network has to be given."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dcn_tvm.cli.console import user_input, wide

NO_DEVICE = 2

commands = typer.Typer(help="Everything that needs a CUDA device.")


@commands.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path(
        "gpu-results"
    ),
    minutes: Annotated[float, typer.Option(min=0.1, help="For all of it.")] = 9.5,
    seconds: Annotated[float, typer.Option(min=0.01, help="For a row's contenders.")] = 0.2,
    cold: Annotated[
        bool, typer.Option("--cold", help="Overwrite the caches before each measured call.")
    ] = False,
    step: Annotated[list[str] | None, typer.Option(help="Only these; all if absent.")] = None,
    device: Annotated[str, typer.Option(hidden=True)] = "cuda",
    small: Annotated[bool, typer.Option("--small", hidden=True)] = False,
) -> None:
    """Check, tune and time every op on this machine's CUDA device.

    The same command goes on where the last one with this folder stopped. Exit code 2: no device,
    3: something is left to do, 1: something failed.
    """
    if context.invoked_subcommand is not None:
        return
    start = time.time()
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        Console(stderr=True).print(
            "error: torch sees no CUDA device here (`dcn-tvm gpu carry` packs what a machine with "
            "one and without network needs)",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(NO_DEVICE)
    from dcn_tvm.device import plan, report
    from dcn_tvm.device.items import Context

    with user_input():
        steps = plan.named(step)
    made = Context(out.absolute(), device, start + 60 * minutes, seconds, cold, small)
    code = plan.run(made, steps)
    report.show(made.out, wide())
    typer.echo(f"results: {made.out}")
    raise typer.Exit(code)


@commands.command()
def carry(
    folder: Annotated[Path, typer.Argument(help="For what is packed.")],
    python: Annotated[
        str | None, typer.Option(help="The version there, such as 3.12; as here if absent.")
    ] = None,
    compiler: Annotated[bool, typer.Option(help="With TVM's compiler.")] = True,
    tuning: Annotated[bool, typer.Option(help="With what tuning needs.")] = False,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="With kernels compiled here, for --arch.")
    ] = False,
    arch: Annotated[str, typer.Option(help="Of the device there.")] = "sm_90",
    has: Annotated[
        list[str] | None,
        typer.Option(metavar="PACKAGE", help="It is there, with all that it requires."),
    ] = None,
) -> None:
    """Pack what a machine with torch and CUDA lacks, for one without network.

    There: eval "$(python3 FOLDER/unpack.py)", or make gpu SITE=FOLDER. Packing the compiler takes
    minutes, the first time.
    """
    from dcn_tvm.device import carry as carrying
    from dcn_tvm.device import prebuilt

    status = Console(stderr=True)
    with user_input(), status.status("") as line:
        kernels = prebuilt.make(arch, line.update) if bundle else None
        try:
            parts = carrying.carry(
                folder,
                python=python,
                compiler=compiler,
                tuning=tuning,
                has=has or (),
                bundle=kernels,
                report=lambda name: line.update(f"packing {name}"),
            )
        except (carrying.CarryError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
    table = Table("package", "version", "MB", "MB packed", "Python")
    for part in parts:
        sizes = (f"{size / 1e6:.2f}" for size in (part.unpacked_bytes, part.bytes))
        table.add_row(part.name, part.version, *sizes, "one" if part.bound else "any")
    wide().print(table)
    typer.echo(f"{folder}: {sum(part.bytes for part in parts) / 1e6:.1f} MB")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(commands, name="gpu")
