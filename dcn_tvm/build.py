"""From a problem to a library: schedule, compile, link. The only user of TVM's compiler."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcn_tvm import _resources, openmp, settings
from dcn_tvm.errors import CompileError
from dcn_tvm.knobs import Choice, Knobs
from dcn_tvm.problem import Problem
from dcn_tvm.space import Space, explore
from dcn_tvm.target import Target

FAMILIES = {"llvm": "cpu"}  # folder of schedules for each of TVM's target kinds
SYMBOL = "dcn_tvm_kernel"
_PACKAGES = ("apache-tvm", "apache-tvm-ffi")

Recorded = tuple[tuple[str, Choice], ...] | None


@dataclass(frozen=True)
class Request:
    """One kernel of one problem, for exactly the outputs asked for.

    Attributes:
        problem: the op's static facts.
        kernel: its name in the op's contract.
        outputs: the kernel's outputs that are wanted.
        recorded: choices of records, as sorted pairs, to be tried in this order before the default;
            None is a record that says to take the default.
    """

    problem: Problem
    kernel: str
    outputs: tuple[str, ...]
    recorded: tuple[Recorded, ...] = ()

    def __str__(self) -> str:
        p = self.problem
        return f"{p.op}.{self.kernel} -> {', '.join(self.outputs)} ({p.dtype}, {p.layout})"


@dataclass(frozen=True)
class Scheduled:
    """A scheduled function, the choices that made it so, and which of the records chose them."""

    function: Any
    choices: dict[str, Choice]
    place: int | None = None  # in `Request.recorded`; None for the default

    def content_key(self, target: Target) -> str:
        """Hash of what the compiled code depends on: scheduled IR, target and versions."""
        parts = (self.function.script(), target.key(), *versions())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def schedule(request: Request, target: Target, knobs: Knobs | None = None) -> Scheduled:
    """Run the op's schedule with the choices that `knobs` make: by default, its own defaults.

    Raises:
        NotImplementedError: the target's family has no schedule for this op.
        ValueError: the recorded choices do not fit the schedule.
    """
    knobs = knobs or Knobs()
    function = _schedule_of(request, target)(request.problem, target, knobs, request.outputs)
    return Scheduled(function.with_attr("global_symbol", SYMBOL), knobs.finish())


def schedule_recorded(request: Request, target: Target) -> Scheduled:
    """Run the op's schedule with the first recorded choices that it allows, else its defaults."""
    for place, recorded in enumerate(request.recorded):
        if recorded is None:
            return replace(schedule(request, target), place=place)
        try:
            return replace(schedule(request, target, Knobs(dict(recorded))), place=place)
        except ValueError:  # of a neighbour, or of another version of the schedule
            continue
    return schedule(request, target)


def space(request: Request, target: Target) -> Space:
    """Return all choices that the request's schedule allows on the target.

    Raises:
        NotImplementedError: the target's family has no schedule for this op.
    """
    function = _schedule_of(request, target)
    return explore(lambda knobs: function(request.problem, target, knobs, request.outputs))


def _schedule_of(request: Request, target: Target) -> Callable[..., Any]:
    """The schedule of the request's kernel in the target's family."""
    op = request.problem.op
    name = f"dcn_tvm.schedules.{FAMILIES.get(target.kind)}.{op}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # not the schedule is missing, but something that it imports
        raise NotImplementedError(f"{op} has no schedule for target {target.kind}") from error
    function: Callable[..., Any] = getattr(module, request.kernel)
    return function


def compile(request: Request, scheduled: Scheduled, target: Target) -> Any:
    """Compile in this process and return TVM's runtime module.

    Raises:
        CompileError: TVM or LLVM refused.
    """
    import tvm

    module = tvm.IRModule({SYMBOL: scheduled.function})
    try:
        with _announced(f"compiling {request} for {target.id}"):
            return tvm.compile(module, target=tvm.target.Target(target.to_tvm_dict())).mod
    except (RuntimeError, TypeError, ValueError) as error:  # TVM's own are RuntimeErrors
        raise CompileError(f"cannot compile {request} for {target.key()}: {error}") from error


def link(module: Any, path: Path) -> None:
    """Write the compiled module as a shared library that needs only apache-tvm-ffi.

    Raises:
        CompileError: there is no C compiler, or it failed.
    """
    compiler = openmp.find_compiler()
    if compiler is None:
        raise CompileError("no C compiler was found: install cc, gcc or clang, or set CC")
    with tempfile.TemporaryDirectory() as folder:
        objects = Path(folder) / "kernel.o"
        module.write_to_file(str(objects), "o")
        command = [*compiler, "-shared", "-fPIC", "-o", str(path), str(objects)]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            reason = getattr(error, "stderr", None) or error
            raise CompileError(f"{shlex.join(command)} failed: {reason}") from error


@functools.cache
def versions() -> tuple[str, ...]:
    """Versions of the packages that generate code."""
    return tuple(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)


@functools.cache
def fingerprint() -> str:
    """Hash of the sources that decide what a request compiles to."""
    package = Path(__file__).parent
    files = [package / name for name in ("build.py", "knobs.py", "problem.py", "target.py")]
    files += sorted((package / "ops").glob("*.py"))
    files += sorted((package / "te").glob("*.py"))
    files += sorted(_resources.root("schedules").rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


_warned = False


def warn_not_kept(reason: str) -> None:
    """Say once why builds are not kept."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"kernels are compiled in memory and not kept on disk, so every process compiles them "
            f"again: {reason}",
            stacklevel=2,
        )


@contextlib.contextmanager
def _announced(text: str) -> Iterator[None]:
    """Show what is going on while it lasts, on a terminal or where progress is asked for."""
    if not settings.progress():
        yield
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(text):
        yield
    console.print(f"dcn_tvm: {text}: done", highlight=False)
