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
3. Where torch has no OpenMP with GNU's entry points (macOS, Windows), TVM keeps its own pool with
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
from dcn_tvm.cache import BuildCache, Entry
from dcn_tvm.errors import CacheError, CompileError

_Shim = tuple[Callable[[], object], Callable[[], object]]  # register, set_serial
_FLAGS = ("-O2", "-fPIC", "-shared", "-x", "c")
_ENTRY_POINTS = (
    "GOMP_parallel",
    "omp_get_max_threads",
    "omp_get_thread_num",
    "omp_get_num_threads",
)

_C = r"""
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

/* What TVM's generated code and tvm-ffi agree on (tvm/runtime/c_backend_api.h, tvm/ffi/c_api.h). */
typedef struct { void *sync; int32_t tasks; } Env;
typedef int (*Task)(int, Env *, void *);
int TVMFFIEnvModRegisterContextSymbol(const char *, void *);
void TVMFFIErrorMoveFromRaised(void **);
void TVMFFIErrorSetRaised(void *);
void TVMFFIErrorSetRaisedFromCStr(const char *, const char *);
int TVMFFIObjectDecRef(void *);

static void (*omp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static int (*omp_max_threads)(void), (*omp_thread)(void), (*omp_threads)(void);
static volatile int serial;

typedef struct { Task task; void *data; int tasks; int failed; void *error; } Job;

/* One OpenMP thread runs tasks t, t + threads, ...: right for however many threads there are. */
static void work(void *argument) {
  Job *job = argument;
  Env env = {0, job->tasks};
  int step = omp_threads();
  for (int i = omp_thread(); i < job->tasks; i += step) {
    if (job->task(i, &env, job->data) == 0) continue;
    void *error = 0, *none = 0; /* errors live per thread: carry the first to the caller's */
    TVMFFIErrorMoveFromRaised(&error);
    __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    if (error && !__atomic_compare_exchange_n(&job->error, &none, error, 0, __ATOMIC_ACQ_REL,
                                              __ATOMIC_RELAXED)) TVMFFIObjectDecRef(error);
  }
}

static int launch(Task task, void *data, int asked) {
  int tasks = serial ? 1 : asked ? asked : omp_max_threads();
  if (tasks <= 1) { Env env = {0, 1}; return task(0, &env, data); }
  Job job = {task, data, tasks, 0, 0};
  omp_parallel(work, &job, tasks, 0);
  if (!job.failed) return 0;
  if (job.error) { TVMFFIErrorSetRaised(job.error); TVMFFIObjectDecRef(job.error); }
  else TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a parallel task of a kernel failed");
  return -1;
}

/* Scratch: each thread keeps the blocks it freed, or every call would fault in fresh pages. */
enum { HEADER = 64, STEP = 65536, KEEP = 32 << 20 };
typedef struct Block { struct Block *next; uint64_t bytes; } Block;
typedef struct { Block *first; uint64_t bytes; } Pool;
static pthread_key_t pool_key;

static void drop_blocks(Pool *pool) {
  for (Block *next, *block = pool->first; block; block = next) { next = block->next; free(block); }
  pool->first = 0;
  pool->bytes = 0;
}

static void end_thread(void *pool) { drop_blocks(pool); free(pool); }

static Pool *own_pool(void) {
  Pool *pool = pthread_getspecific(pool_key);
  if (!pool && (pool = calloc(1, sizeof(Pool)))) pthread_setspecific(pool_key, pool);
  return pool;
}

static void *allocate(int device_type, int device, uint64_t bytes, int code, int bits) {
  Pool *pool = own_pool();
  uint64_t need = (bytes + HEADER + STEP - 1) / STEP * STEP;
  Block **best = 0, *block = 0;
  if (pool && need > bytes) { /* the smallest that fits */
    for (Block **at = &pool->first; *at; at = &(*at)->next)
      if ((*at)->bytes >= need && (!best || (*at)->bytes < (*best)->bytes)) best = at;
    if (best) { block = *best; *best = block->next; pool->bytes -= block->bytes; }
    else if ((block = aligned_alloc(HEADER, need))) block->bytes = need;
  }
  if (block) return (char *)block + HEADER;
  TVMFFIErrorSetRaisedFromCStr("MemoryError", "no memory for the scratch buffer of a kernel");
  return 0;
}

static int release(int device_type, int device, void *pointer) {
  Block *block = (Block *)((char *)pointer - HEADER);
  Pool *pool = own_pool();
  if (!pool || block->bytes > KEEP) { free(block); return 0; }
  if (pool->bytes + block->bytes > KEEP) drop_blocks(pool); /* of an earlier shape, most likely */
  block->next = pool->first;
  pool->first = block;
  pool->bytes += block->bytes;
  return 0;
}

int dcn_tvm_start(void *parallel, void *max_threads, void *thread, void *threads) {
  omp_parallel = parallel;
  omp_max_threads = max_threads;
  omp_thread = thread;
  omp_threads = threads;
  return pthread_key_create(&pool_key, end_thread);
}
void dcn_tvm_set_serial(void) { serial = 1; }
int dcn_tvm_register(void) {
  return TVMFFIEnvModRegisterContextSymbol("__TVMBackendParallelLaunch", launch)
       | TVMFFIEnvModRegisterContextSymbol("__TVMBackendAllocWorkspace", allocate)
       | TVMFFIEnvModRegisterContextSymbol("__TVMBackendFreeWorkspace", release);
}
"""

# `launch` and `work` once more. OpenMP's names are replaced by their addresses; the data layout,
# the target triple and the module flag of this LLVM are added. One task makes a team of one.
_IR = r"""
%env = type { ptr, i32 }
%job = type { ptr, ptr, i32, i32 }
declare i32 @TVMFFIEnvModRegisterContextSymbol(ptr, ptr)
declare void @TVMFFIErrorSetRaisedFromCStr(ptr, ptr)
@symbol = private constant [27 x i8] c"__TVMBackendParallelLaunch\00"
@kind = private constant [13 x i8] c"RuntimeError\00"
@message = private constant [35 x i8] c"a parallel task of a kernel failed\00"
@serial = internal global i1 false

define internal void @work(ptr %p) {
entry:
  %job = load %job, ptr %p
  %task = extractvalue %job %job, 0
  %data = extractvalue %job %job, 1
  %tasks = extractvalue %job %job, 2
  %p.failed = getelementptr %job, ptr %p, i32 0, i32 3
  %env = alloca %env
  %filled = insertvalue %env zeroinitializer, i32 %tasks, 1
  store %env %filled, ptr %env
  %first = call i32 inttoptr (i64 omp_get_thread_num to ptr)()
  %step = call i32 inttoptr (i64 omp_get_num_threads to ptr)()
  br label %loop
loop:
  %i = phi i32 [ %first, %entry ], [ %next, %body ]
  %more = icmp slt i32 %i, %tasks
  br i1 %more, label %body, label %done
body:
  %status = call i32 %task(i32 %i, ptr %env, ptr %data)
  %ignored = atomicrmw or ptr %p.failed, i32 %status monotonic
  %next = add i32 %i, %step
  br label %loop
done:
  ret void
}
define internal i32 @launch(ptr %task, ptr %data, i32 %asked) {
  %max = call i32 inttoptr (i64 omp_get_max_threads to ptr)()
  %any = icmp eq i32 %asked, 0
  %wanted = select i1 %any, i32 %max, i32 %asked
  %s = load volatile i1, ptr @serial
  %tasks = select i1 %s, i32 1, i32 %wanted
  %j0 = insertvalue %job zeroinitializer, ptr %task, 0
  %j1 = insertvalue %job %j0, ptr %data, 1
  %j2 = insertvalue %job %j1, i32 %tasks, 2
  %job = alloca %job
  store %job %j2, ptr %job
  call void inttoptr (i64 GOMP_parallel to ptr)(ptr @work, ptr %job, i32 %tasks, i32 0)
  %p.failed = getelementptr %job, ptr %job, i32 0, i32 3
  %failed = load i32, ptr %p.failed
  %good = icmp eq i32 %failed, 0
  br i1 %good, label %end, label %bad
bad:
  call void @TVMFFIErrorSetRaisedFromCStr(ptr @kind, ptr @message)
  br label %end
end:
  ret i32 %failed
}
define i32 @__tvm_ffi_register(ptr %self, ptr %args, i32 %count, ptr %result) {
  %r = call i32 @TVMFFIEnvModRegisterContextSymbol(ptr @symbol, ptr @launch)
  ret i32 %r
}
define i32 @__tvm_ffi_set_serial(ptr %self, ptr %args, i32 %count, ptr %result) {
  store volatile i1 true, ptr @serial
  ret i32 0
}
"""

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


def find_compiler() -> list[str] | None:
    """Return the command of the C compiler: `CC` if set, else cc, gcc or clang; None if none."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    return None


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
    """Load the C shim, compiled now if the cache does not hold it; None if that is impossible."""
    importlib.import_module("tvm_ffi")  # it loads libtvm_ffi, which the shim calls
    try:
        entry = _compiled()
        if entry is None:
            return None
        library = ctypes.PyDLL(str(entry.path))  # for ever: threads that end later run end_thread
    except (CompileError, CacheError, OSError) as error:
        warnings.warn(f"kernels are launched through LLVM's JIT: {error}", stacklevel=4)
        return None
    if library.dcn_tvm_start(*(ctypes.c_void_p(openmp[name]) for name in _ENTRY_POINTS)):
        raise CompileError("the process has no thread-specific key left for the kernels' scratch")
    return library.dcn_tvm_register, library.dcn_tvm_set_serial


def _compiled() -> Entry | None:
    cache = BuildCache(settings.home() / "builds")
    system = (platform.machine(), *platform.libc_ver(), *_FLAGS)
    key = hashlib.sha256("\n".join((*system, _C)).encode()).hexdigest()
    compiler = find_compiler()
    entry = cache.fetch(key)
    if entry is None and compiler is not None:
        facts = {"kernel": "openmp shim", "compiler": shlex.join(compiler)}
        entry = cache.store(key, key, functools.partial(_compile, compiler), facts)
    return entry


def _compile(compiler: list[str], path: Path) -> None:
    command = [*compiler, *_FLAGS, "-", "-o", str(path)]
    try:
        subprocess.run(command, input=_C, capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise CompileError(f"{shlex.join(command)} failed: {reason}") from error


def _load_ir(openmp: dict[str, int]) -> _Shim:
    import tvm
    import tvm_ffi
    from tvm import te

    one = te.placeholder((1,), name="one")  # a throw-away kernel shows what this LLVM writes
    function = te.create_prim_func([one, te.compute((1,), lambda i: one[i])])
    probe = tvm.compile(function, target={"kind": "llvm"}).mod.inspect_source("ll").splitlines()
    layout = [line for line in probe if line.startswith("target ")]
    flag = next(line.split(" = ", 1)[1] for line in probe if '!"tvm_target"' in line)
    text = "\n".join((*layout, _IR, "!llvm.module.flags = !{!0}", f"!0 = {flag}", ""))
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
