"""The command line: `dcn-tvm bench | cache | demo | explain`, also as `python -m dcn_tvm`.

Commands import what they need when they run, so that `--help` answers at once. No command knows an
op: names come from the registry, options from the fields of the op's problem.
"""

from __future__ import annotations

import dataclasses
import typing
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dcn_tvm import ops, settings, suites
from dcn_tvm.problem import Problem

if TYPE_CHECKING:
    from dcn_tvm.cache import BuildCache
    from dcn_tvm.kernels import KernelExplanation

app = typer.Typer(
    help="Deformable operators compiled for this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="The compiled kernels kept on disk.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

WIDTH_OF_A_FILE = 160  # columns, where there is no terminal to ask

Threads = Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number if absent.")]


@contextmanager
def _user_input() -> Iterator[None]:
    """Answer what a user got wrong with one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError) as error:
        message = " ".join(str(error).split())
        Console(stderr=True).print(f"error: {message}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error


@app.command()
def bench(
    suite: Annotated[list[str] | None, typer.Argument(help="Suites; all if absent.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="Modes; all if absent.")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="For each problem and mode.")] = 3.0,
    threads: Threads = None,
    quick: Annotated[
        bool, typer.Option(help="A tiny problem of each op: does it all work?")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write every row to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write tables to this file.")] = None,
) -> None:
    """Time every op against its peers, and against a baseline that does less: conv2d or a copy."""
    with _user_input():
        cases = [case for name in suite or list(suites.SUITES) for case in _suite(name)]
    from dcn_tvm.bench import command, tables

    with _user_input():
        modes = command.check_modes(mode)
    _set_threads(threads)
    with Console(stderr=True).status("starting") as status:
        results = command.run_all(cases, modes, seconds=seconds, quick=quick, report=status.update)
    console = Console()
    tables.show(results, console if console.is_terminal else Console(width=WIDTH_OF_A_FILE))
    for path, text in ((json, tables.to_json), (markdown, tables.markdown)):
        if path is not None:
            path.write_text(text(results), encoding="utf-8")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")] = Path(
        "report"
    ),
    browse: Annotated[bool, typer.Option("--open", help="Show the report in a browser.")] = False,
    threads: Threads = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 100,
    seconds: Annotated[float, typer.Option(min=0, help="For measuring times.")] = 16.0,
) -> None:
    """Train a small deformable network on a photograph, check it, time it, write a report."""
    from dcn_tvm import demo as demonstration

    _set_threads(threads)
    path = demonstration.run(folder, Console(), steps=steps, seconds=seconds).resolve()
    typer.echo(f"report: {path}")
    if browse:
        webbrowser.open(path.as_uri())


@app.command()
def explain(
    op: Annotated[str, typer.Argument(help="The op's name.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Such as in_channels=64 kernel_size=3x3."),
    ] = None,
) -> None:
    """Tell which kernels a problem needs, with which choices, from where, and whether cached.

    A field's name may be shortened as long as it is unique. Without fields: the op's suite.
    """
    with _user_input():
        problems = _problems(op, fields or [])
    from dcn_tvm import kernels, target

    console = Console()
    facts = dataclasses.asdict(target.detect())
    console.print("target:", ", ".join(f"{name} {value}" for name, value in facts.items()))
    for problem in problems:
        console.print(_explanation(problem, kernels.explain(op, problem)))
    console.print("cache:", str(_cache().info().path), soft_wrap=True)


@cache_app.command("info")
def cache_info() -> None:
    """Tell where the compiled kernels are and how much room they take."""
    info = _cache().info()
    typer.echo(f"{info.path}: {info.entries} kernels, {info.bytes / 2**20:.1f} MiB")


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove the compiled kernels; they are compiled again when needed."""
    typer.echo(f"{_cache().clear()} kernels removed")


def _cache() -> BuildCache:
    from dcn_tvm.cache import BuildCache

    with _user_input():
        return BuildCache(settings.home() / "builds")


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _suite(name: str) -> Sequence[suites.Case]:
    if name not in suites.SUITES:
        raise ValueError(f"suite must be one of {', '.join(suites.SUITES)}, got {name}")
    return suites.SUITES[name]


def _problems(op: str, texts: Sequence[str]) -> list[Problem]:
    """Return the problem that the texts describe, or those of the op's suite."""
    registry = ops.registry()
    if op not in registry:
        raise ValueError(f"op must be one of {', '.join(registry)}, got {op}")
    kind = registry[op].problem
    described: list[Mapping[str, Any]] = [_parse(kind, texts)]
    if not texts:
        known = {field.name for field in dataclasses.fields(kind)}
        sizes = (case.sizes.items() for case in suites.SUITES.get(op, ()))
        described = [{name: size for name, size in s if name in known} for s in sizes]
    # Calls that differ in free sizes only have one problem.
    return list(dict.fromkeys(_make_problem(kind, values) for values in described))


def _make_problem(kind: type[Problem], described: Mapping[str, Any]) -> Problem:
    values = {"dtype": "float32", "layout": "nchw", **described}
    required = (f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING)
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{kind.op} also needs {', '.join(missing)}")
    return kind(**values)


def _parse(kind: type[Problem], texts: Sequence[str]) -> dict[str, Any]:
    """Return field values from texts such as "stride=2" or "kernel=3x3"."""
    values = {}
    types = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"expected FIELD=VALUE, got {text}")
        field = _complete(name, names)
        values[field] = _value(field, types[field], value)
    return values


def _complete(name: str, names: Sequence[str]) -> str:
    """Return the field that `name` means, in full or shortened."""
    found = [name] if name in names else [full for full in names if full.startswith(name)]
    if len(found) != 1:
        raise ValueError(f"field must be one of {', '.join(found or names)}, got {name}")
    return found[0]


def _value(field: str, kind: object, text: str) -> object:
    """Return `text` as a value of a field's type; one number stands for a pair of it."""
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{field} must be true or false, got {text}")
        return text.lower() == "true"
    parts = text.split("x")
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{field} must be made of whole numbers, got {text}")
    numbers = [int(part) for part in parts]
    length = len(typing.get_args(kind)) or 1
    if len(numbers) not in (1, length):
        raise ValueError(f"{field} must be {'x'.join('n' * length)}, got {text}")
    return numbers[0] if kind is int else tuple(numbers * (length // len(numbers)))


def _explanation(problem: Problem, kernels: Sequence[KernelExplanation]) -> Table:
    facts = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(problem).items())
    table = Table(
        "kernel", "target", "choices", "from", "cached", title=facts, title_justify="left"
    )
    for kernel in kernels:
        choices = "\n".join(f"{name} = {value}" for name, value in kernel.choices.items())
        cached = "yes" if kernel.cached else "no"
        table.add_row(kernel.kernel, kernel.target, choices, kernel.provenance, cached)
    return table


if __name__ == "__main__":
    app(prog_name="dcn-tvm")
