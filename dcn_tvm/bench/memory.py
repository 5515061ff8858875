"""Memory of a call beyond its inputs and results, and the pages that it touches first.

On the CPU it is measured in a process of its own, whose allocator keeps nothing for later:
`python -m dcn_tvm.bench.memory` reads a line of JSON for each call, and answers MiB.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dcn_tvm.bench.contender import Call, Contender, Setting, bench_of
from dcn_tvm.suites import Case

# Every block of 64 KiB comes from the system and goes back to it, so that the resident memory is
# what is in use and not what malloc keeps for later.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
_CLEAR = Path("/proc/self/clear_refs")  # Linux only
_QUICK_S = 0.05

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


def faults(call: Callable[[], object]) -> float:
    """Return the pages that a call touches for the first time (minor page faults)."""
    import resource  # not on Windows

    found: list[int] = []
    start = time.perf_counter()
    while len(found) < 3 and (not found or time.perf_counter() - start < _QUICK_S):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(found)


def _on_cuda(case: Case, contender: Contender, setting: Setting) -> float:
    """Return what torch's allocator gave out at most; what others take for themselves is unseen."""
    call = contender.prepare(case, setting)
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before - _bytes(results)) / 2**20


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
            answer = said.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.strip():  # it died
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
    """Return the peak beyond inputs and results, in a process with `MALLOC`'s environment.

    The same call comes first, so that code and threads do not count.
    """
    call: Call = contender.prepare(case, setting)
    call()
    _CLEAR.write_text("5")  # reset the peak
    before = _status_kib("VmRSS")
    results = call()
    peak = _status_kib("VmHWM")
    # Less than the results is allocated by what fills the same ones in every call.
    return max(0.0, (peak - before) / 1024 - _bytes(results) / 2**20)


def _bytes(results: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in results)


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        torch.set_num_threads(asked["threads"])
        sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in asked["sizes"].items()}
        contender = bench_of(asked["op"]).contender(asked["contender"])
        try:
            answer = peak_mib(Case(asked["op"], sizes, ""), contender, Setting(*asked["setting"]))
        except Exception:  # whatever a peer raises: the parent has seen it work
            answer = None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
