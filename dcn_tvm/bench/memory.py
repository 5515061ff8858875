"""Memory of a call beyond its inputs and results, and the pages that it touches first.

On the CPU it is measured in processes whose allocator keeps nothing for later, a fresh one for each
call, because libraries keep scratch memory of their own: `python -m dcn_tvm.bench.memory` reads a
line of JSON for each call, forks, and answers MiB.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcn_tvm import openmp
from dcn_tvm.bench.contender import Contender, Setting, bench_of
from dcn_tvm.suites import Case

# Every block of 64 KiB comes from the system and goes back to it, so that the resident memory is
# what is in use and not what malloc keeps for later.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
_CLEAR = Path("/proc/self/clear_refs")  # Linux only
_QUICK_S = 0.05
_PATIENCE_S = 300.0  # for one call, drawing its tensors included

Peaks = Callable[[Case, Contender, Setting], float | None]


@contextmanager
def nothing() -> Iterator[Peaks]:
    """Measure no memory."""
    yield lambda case, contender, setting: None


@contextmanager
def probe(device: str = "cpu") -> Iterator[Peaks]:
    """Start what measures the peak memory of calls in MiB; None where it cannot be told."""
    if device.startswith("cuda"):
        yield _on_cuda
    elif not _CLEAR.exists():
        yield lambda case, contender, setting: None
    else:
        child = _Child()
        try:
            yield child.peak
        finally:
            child.stop()


def faults(call: Callable[[], object]) -> float | None:
    """Return the pages that a call touches for the first time (minor page faults)."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    found: list[int] = []
    start = time.perf_counter()
    while len(found) < 3 and (not found or time.perf_counter() - start < _QUICK_S):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(found)


def _on_cuda(case: Case, contender: Contender, setting: Setting) -> float | None:
    """Return what torch's allocator gave out at most; what others take for themselves is unseen."""
    device = setting.device
    try:
        call = contender.prepare(case, setting)
        kept = call()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        results = call()
        torch.cuda.synchronize(device)
    except RuntimeError:  # out of memory: the contender's timed tensors are there as well
        return None
    peak = torch.cuda.max_memory_allocated(device)
    return max(0, peak - before - new_bytes(results, kept)) / 2**20


class _Child:
    """The process that measures, started when it is first asked and after it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def peak(self, case: Case, contender: Contender, setting: Setting) -> float | None:
        """Return MiB, None if the call fails there."""
        asked = {
            "op": case.op,
            "sizes": dict(case.sizes),
            "contender": contender.name,
            "setting": [setting.mode, setting.dtype, setting.memory_format],
            "threads": torch.get_num_threads(),
        }
        if self._process is None or self._process.poll() is not None:
            self._process = _start()
        given, said = self._process.stdin, self._process.stdout
        assert given is not None
        assert said is not None
        try:
            given.write(json.dumps(asked) + "\n")
            given.flush()
            ready, _, _ = select.select([said], [], [], _PATIENCE_S)
            answer = said.readline() if ready else ""
        except BrokenPipeError:
            answer = ""
        if not answer.strip():  # it died, or hangs
            self.stop()
            return None
        mib: float | None = json.loads(answer)
        return mib

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        env={**os.environ, **MALLOC, "PYTHONPATH": search},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def peak_mib(case: Case, contender: Contender, setting: Setting) -> float:
    """Return the peak beyond inputs and results, in a fresh process with `MALLOC`'s environment.

    A call on a tiny map comes first, so that code and threads do not count.
    """
    contender.prepare(bench_of(case.op).shrink(case), setting)()
    call = contender.prepare(case, setting)
    _CLEAR.write_text("5")  # reset the peak
    before = _status_kib("VmRSS")
    results = call()
    peak = _status_kib("VmHWM")
    return max(0.0, (peak - before) / 1024 - new_bytes(results, call()) / 2**20)


def new_bytes(results: Iterable[Tensor], others: Iterable[Tensor]) -> int:
    """Return the bytes of a call's results, but of those that another call has filled as well."""
    filled = {tensor.data_ptr() for tensor in others}
    return sum(t.numel() * t.element_size() for t in results if t.data_ptr() not in filled)


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _main() -> None:
    """Answer each line; this process itself starts no thread, so that it can fork."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a peer prints
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(Exception):  # whatever a peer raises: the parent saw it work
                os.write(write, json.dumps(_answer(json.loads(line))).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        print(answer or "null", file=answers, flush=True)


def _answer(asked: dict[str, Any]) -> float:
    openmp.trust_fork()
    torch.set_num_threads(asked["threads"])
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in asked["sizes"].items()}
    contender = bench_of(asked["op"]).contender(asked["contender"])
    return peak_mib(Case(asked["op"], sizes, ""), contender, Setting(*asked["setting"]))


if __name__ == "__main__":
    _main()
