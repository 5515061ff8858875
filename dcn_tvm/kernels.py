"""Kernels by request: in memory, else from the disk cache, else compiled. Names no op."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dcn_tvm import build, openmp, ops, settings
from dcn_tvm import target as targets
from dcn_tvm.build import Request, Scheduled
from dcn_tvm.cache import BuildCache, Entry
from dcn_tvm.errors import CompileError
from dcn_tvm.knobs import Choice
from dcn_tvm.problem import Problem
from dcn_tvm.target import Target

_functions: dict[Request, Callable[..., None]] = {}
_modules: list[Any] = []  # a module's functions are valid only as long as it lives
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
        NotImplementedError: there is no schedule for the machine's target.
    """
    function = _functions.get(request)
    if function is None:
        with _lock:
            function = _functions.get(request)
            if function is None:
                function = _load(request)
                _functions[request] = function
    return function


def build_count() -> int:
    """How many kernels this process compiled; loading from the disk cache does not count."""
    return _built


def explain(op: str, problem: Problem) -> list[KernelExplanation]:
    """Explain the kernels of a problem, each for all of its outputs, compiling none."""
    contract = ops.registry()[op]
    return [
        _explain(Request(problem, kernel.name, possible_outputs(problem, kernel.outputs)))
        for kernel in contract.kernels().values()
    ]


def possible_outputs(problem: Problem, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Without the gradients of optional tensors that the problem says it does not have."""
    absent = {f"grad_{name}" for name in problem.absent()}
    return tuple(name for name in outputs if name not in absent)


def _explain(request: Request) -> KernelExplanation:
    target = targets.detect()
    entry = _cache().fetch(_request_key(request, target))
    if entry is None:
        choices = build.schedule(request, target).choices
    else:
        choices = cast("dict[str, Choice]", entry.facts["choices"])
    return KernelExplanation(
        kernel=f"{request.kernel} -> {', '.join(request.outputs)}",
        target=target.id,
        provenance="default",
        choices=choices,
        cached=entry is not None,
        path=None if entry is None else str(entry.path),
    )


def _cache() -> BuildCache:
    return BuildCache(settings.home() / "builds")


def _request_key(request: Request, target: Target) -> str:
    """Key that is known without TVM: a hit on it starts a process without importing the compiler.

    Cores and cache sizes are in it because defaults are computed from them.
    """
    sizes = (target.cores, target.l1_bytes, target.l2_bytes, target.l3_bytes)
    parts = (
        *(request.problem.op, request.problem.to_json(), request.kernel, *request.outputs),
        *(target.key(), *map(str, sizes), *build.versions(), build.fingerprint()),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _load(request: Request) -> Callable[..., None]:
    target = targets.detect()
    key = _request_key(request, target)
    built = _cache().fetch(key) or _build(request, target, key)
    openmp.install()  # before the kernel is linked to the functions that it calls
    if isinstance(built, Entry):
        import tvm_ffi

        built = tvm_ffi.load_module(str(built.path))
    _modules.append(built)
    function: Callable[..., None] = built[build.SYMBOL]
    return function


def _build(request: Request, target: Target, key: str) -> Any:
    """The stored build, or the module in memory if no C compiler can make a library of it."""
    scheduled = build.schedule(request, target)
    module: Any = None

    def produce(path: Path) -> None:
        nonlocal module
        module = _compile(request, scheduled, target)
        build.link(module, path)

    facts = {"request": str(request), "choices": scheduled.choices}
    try:
        return _cache().store(key, scheduled.content_key(target), produce, facts)
    except CompileError as error:
        if module is None:
            raise
        build.warn_not_kept(str(error))
        return module


def _compile(request: Request, scheduled: Scheduled, target: Target) -> Any:
    global _built
    module = build.compile(request, scheduled, target)
    _built += 1
    return module


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()  # the parent's may be held by a thread that the child does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
