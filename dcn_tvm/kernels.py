"""Kernels by request: in memory, else from the disk cache, else compiled. Names no op."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dcn_tvm import build, openmp, ops, records, settings
from dcn_tvm import target as targets
from dcn_tvm.build import Recorded, Request, Scheduled
from dcn_tvm.cache import BuildCache, Entry
from dcn_tvm.cuda import compiler
from dcn_tvm.errors import CompileError
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Choice, Choices
from dcn_tvm.problem import Problem
from dcn_tvm.target import Target

_functions: dict[Request, Callable[..., None]] = {}
_modules: list[Any] = []  # a module's functions are valid only as long as it lives
_finders: list[Callable[[Request], Path | None]] = []
_lock = threading.RLock()
_built = 0


@dataclass(frozen=True)
class KernelExplanation:
    """Which kernel, for which target, with which choices, from where, and whether it is cached."""

    kernel: str
    target: str
    provenance: str
    choices: dict[str, Choice]
    cached: bool
    path: str | None


def get(request: Request) -> Callable[..., None]:
    """The compiled function of `request`; it takes the kernel's tensors by DLPack.

    Raises:
        CompileError: it is in no cache and cannot be compiled.
        NotImplementedError: there is no schedule for the request's target.
    """
    function = _functions.get(request)
    if function is None:
        with _lock:
            function = _functions.get(request)
            if function is None:
                function = _load(request)
                _functions[request] = function
    return function


def provide(finder: Callable[[Request], Path | None]) -> None:
    """Ask `finder` for the library of a request before the disk cache; None is "I have none".

    What is loaded already stays. Of several finders the one that came first is asked first.
    """
    _finders.append(finder)


def build_count() -> int:
    """How many kernels this process compiled; loading from the disk cache does not count."""
    return _built


def request(
    problem: Problem,
    kernel: str,
    outputs: tuple[str, ...],
    sizes: Mapping[str, int],
    target: Gpu | None = None,
) -> Request:
    """The request for a kernel at the sizes of a call, with what records say of it.

    Args:
        problem: the op's static facts.
        kernel: its name.
        outputs: those that are wanted.
        sizes: the free sizes of the call.
        target: the GPU that it is for; None is this machine's CPU.
    """
    found = _find_records(problem, kernel, sizes, target or targets.detect())
    recorded = tuple(_recorded(f.record.choices) for f in found)
    return Request(problem, kernel, outputs, recorded, target)


def explain(
    problem: Problem, sizes: Mapping[str, int], target: Gpu | None = None
) -> list[KernelExplanation]:
    """Explain the kernels of a problem at some sizes, each for all its outputs, compiling none.

    Args:
        problem: the op's static facts.
        sizes: the free sizes of a call, by the names of the op's contract. Without them only
            records of near problems of any size are found.
        target: the GPU that they are for; None is this machine's CPU.
    """
    return [
        explain_kernel(
            problem, kernel.name, possible_outputs(problem, kernel.outputs), sizes, target
        )
        for kernel in ops.registry()[problem.op].kernels().values()
    ]


def possible_outputs(problem: Problem, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Without the gradients of optional tensors that the problem says it does not have."""
    absent = {f"grad_{name}" for name in problem.absent()}
    return tuple(name for name in outputs if name not in absent)


def explain_kernel(
    problem: Problem,
    kernel: str,
    outputs: tuple[str, ...],
    sizes: Mapping[str, int],
    gpu: Gpu | None = None,
) -> KernelExplanation:
    """Explain one kernel for some of its outputs; the arguments are those of `request`."""
    asked, target = request(problem, kernel, outputs, sizes, gpu), gpu or targets.detect()
    entry = _cache().fetch(_request_key(asked, target))
    if entry is None:
        scheduled = build.schedule_recorded(asked, target)
        choices, place = scheduled.choices, scheduled.place
    else:
        choices = cast("dict[str, Choice]", entry.facts["choices"])
        place = cast("int | None", entry.facts["place"])
    return KernelExplanation(
        kernel=f"{kernel} -> {', '.join(outputs)}",
        target=target.id,
        provenance=_provenance(problem, kernel, sizes, target, place),
        choices=choices,
        cached=entry is not None,
        path=None if entry is None else str(entry.path),
    )


def _find_records(
    problem: Problem, kernel: str, sizes: Mapping[str, int], target: Target | Gpu
) -> tuple[records.Found, ...]:
    return records.find(problem, kernel, sizes, target.ids, target.cores)


def _recorded(choices: Choices | None) -> Recorded:
    return None if choices is None else tuple(sorted(choices.items()))


def _provenance(
    problem: Problem,
    kernel: str,
    sizes: Mapping[str, int],
    target: Target | Gpu,
    place: int | None,
) -> str:
    if place is None:
        return "default"
    return _find_records(problem, kernel, sizes, target)[place].provenance


def _cache() -> BuildCache:
    return BuildCache(settings.home() / "builds")


def _request_key(request: Request, target: Target | Gpu) -> str:
    """Key that is known without TVM: a hit on it starts a process without importing the compiler.

    What defaults are computed from is in it, such as cores and cache sizes. The version of a GPU's
    compiler is not: to ask for it may cost a process, and a build is good whoever made it.
    """
    parts = (
        *(request.problem.op, request.problem.to_json(), request.kernel, *request.outputs),
        json.dumps(request.recorded),
        *(target.key(), *map(str, _facts(target)), *build.versions(), build.fingerprint()),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _facts(target: Target | Gpu) -> tuple[object, ...]:
    if isinstance(target, Gpu):
        same = dataclasses.replace(target, name="", memory_bytes=0)
        return (*dataclasses.astuple(same), build.any_host().key(), settings.cuda_compiler())
    return (target.cores, target.l1_bytes, target.l2_bytes, target.l3_bytes)


def _load(request: Request) -> Callable[..., None]:
    for find in _finders:
        if path := find(request):
            return open_library(path, request.target)
    target = request.target or targets.detect()
    key = _request_key(request, target)
    built = _cache().fetch(key) or _build(request, target, key)
    if isinstance(built, Entry):
        return open_library(built.path, request.target)
    return _function_of(built, request.target)


def open_library(path: Path, target: Gpu | None = None) -> Callable[..., None]:
    """The function of a kernel's library; the library stays loaded as long as the process runs.

    Args:
        path: of the library.
        target: the GPU that it is for; None is this machine's CPU.
    """
    import tvm_ffi

    if target is None:
        openmp.install()  # before the kernel is linked to the functions that it calls
    return _function_of(tvm_ffi.load_module(str(path)), target)


def _function_of(module: Any, target: Gpu | None) -> Callable[..., None]:
    if target is None:  # what launches a GPU's kernels needs neither threads nor TVM's scratch
        openmp.install()
    _modules.append(module)
    function: Callable[..., None] = module[build.SYMBOL]
    return function


def _build(request: Request, target: Target | Gpu, key: str) -> Any:
    """The stored build, or the module in memory if no C compiler can make a library of it."""
    scheduled = build.schedule_recorded(request, target)
    module: Any = None

    def produce(path: Path) -> None:
        nonlocal module
        module = _compile(request, scheduled, target)
        build.link(module, path)

    facts = {"request": str(request), "choices": scheduled.choices, "place": scheduled.place}
    if isinstance(target, Gpu):
        facts["compiler"] = compiler.version()
    try:
        return _cache().store(key, scheduled.content_key(target), produce, facts)
    except CompileError as error:
        if module is None:
            raise
        build.warn_not_kept(str(error))
        return module


def _compile(request: Request, scheduled: Scheduled, target: Target | Gpu) -> Any:
    global _built
    module = build.compile(request, scheduled, target)
    _built += 1
    return module


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # the parent's may be held by a thread that the child does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
