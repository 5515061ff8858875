"""The compiler of device code: nvcc of a CUDA toolkit, or NVRTC, which torch brings.

Both compile the same source, with the same arithmetic: no fast math, products and sums fused. The
toolkit's comes first, as it is there because somebody installed it; where it fails on something
that is not the source (no C++ compiler, or one that it does not know, or an architecture that is
too new for it), NVRTC is tried. `DCN_TVM_CUDA_COMPILER` asks for one of them and no other.
"""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dcn_tvm import settings
from dcn_tvm.cuda import nvrtc
from dcn_tvm.errors import CompileError

_TIMEOUT_S = 600.0  # an unrolled kernel for several seconds of ptxas, on a machine that is busy
_RELEASE = re.compile(r"release ([0-9.]+)")


class Compiler(Protocol):
    """An installed compiler; as a string, its name and where it is."""

    @property
    def version(self) -> str:
        """Its name and its version."""

    def compile(self, source: str, arch: str) -> bytes:
        """Return the cubin of CUDA C++ source for "sm_90" and the like."""


@dataclass(frozen=True)
class Nvcc:
    """The compiler of a CUDA toolkit."""

    path: Path

    def __str__(self) -> str:
        return f"nvcc ({self.path})"

    @property
    def version(self) -> str:
        """Such as "nvcc 13.0".

        Raises:
            CompileError: it cannot be run.
        """
        return _nvcc_version(self.path)

    def compile(self, source: str, arch: str) -> bytes:
        """Return the cubin of CUDA C++ source for "sm_90" and the like.

        Raises:
            CompileError: it cannot be run, refuses the source or the architecture, or does not end.
        """
        with tempfile.TemporaryDirectory() as folder:
            draft, cubin = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
            draft.write_text(source)
            flags = ("--cubin", f"--gpu-architecture={arch}", "--std=c++17")
            _run([str(self.path), *flags, "--output-file", str(cubin), str(draft)])
            return cubin.read_bytes()


def compile(source: str, arch: str) -> bytes:
    """Return the cubin of CUDA C++ source, by the first compiler that can make it.

    Args:
        source: of kernels with C linkage.
        arch: such as "sm_90".

    Raises:
        CompileError: there is no compiler, or none of them can.
    """
    failures = []
    for compiler in found():
        try:
            return compiler.compile(source, arch)
        except CompileError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise CompileError("; ".join(map(str, failures)))


def version() -> str:
    """Name and version of the compiler that is tried first.

    Raises:
        CompileError: there is no compiler, or it cannot be run.
    """
    return found()[0].version


def found() -> tuple[Compiler, ...]:
    """Return the compilers of this machine in the order to be tried, at least one.

    Raises:
        CompileError: there is none, or none of the kind that `DCN_TVM_CUDA_COMPILER` asks for.
        ValueError: `DCN_TVM_CUDA_COMPILER` is nonsense.
    """
    asked = settings.cuda_compiler()
    kinds: dict[str, Callable[[], Compiler | None]] = {"nvcc": _find_nvcc, "nvrtc": nvrtc.find}
    compilers = (find() for kind, find in kinds.items() if asked in (None, kind))
    usable = tuple(compiler for compiler in compilers if compiler is not None)
    if not usable:
        raise CompileError(
            "kernels for a GPU need a CUDA compiler, and none was found. Looked for: "
            + "; ".join(text for kind, text in _LOOKED_FOR.items() if asked in (None, kind))
            + ("" if asked is None else f". DCN_TVM_CUDA_COMPILER={asked} leaves the other out")
        )
    return usable


_LOOKED_FOR = {
    "nvcc": "nvcc in the folders bin of CUDA_HOME and CUDA_PATH, on the PATH and in /usr/local/cuda"
    " (install the CUDA toolkit, 12.0 or later, or set CUDA_HOME)",
    "nvrtc": "NVRTC and CUDA's headers in Python packages and in the toolkit's folders (`pip "
    "install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl`, or for CUDA 12 `pip install "
    "nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12`)",
}


def _find_nvcc() -> Nvcc | None:
    named, others = nvrtc.toolkits()[:-2], nvrtc.toolkits()[-2:]
    for folder in (*named, None, *others):
        where = None if folder is None else str(folder / "bin")
        if path := shutil.which("nvcc", path=where):
            return Nvcc(Path(path))
    return None


@functools.cache
def _nvcc_version(path: Path) -> str:
    text = _run([str(path), "--version"])
    release = _RELEASE.search(text)
    return f"nvcc {release[1]}" if release else "nvcc"


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"{shlex.join(command)} took more than {_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise CompileError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        reason = (done.stderr + done.stdout).strip() or f"exit status {done.returncode}"
        raise CompileError(f"{shlex.join(command)} failed: {reason}")
    return done.stdout
