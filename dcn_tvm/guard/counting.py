"""How many instructions kernels execute: one process of valgrind's callgrind calls them all.

1. Each call's arguments are drawn as the benchmark's are and written beside a copy of the kernel's
   library, which has a name of its own: callgrind tells by files who executed what.
2. A C program calls the kernels in turn, on one thread. It is compiled here in a moment.
   `torch.utils.benchmark.Timer.collect_callgrind` counts a process of Python that imports torch,
   which took more than a minute and a half for one statement.
3. Only what a library executes itself is counted, while its kernel runs: not memset and cosf, of
   which the C library has versions for every processor, nor what the linker adds.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from dcn_tvm import openmp, target
from dcn_tvm.errors import CompileError
from dcn_tvm.guard import headers
from dcn_tvm.guard.library import library
from dcn_tvm.guard.plan import TARGET, Guarded
from dcn_tvm.tuning.call import prepare

INSTALL = "apt-get install valgrind, or dnf install valgrind"
_SOURCE = Path(__file__).with_name("call.c")
_ENTRY = "__tvm_ffi_dcn_tvm_kernel"
_TIMEOUT_S = 600.0
_VALGRIND = (
    *("valgrind", "--command-line-only=yes", "-q"),
    *("--tool=callgrind", "--callgrind-out-file=counts"),
    *(f"--toggle-collect={_ENTRY}", "--compress-strings=no", "--compress-pos=no"),
)


def absent_because() -> str | None:
    """Return why nothing can be counted here and what to do, or None if it can."""
    if not sys.platform.startswith("linux"):
        return f"valgrind counts on Linux, and this is {platform.system()}"
    if refusal := target.detect().refusal(TARGET):
        return f"the kernels that are counted cannot run here: {refusal}"
    if shutil.which("valgrind") is None:
        return f"there is no valgrind: {INSTALL}"
    if openmp.find_compiler() is None:
        return "there is no C compiler: install cc, gcc or clang, or set CC"
    return None


def count(
    kernels: Sequence[Guarded], started: Callable[[str], None] = lambda what: None
) -> dict[str, int]:
    """Return the instructions that one call of each kernel executes, by the kernels' names.

    Args:
        kernels: to be counted.
        started: told what is done next.

    Raises:
        CompileError: a kernel cannot be compiled, or fails, or valgrind does.

    Example:
        >>> count(guarded(["roi_pool"])[:1])
        {'roi_pool.forward nchw 1x256x10x14 12 boxes max': 770280}
    """
    with tempfile.TemporaryDirectory(prefix="dcn_tvm_guard_") as scratch:
        folder = Path(scratch).resolve()
        lines: list[str] = []
        for number, kernel in enumerate(kernels):
            started(f"{number + 1} of {len(kernels)}: {kernel.name}")
            lines += _call(kernel, number, folder)
        (folder / "calls").write_text("\n".join(lines) + "\n")
        _compile(folder / "call")
        started(f"counting {len(kernels)} kernels")
        _run([*_VALGRIND, "./call", "calls"], folder)
        with (folder / "counts").open() as file:
            counts = own_instructions(file)
    return {kernel.name: counts[str(folder / _library(i))] for i, kernel in enumerate(kernels)}


def _library(number: int) -> str:
    return f"{number}.so"


def _call(kernel: Guarded, number: int, folder: Path) -> list[str]:
    """Put a kernel's library and arguments into the folder and return what call.c reads."""
    shutil.copyfile(library(kernel.request), folder / _library(number))
    call = prepare(kernel.request, kernel.sizes)
    taken = sum(isinstance(argument, torch.Tensor) for argument in call.arguments)
    taken -= len(kernel.request.outputs)  # tensors that are filled come after those that are read
    lines = [f"kernel ./{_library(number)}"]
    for place, argument in enumerate(call.arguments):
        if not isinstance(argument, torch.Tensor):
            lines.append(f"scalar {argument!r}")
            continue
        file = f"{number}.{place}" if place < taken else "-"
        if place < taken:
            argument.numpy().tofile(folder / file)
        sizes = " ".join(map(str, argument.shape))
        lines.append(f"tensor {file} {argument.dim()} {sizes}")
    return [*lines, "call"]


def _compile(path: Path) -> None:
    """Compile the program that calls kernels, with what launches their loops."""
    compiler = openmp.find_compiler()
    if compiler is None:
        raise CompileError("no C compiler was found: install cc, gcc or clang, or set CC")
    flags = ["-O1", "-rdynamic", "-pthread", *(f"-I{path}" for path in headers.folders())]
    sources = (str(_SOURCE), str(openmp.SOURCE))
    _run([*compiler, *flags, *sources, "-ldl", "-lm", "-o", str(path)], path.parent)


def _run(command: Sequence[str], folder: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C"}  # numbers have points
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        raise CompileError(
            f"{command[0]} failed ({done.returncode}): {done.stderr.strip()[-2000:]}"
        )


def own_instructions(lines: Iterable[str]) -> dict[str, int]:
    """Return the instructions that the code of each file executed itself, by the file's path.

    Args:
        lines: what callgrind writes, without compression.

    Source: valgrind's manual, Callgrind Format Specification.
    """
    counts: dict[str, int] = {}
    file, inclusive = "", False
    for line in lines:
        name, equals, value = line.rstrip("\n").partition("=")
        if equals:
            file = value if name == "ob" else file
            inclusive = name == "calls"  # the next line is what the callee executed
        elif line[:1].isdigit():
            if not inclusive:
                counts[file] = counts.get(file, 0) + int(line.split()[1])
            inclusive = False
    return counts
