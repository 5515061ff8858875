"""TVM's parallel loops on the OpenMP pool that torch uses, and scratch without TVM's runtime.

A compiled kernel reaches its runtime through three pointers that tvm-ffi fills in when it loads the
library: launch tasks, allocate scratch, free scratch. `install` registers our own. Two thread pools
in one process would fight for the cores (a layer between torch's ops takes 5.0 ms on TVM's pool and
2.7 ms on torch's); here kernels follow `torch.set_num_threads()`, pin no thread, and need neither
libtvm_runtime nor `import tvm`, which costs 2 s.

1. The shim is C, compiled once per machine and kept in the build cache; OpenMP comes in as four
   addresses, so the machine needs neither omp.h nor a libgomp of its own.
2. Without a C compiler the launch alone is loaded as LLVM IR text by TVM's LLVM. TVM is in the
   process then anyway, because kernels are compiled in memory, and so are its scratch functions.
   C says the rest (a cache of blocks, thread exit, errors) in half the lines of IR; IR needs no
   compiler: the short half in both languages is less code than either of them alone.
3. With neither, a bundle of compiled kernels brings the shim for its machine along: `offer`.
4. Where torch has no OpenMP with GNU's entry points (macOS, Windows), TVM keeps its own pool with
   as many unpinned threads as there are cores. It does not follow `torch.set_num_threads()`, and
   the environment that sizes it must be read before anything else has used it.

A forked child runs its kernels on one thread: the parent's pool does not survive a fork, and
libgomp waits for it forever, as in torch's own operators. DataLoader workers want one anyway.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from dcn_tvm import settings
from dcn_tvm.cache import BuildCache
from dcn_tvm.errors import CacheError, CompileError

_Shim = tuple[Callable[[], object], Callable[[], object]]  # register, set_serial
_FLAGS = ("-O2", "-fPIC", "-shared")
_ENTRY_POINTS = (
    "GOMP_parallel",
    "omp_get_max_threads",
    "omp_get_thread_num",
    "omp_get_num_threads",
)

SOURCE, _IR = (Path(__file__).with_name(f"openmp.{kind}") for kind in ("c", "ll"))

_offers: list[Callable[[], Path | None]] = []
_lock = threading.Lock()
_register: Callable[[], object] | None = None
_set_serial: Callable[[], object] | None = None
_pool = ""
_forked = False


def install() -> str:
    """Make the kernels that are loaded from now on run on torch's OpenMP pool.

    Call it before every load of a kernel: `import tvm` registers TVM's own functions whenever it
    happens. After the first call it takes less than a microsecond.

    Returns:
        "openmp", or "tvm" where torch's OpenMP was not found and TVM keeps its own threads.
    """
    if _register is None:
        with _lock:
            if _register is None:
                _start()
    assert _register is not None
    _register()
    return _pool


def offer(find: Callable[[], Path | None]) -> None:
    """Take the shim from `find`, if that has one, before one is compiled here."""
    _offers.append(find)


def find_compiler() -> list[str] | None:
    """Return the command of the C compiler: `CC` if set, else cc, gcc or clang; None if none."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    return None


def trust_fork() -> None:
    """Let this forked child use several threads: its parent never started any, nor did torch there.

    Call it before the first kernel is loaded. Nobody can find out whether it is so; where it is
    not, kernels hang.
    """
    global _forked
    _forked = False


def _start() -> None:
    global _pool, _register, _set_serial
    openmp = _find_openmp()
    if openmp is None:
        register, _set_serial = _use_tvm_pool()
    else:
        register, _set_serial = _load_library(openmp) or _load_ir(openmp)
    _pool = "openmp" if openmp else "tvm"
    if _forked:
        _set_serial()
    _register = register  # last: it tells other threads that all is set


def _after_fork() -> None:
    global _forked, _lock
    _forked, _lock = True, threading.Lock()  # the old one may be held by a thread that is no more
    if _set_serial is not None:
        _set_serial()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _find_openmp() -> dict[str, int] | None:
    """Return the addresses of OpenMP's entry points, those that torch's own calls reach."""
    for library in _openmp_libraries():
        with contextlib.suppress(AttributeError):
            return {
                name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
                for name in _ENTRY_POINTS
            }
    return None


def _openmp_libraries() -> Iterator[ctypes.CDLL]:
    # As the dynamic linker does for torch: first what is global (a preloaded OpenMP is), then what
    # libtorch_cpu is linked to. Torch itself is not loaded for this: it takes a second.
    if not sys.platform.startswith("linux"):
        return
    yield ctypes.CDLL(None)
    spec = importlib.util.find_spec("torch")
    pattern = "libtorch_cpu.so" if "torch" in sys.modules else "libgomp*.so*"
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in sorted(Path(folder, "lib").glob(pattern)):
            yield ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _load_library(openmp: dict[str, int]) -> _Shim | None:
    """Load the C shim that is offered, cached or compiled now; None if there is no way to one."""
    importlib.import_module("tvm_ffi")  # it loads libtvm_ffi, which the shim calls
    library = next(_libraries(), None)
    if library is None:
        return None
    if library.dcn_tvm_start(*(ctypes.c_void_p(openmp[name]) for name in _ENTRY_POINTS)):
        raise CompileError("the process has no thread-specific key left for the kernels' scratch")
    return library.dcn_tvm_register, library.dcn_tvm_set_serial


def _libraries() -> Iterator[ctypes.PyDLL]:
    for find in (*_offers, _compiled):
        try:
            if path := find():
                yield ctypes.PyDLL(str(path))  # for ever: threads that end later run end_thread
        except (CompileError, CacheError, OSError) as error:
            warnings.warn(f"the C shim that launches kernels is not used: {error}", stacklevel=6)


def _compiled() -> Path | None:
    cache = BuildCache(settings.home() / "builds")
    system = (platform.machine(), *platform.libc_ver(), *_FLAGS)
    key = hashlib.sha256("\n".join((*system, SOURCE.read_text())).encode()).hexdigest()
    compiler = find_compiler()
    entry = cache.fetch(key)
    if entry is None and compiler is not None:
        facts = {"kernel": "openmp shim", "compiler": shlex.join(compiler)}
        entry = cache.store(key, key, functools.partial(_compile, compiler), facts)
    return None if entry is None else entry.path


def _compile(compiler: list[str], path: Path) -> None:
    command = [*compiler, *_FLAGS, str(SOURCE), "-o", str(path)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise CompileError(f"{shlex.join(command)} failed: {reason}") from error


def _load_ir(openmp: dict[str, int]) -> _Shim:
    try:
        import tvm
    except ModuleNotFoundError as error:
        raise CompileError(
            "kernels are launched by a shim, which needs a C compiler (cc, gcc or clang), or "
            "apache-tvm, or a bundle of kernels for this machine's CPU, which brings it along"
        ) from error
    import tvm_ffi
    from tvm import te

    one = te.placeholder((1,), name="one")  # a throw-away kernel shows what this LLVM writes
    function = te.create_prim_func([one, te.compute((1,), lambda i: one[i])])
    probe = tvm.compile(function, target={"kind": "llvm"}).mod.inspect_source("ll").splitlines()
    layout = [line for line in probe if line.startswith("target ")]
    flag = next(line.split(" = ", 1)[1] for line in probe if '!"tvm_target"' in line)
    text = "\n".join((*layout, _IR.read_text(), "!llvm.module.flags = !{!0}", f"!0 = {flag}", ""))
    for name, address in openmp.items():
        text = text.replace(f"i64 {name} ", f"i64 {address} ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "openmp.ll")
        path.write_text(text)
        module = tvm_ffi.load_module(path)
    return module["register"], module["set_serial"]


def _use_tvm_pool() -> _Shim:
    os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    importlib.import_module("tvm")  # its runtime brings the functions that kernels call
    import tvm_ffi

    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    return (lambda: None), functools.partial(configure, 1, 1)
