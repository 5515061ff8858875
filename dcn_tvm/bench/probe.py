"""What can be measured only once per process: imports, the first call.

They are measured in fresh processes, as a process keeps modules and kernels once it has them:
`python -m dcn_tvm.bench.probe <op> <case> <contender> <threads>` prints the first call's seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dcn_tvm.bench.contender import Call, Setting, bench_of
from dcn_tvm.results import Finding
from dcn_tvm.suites import Case

IMPORT_REPEATS = 5


def measure_imports() -> list[Finding]:
    """Return the seconds that `import dcn_tvm` adds to `import torch`."""
    code = (
        "import time, torch\nstart = time.perf_counter()\nimport dcn_tvm\n"
        "print(time.perf_counter() - start)"
    )
    times = [float(_python(["-c", code])) for _ in range(IMPORT_REPEATS)]
    return [Finding("import beyond torch", "dcn_tvm", "", statistics.median(times), "s")]


def measure_first_call(case: Case) -> list[Finding]:
    """Return the seconds of the first call in a process when its kernels are on disk."""
    what, problem = "first call, warm disk cache", f"{case.op} {case.label}"
    found = []
    for contender in bench_of(case.op).present(case):
        if contender.role == "ours":
            contender.prepare(case, Setting())()  # so that its kernels are on disk
            seconds = _first_call_elsewhere(case, contender.name)
            found.append(Finding(what, contender.name, problem, seconds, "s"))
    return found


def _first_call_elsewhere(case: Case, contender: str) -> float:
    threads, sizes = str(torch.get_num_threads()), json.dumps(dict(case.sizes))
    return float(_python(["-m", __name__, case.op, sizes, contender, threads]))


def _python(arguments: list[str]) -> str:
    """Return the last line that a new interpreter prints."""
    root = str(Path(__file__).parents[2])
    search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": search},
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


def _main(op: str, sizes: str, contender: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    pairs = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(sizes).items()}
    print(_first_call(bench_of(op).contender(contender).prepare, Case(op, pairs, "")))


if __name__ == "__main__":
    _main(*sys.argv[1:])
