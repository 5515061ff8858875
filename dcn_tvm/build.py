"""From a problem to a library: schedule, compile, link. The only user of TVM's compiler."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import platform
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from dcn_tvm import _resources, openmp, settings
from dcn_tvm import target as targets
from dcn_tvm.cuda import compiler, lower
from dcn_tvm.errors import CompileError
from dcn_tvm.gpu import SOURCE_ONLY, Gpu
from dcn_tvm.knobs import Choice, Knobs
from dcn_tvm.problem import Problem
from dcn_tvm.space import Space, explore
from dcn_tvm.target import Target

# For each of TVM's target kinds the folders of its schedules; the first that has a kernel's counts.
FAMILIES = {
    "llvm": ("cpu",),
    "cuda": ("cuda", "gpu"),
    **dict.fromkeys(SOURCE_ONLY, ("gpu",)),
}
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
        target: the GPU that it is for; None is this machine's CPU.
    """

    problem: Problem
    kernel: str
    outputs: tuple[str, ...]
    recorded: tuple[Recorded, ...] = ()
    target: Gpu | None = None

    def __str__(self) -> str:
        p, where = self.problem, f", {self.target.key()}" if self.target else ""
        return f"{p.op}.{self.kernel} -> {', '.join(self.outputs)} ({p.dtype}, {p.layout}{where})"


@dataclass(frozen=True)
class Scheduled:
    """A scheduled function, the choices that made it so, and which of the records chose them."""

    function: Any
    choices: dict[str, Choice]
    place: int | None = None  # in `Request.recorded`; None for the default

    def content_key(self, target: Target | Gpu) -> str:
        """Hash of what the compiled code depends on: scheduled IR, target and versions.

        Raises:
            CompileError: the target is a GPU, and there is no compiler for it.
        """
        parts = [self.function.script(), target.key(), *versions()]
        if isinstance(target, Gpu):
            parts += [any_host().key(), compiler.version(), _digest(_launcher())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def schedule(request: Request, target: Target | Gpu, knobs: Knobs | None = None) -> Scheduled:
    """Run the op's schedule with the choices that `knobs` make: by default, its own defaults.

    Raises:
        NotImplementedError: the target's family has no schedule for this op.
        ValueError: the recorded choices do not fit the schedule.
    """
    knobs = knobs or Knobs()
    function = _schedule_of(request, target)(request.problem, target, knobs, request.outputs)
    return Scheduled(function.with_attr("global_symbol", SYMBOL), knobs.finish())


def schedule_recorded(request: Request, target: Target | Gpu) -> Scheduled:
    """Run the op's schedule with the first recorded choices that it allows, else its defaults."""
    for place, recorded in enumerate(request.recorded):
        if recorded is None:
            return replace(schedule(request, target), place=place)
        try:
            return replace(schedule(request, target, Knobs(dict(recorded))), place=place)
        except ValueError:  # of a neighbour, or of another version of the schedule
            continue
    return schedule(request, target)


def space(request: Request, target: Target | Gpu) -> Space:
    """Return all choices that the request's schedule allows on the target.

    Raises:
        NotImplementedError: the target's family has no schedule for this op.
    """
    function = _schedule_of(request, target)
    return explore(lambda knobs: function(request.problem, target, knobs, request.outputs))


def _schedule_of(request: Request, target: Target | Gpu) -> Callable[..., Any]:
    """The schedule of the request's kernel in the first of the target's families that has it."""
    op = request.problem.op
    for family in FAMILIES.get(target.kind, ()):
        name = f"dcn_tvm.schedules.{family}.{op}"
        try:
            function = getattr(importlib.import_module(name), request.kernel, None)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # not the schedule is missing, but something that it imports
            continue
        if callable(function):
            return cast("Callable[..., Any]", function)
    raise NotImplementedError(f"{op} has no schedule for target {target.kind}")


def compile(
    request: Request, scheduled: Scheduled, target: Target | Gpu, host: Target | None = None
) -> Any:
    """Compile in this process and return TVM's runtime module.

    Args:
        request: what is compiled, for messages.
        scheduled: its function.
        target: that it is scheduled for.
        host: of a GPU, the CPU of the part that launches kernels; by default any of this machine's
            architecture.

    Raises:
        CompileError: TVM, LLVM or the GPU's compiler refused.
    """
    import tvm

    try:
        with _announced(f"compiling {request} for {target.id}"):
            if isinstance(target, Gpu):
                return _compile_for_gpu(scheduled.function, target, host or any_host())
            module = tvm.IRModule({SYMBOL: scheduled.function})
            return tvm.compile(module, target=tvm.target.Target(target.to_tvm_dict())).mod
    except (CompileError, RuntimeError, TypeError, ValueError) as error:  # TVM's: RuntimeErrors
        raise CompileError(f"cannot compile {request} for {target.key()}: {error}") from error


def _compile_for_gpu(function: Any, target: Gpu, host: Target) -> Any:
    if target.kind != "cuda":
        raise CompileError(f"kernels can be launched on cuda, not on {target.kind}")
    lowered = lower.lower(function, target.to_tvm_dict(), host.to_tvm_dict())
    return lower.assemble(lowered, compiler.compile(lowered.source, target.arch))


@functools.cache
def any_host() -> Target:
    """Any CPU of this machine's architecture: what launches kernels gains nothing from more."""
    level = targets.levels(targets.arch_of(platform.machine()))[0]
    try:
        return targets.parse(level, foreign=True)
    except ValueError:  # an architecture of which nothing is known
        return targets.detect()


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
    names = ("build.py", "gpu.py", "knobs.py", "problem.py", "target.py")
    package = Path(__file__).parent
    files = [package / name for name in names]
    files += sorted((package / "ops").glob("*.py"))
    files += sorted((package / "te").rglob("*.py"))
    files += sorted(_resources.root("schedules").rglob("*.py"))
    return _digest((*files, *_launcher()))


def _launcher() -> tuple[Path, ...]:
    """The files that make a GPU's library of a scheduled function."""
    folder = Path(__file__).parent / "cuda"
    return tuple(sorted((*folder.rglob("*.py"), *folder.rglob("*.ll"))))


def _digest(files: Iterable[Path]) -> str:
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
