"""The libraries of guarded kernels: compiled for the guard's machine, not for this one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dcn_tvm import build, settings
from dcn_tvm.build import Request
from dcn_tvm.cache import BuildCache
from dcn_tvm.guard.plan import TARGET


def library(request: Request) -> Path:
    """Return the library of a request: by its schedule's own defaults, unless it has records.

    Nobody's tuning counts: neither what is shipped nor what this user measured.

    Raises:
        CompileError: it cannot be compiled or linked.
        CacheError: it cannot be kept.
    """
    cache, key = BuildCache(settings.home() / "builds"), _key(request)
    if entry := cache.fetch(key):
        return entry.path
    scheduled = build.schedule_recorded(request, TARGET)

    def produce(path: Path) -> None:
        build.link(build.compile(request, scheduled, TARGET), path)

    facts = {"request": str(request), "target": TARGET.spec, "choices": scheduled.choices}
    return cache.store(key, scheduled.content_key(TARGET), produce, facts).path


def _key(request: Request) -> str:
    """Key that is known without TVM: what is compiled already is counted without importing it."""
    parts = (
        *("guard", request.problem.op, request.problem.to_json(), request.kernel, *request.outputs),
        *(json.dumps(request.recorded), TARGET.spec, *build.versions(), build.fingerprint()),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
