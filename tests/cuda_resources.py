"""What kernels take of a multiprocessor, as ptxas says it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dcn_tvm.cuda import compiler
from dcn_tvm.cuda.compiler import Nvcc

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """Of a thread: registers and bytes of local memory; of a block: bytes of static shared memory.

    Attributes:
        stack_bytes: arrays in local memory, and what is spilled.
        spill_bytes: of that, what did not fit the registers.
    """

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


def resources(source: str, arch: str) -> dict[str, Resources] | None:
    """The resources of a source's kernels by name, or None where there is no nvcc to say them."""
    nvcc = next((found for found in compiler.found() if isinstance(found, Nvcc)), None)
    if nvcc is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "kernel.cu")
        draft.write_text(source)
        flags = ("--cubin", f"--gpu-architecture={arch}", "--std=c++17", "--resource-usage")
        command = [str(nvcc.path), *flags, "--output-file", str(draft.with_suffix(".cubin"))]
        done = subprocess.run(
            [*command, str(draft)], capture_output=True, text=True, timeout=600, check=True
        )
    return {name: _resources(text) for name, text in _said(done.stderr + done.stdout)}


def _said(text: str) -> list[tuple[str, str]]:
    pieces = _ENTRY.split(text)
    return list(zip(pieces[1::2], pieces[2::2], strict=True))


def _resources(text: str) -> Resources:
    used, stack, shared = _USED.search(text), _STACK.search(text), _SHARED.search(text)
    assert used is not None
    stack_bytes, stores, loads = map(int, stack.groups()) if stack else (0, 0, 0)
    return Resources(int(used[1]), stack_bytes, max(stores, loads), int(shared[1]) if shared else 0)
