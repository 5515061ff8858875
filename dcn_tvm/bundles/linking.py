"""Linking for other machines: shared libraries that any Linux of their architecture can load.

They name no library that they need, and so no version of one: what they call (memset, threads,
tvm-ffi) is in every Python process that loads them. A library linked as usual on a new system would
ask for the C library of that system, which an older one does not have.

For another architecture than this machine's a compiler of GCC's, clang with lld, or zig will do.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dcn_tvm import openmp
from dcn_tvm.bundles.targets import Host, this_host
from dcn_tvm.errors import CompileError

_FLAGS = ("-O2", "-fPIC", "-shared")
_SELF_CONTAINED = ("-nodefaultlibs", "-lgcc")
_TIMEOUT_S = 300.0
_found: dict[tuple[str, Host], list[str]] = {}  # by CC and what it links for


def link(sources: Sequence[Path], path: Path, host: Host) -> None:
    """Make a shared library of object files and C sources.

    Raises:
        CompileError: there is no compiler for that machine, or it failed; says how to get one.
    """
    name = _variable(host)
    key = (os.environ.get(name, ""), host)
    known = _found.get(key)
    failures = []
    for compiler in [known] if known else _compilers(host):
        flags = _SELF_CONTAINED if host.system == "linux" else ()
        command = [*compiler, *_FLAGS, "-o", str(path), *map(str, sources), *flags]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip()
            failures.append(f"{shlex.join(command)}: {reason}")
            continue
        _found[key] = compiler
        return
    raise CompileError(_advice(host, failures))


def _compilers(host: Host) -> Iterator[list[str]]:
    """Yield the commands that may link for a host, the likeliest first."""
    if named := shlex.split(os.environ.get(_variable(host), "")):
        yield named
        return
    if host == this_host():
        if compiler := openmp.find_compiler():
            yield compiler
        return
    if host.system != "linux":
        return
    triple = _triple(host)
    candidates = [
        [f"{triple}-gcc"],
        ["clang", f"--target={triple}", "-fuse-ld=lld"],
        ["zig", "cc", "-target", triple],
    ]
    yield from (candidate for candidate in candidates if shutil.which(candidate[0]))
    if importlib.util.find_spec("ziglang"):
        yield [sys.executable, "-m", "ziglang", "cc", "-target", triple]


def _triple(host: Host) -> str:
    return f"{host.arch.replace('-', '_')}-{host.system}-gnu"


def _variable(host: Host) -> str:
    """The environment variable that names a compiler for another machine, as build systems do."""
    return "CC" if host == this_host() else f"CC_{_triple(host).replace('-', '_')}"


def _advice(host: Host, failures: Sequence[str]) -> str:
    if host == this_host():
        wanted = "install cc, gcc or clang, or set CC"
    elif host.system == "linux":
        debian = f"gcc-{_triple(host).replace('_', '-')}"
        wanted = (
            f"apt-get install {debian}, or pip install ziglang, or set {_variable(host)} to the "
            "command of a cross compiler"
        )
    else:
        wanted = "compile on such a machine"
    tried = "; ".join(failures) or "none was found"
    return f"a compiler that links for {host} is needed: {wanted} ({tried})"
