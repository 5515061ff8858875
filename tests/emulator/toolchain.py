"""Building with g++: what is built once is found again, by processes that run side by side too."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COMPILER = "g++"


class CompileError(RuntimeError):
    """What g++ said of a source."""


@functools.cache
def available() -> str | None:
    """Why there is no emulator here, or None."""
    if not sys.platform.startswith("linux"):
        return f"the CUDA emulator runs on Linux, not on {sys.platform}"
    if shutil.which(COMPILER) is None:
        return f"the CUDA emulator is built with {COMPILER}, which is not on the PATH"
    return None


@functools.cache
def _common_key() -> bytes:
    """Changes with whatever a library depends on beside its own source."""
    digest = hashlib.sha256(platform.machine().encode())
    version = subprocess.run([COMPILER, "--version"], capture_output=True, check=True)
    digest.update(version.stdout)
    for file in sorted([*HERE.glob("*.hpp"), *HERE.glob("device/*.hpp")]):
        digest.update(file.read_bytes())
    return digest.digest()


def _folder() -> Path:
    """Where libraries are kept, for this user alone."""
    folder = Path(tempfile.gettempdir()) / f"dcn_tvm_emulator_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder


def library(name: str, source: str, flags: list[str]) -> Path:
    """The shared library of a C++ source, built where it is not there yet."""
    reason = available()
    if reason is not None:
        raise RuntimeError(reason)
    key = hashlib.sha256(_common_key() + repr(flags).encode() + source.encode()).hexdigest()[:24]
    built = _folder() / f"{name}-{key}.so"
    if built.exists():
        return built
    # The source stays beside the library: errors of a launch name its lines.
    text = built.with_suffix(".cpp")
    with tempfile.TemporaryDirectory(dir=_folder()) as aside:
        (Path(aside) / "source.cpp").write_text(source)
        command = [COMPILER, "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden"]
        command += ["-U_FORTIFY_SOURCE", "-I", str(HERE), "source.cpp", *flags, "-o", "library.so"]
        done = subprocess.run(command, cwd=aside, capture_output=True, text=True)
        if done.returncode:
            raise CompileError(done.stderr)
        (Path(aside) / "source.cpp").replace(text)
        (Path(aside) / "library.so").replace(built)
    return built


@functools.cache
def driver() -> Path:
    """The library that stands in for libcuda.so.1."""
    return library("driver", (HERE / "driver.cpp").read_text(), ["-O2", "-ldl"])
