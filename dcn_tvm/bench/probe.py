"""What can be measured only once per process: memory, imports, the first call.

Every probe runs in a fresh process: `python -m dcn_tvm.bench.probe <name> <op> <case> <contender>`
prints one number. An operator's library keeps memory, modules and kernels once it has them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dcn_tvm.bench.contender import Call, Setting, bench_of
from dcn_tvm.suites import Case

IMPORT_REPEATS = 5
# Every block of 64 KiB comes from the system and goes back to it, so that the resident memory is
# what is in use and not what malloc keeps for later.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass(frozen=True)
class Finding:
    """One number about a provider that is not a time per call."""

    what: str
    provider: str
    problem: str
    value: float
    unit: str


def measure_imports() -> list[Finding]:
    """Return the seconds that `import dcn_tvm` adds to `import torch`."""
    code = (
        "import time, torch\nstart = time.perf_counter()\nimport dcn_tvm\n"
        "print(time.perf_counter() - start)"
    )
    times = [float(_python(["-c", code], {})) for _ in range(IMPORT_REPEATS)]
    return [Finding("import beyond torch", "dcn_tvm", "", statistics.median(times), "s")]


def measure_first_call(case: Case) -> list[Finding]:
    """Return the seconds of the first call in a process when its kernels are on disk."""
    ours = [c.name for c in bench_of(case.op).present(case) if c.role == "ours"]
    return [_finding("first call, warm disk cache", "first_call", case, name, "s") for name in ours]


def measure_memory(case: Case) -> list[Finding]:
    """Return the peak memory of a forward call beyond its output, for all that compute the op.

    Linux only, elsewhere nothing.
    """
    if not Path("/proc/self/clear_refs").exists():
        return []
    names = [c.name for c in bench_of(case.op).present(case) if c.same_function]
    return [
        _finding("peak memory beyond inputs and output", "memory", case, name, "MiB")
        for name in names
    ]


def _finding(what: str, probe: str, case: Case, contender: str, unit: str) -> Finding:
    threads = str(torch.get_num_threads())
    arguments = ["-m", __name__, probe, case.op, json.dumps(dict(case.sizes)), contender, threads]
    environment = MALLOC if probe == "memory" else {}
    return Finding(
        what, contender, f"{case.op} {case.label}", float(_python(arguments, environment)), unit
    )


def _python(arguments: list[str], environment: dict[str, str]) -> str:
    """Return the last line that a new interpreter prints."""
    root = str(Path(__file__).parents[2])
    search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a probe failed: {done.stderr.strip()}")
    return done.stdout.splitlines()[-1]


def _first_call(prepare: Callable[[Case, Setting], Call], case: Case) -> float:
    call = prepare(case, Setting())
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _memory(prepare: Callable[[Case, Setting], Call], case: Case) -> float:
    """Return MiB; a call on a tiny image first, so that code and threads do not count."""
    bench = bench_of(case.op)
    prepare(bench.shrink(case), Setting())()
    call = prepare(case, Setting())
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status_kib("VmRSS")
    results = call()
    peak = _status_kib("VmHWM")
    del results
    # Less than the output is allocated by what fills the same one in every call.
    return max(0.0, (peak - before) / 1024 - bench.output_bytes(case) / 2**20)


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _main(probe: str, op: str, sizes: str, contender: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    pairs = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(sizes).items()}
    prepare = bench_of(op).contender(contender).prepare
    measured = {"first_call": _first_call, "memory": _memory}[probe]
    print(measured(prepare, Case(op, pairs, "")))


if __name__ == "__main__":
    _main(*sys.argv[1:])
