"""The sanitizer's tools on a small call of every op: memory, races, barriers, what nobody wrote.

`python -m dcn_tvm.device.sanitizer` is the program that they watch: forward and backward of the
first odd problem of each op, in float32 and bfloat16. torch's allocator would hide what reads past
the end of a tensor, so every tensor has memory of its own. Only our kernels are watched where the
tool allows it.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from dcn_tvm import suites
from dcn_tvm.build import SYMBOL
from dcn_tvm.device import calls
from dcn_tvm.device.correctness import Check
from dcn_tvm.device.items import Context, Item, Skipped
from dcn_tvm.device.journal import Result

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_WATCHES_ALL = ("initcheck",)  # what torch's kernels wrote would look as if nobody had
ERROR_CODE = 86
_SUMMARY = re.compile(r"(ERROR|RACECHECK|LEAK) SUMMARY: (.*)")
_LINES = 12
_LIMIT_S = 100.0
_DONE = "every call was made"
_CANNOT = ("Device not supported", "not supported", "Unable to find injection")


def items(context: Context) -> Iterator[Item]:
    """Yield an item for each tool."""
    least_s = 30.0 if _found() and context.device.startswith("cuda") else 0.0
    for tool in TOOLS:
        run = functools.partial(watch, tool, context)
        yield Item(f"compute-sanitizer {tool}", run, least_s, _LIMIT_S + 30)


def watch(tool: str, context: Context) -> Result:
    """Run the program under a tool."""
    if not context.device.startswith("cuda"):
        raise Skipped(f"{context.device} has no sanitizer")
    program = _found()
    if program is None:
        raise Skipped("compute-sanitizer is not installed")
    command = [
        *(program, "--tool", tool, "--error-exitcode", str(ERROR_CODE)),
        *(() if tool in _WATCHES_ALL else ("--kernel-regex", f"kns={SYMBOL}")),
        *(sys.executable, "-m", __name__, context.device),
    ]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=min(_LIMIT_S, max(context.left_s - 5, 5)),
        )
    except subprocess.TimeoutExpired as error:
        raise Skipped(f"{tool} took more than {error.timeout:.0f} s") from error
    return verdict(done.returncode, f"{done.stdout}\n{done.stderr}")


def verdict(code: int, text: str) -> Result:
    """Return what a tool's exit code and output say."""
    summary = _SUMMARY.findall(text)
    told = "; ".join(f"{kind} {words.strip()}" for kind, words in summary)
    if any(words in text for words in _CANNOT) and _DONE not in text:
        raise Skipped(next(line.strip() for line in text.splitlines() if _cannot(line))[:200])
    if code == ERROR_CODE or (code == 0 and _DONE not in text):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return {"wrong": told or "no summary", "lines": lines[:_LINES]}
    if code:
        raise RuntimeError(f"exit code {code}: {text.strip().splitlines()[-1:]}")
    return {"summary": told}


def _cannot(line: str) -> bool:
    return any(words in line for words in _CANNOT)


def _found() -> str | None:
    """Return the program, on the path or in the toolkit's usual folder."""
    usual = os.pathsep.join(
        str(Path(folder) / "bin")
        for folder in (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
        if folder
    )
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=usual)


def main(device: str) -> None:
    """Call every op once, forward and backward."""
    for cases in suites.ODD.values():
        for precision in ("float32", "bfloat16"):
            check = Check(cases[0], precision, "nchw")
            calls.run(calls.make(check.problem, check.sizes, device))
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    print(_DONE, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
