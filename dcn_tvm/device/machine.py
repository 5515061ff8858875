"""The first step: what the machine is, and the two rates that no kernel exceeds.

The rate of matrix products, measured with the library's own in each precision, and that of a copy,
counting what is read and what is written, give every row of the benchmark its floor.
"""

from __future__ import annotations

import datetime
import functools
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dcn_tvm import report, target
from dcn_tvm.bench.clock import clock
from dcn_tvm.cuda import compiler
from dcn_tvm.device.items import Context, Item
from dcn_tvm.device.journal import Journal, Result
from dcn_tvm.device.precision import PRECISIONS, allowed, dtype_of
from dcn_tvm.errors import CompileError

STEP = "machine"
FACTS, COPY, PRODUCT = "facts", "rate of a copy", "rate of products, {}"
_TURNS = 5
_PRODUCT = 8192  # rows and columns
_COPY_BYTES = 2 << 30
_SMALL_PRODUCT, _SMALL_COPY_BYTES = 128, 1 << 20
_OWN = ("key", "seconds", "outcome", "wrong", "why")  # what is the result's, and not a fact
_STREAM_API = "__dlpack_c_exchange_api__"  # by which kernels learn of torch's stream and memory


def items(context: Context) -> Iterator[Item]:
    """Yield the step's items."""
    yield Item(FACTS, functools.partial(facts, context.device))
    yield Item(COPY, functools.partial(copy_rate, context))
    for precision in PRECISIONS:
        yield Item(PRODUCT.format(precision), functools.partial(product_rate, context, precision))


def facts(device: str) -> Result:
    """Return what describes the machine in every file of results."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    found: dict[str, Any] = {
        "device": target.detect().name,
        "cpu": target.detect().name,
        "cores": target.detect().cores,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": report.Machine.here().versions,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "compiler": _compiler(),
        "sanitizer": shutil.which("compute-sanitizer"),
        "commit": commit(),
        "date": now,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_bytes"] = properties.total_memory
        found["l2_bytes"] = getattr(properties, "L2_cache_size", None)
        found["devices"] = torch.cuda.device_count()
        found["driver"] = _driver()
    if not hasattr(torch.Tensor, _STREAM_API):
        found["wrong"] = f"torch has no {_STREAM_API}: kernels would not run on its streams"
    return found


def copy_rate(context: Context) -> Result:
    """Return the bytes per second that a copy reads and writes."""
    small = not context.device.startswith("cuda")
    size = _SMALL_COPY_BYTES if small else _COPY_BYTES
    source = torch.ones(size, dtype=torch.int8, device=context.device)
    into = torch.empty_like(source)
    median_us = _median_us(lambda: into.copy_(source), context.device)
    return {"gbyte_per_s": 2 * source.numel() / median_us / 1e3, "median_us": median_us}


def product_rate(context: Context, precision: str) -> Result:
    """Return the operations per second of a product of square matrices of random numbers."""
    side = _PRODUCT if context.device.startswith("cuda") else _SMALL_PRODUCT
    dtype = getattr(torch, dtype_of(precision))
    one, other = (torch.randn(side, side, device=context.device).to(dtype) for _ in range(2))
    with allowed(precision):
        median_us = _median_us(lambda: one @ other, context.device)
    return {"tflop_per_s": 2 * side**3 / median_us / 1e6, "median_us": median_us}


def _median_us(call: Callable[[], object], device: str) -> float:
    turn = clock(call, device).turn
    return statistics.median(turn() for _ in range(_TURNS))


def known_facts(out: Path) -> Result:
    """Return the facts that the step found, none if it has not."""
    found = dict(Journal(out, STEP).results().get(FACTS, {}))
    return {name: value for name, value in found.items() if name not in _OWN}


def rates(results: Mapping[str, Result]) -> dict[str, float]:
    """Return operations per microsecond by precision, and bytes per microsecond as "copy"."""
    found = {}
    for precision in PRECISIONS:
        result = results.get(PRODUCT.format(precision), {})
        if "tflop_per_s" in result:
            found[precision] = float(result["tflop_per_s"]) * 1e6
    if "gbyte_per_s" in results.get(COPY, {}):
        found["copy"] = float(results[COPY]["gbyte_per_s"]) * 1e3
    return found


def commit() -> str | None:
    """Return the checkout's commit, with a plus if files were changed; None outside of one."""
    root = Path(__file__).parents[2]
    head = _said("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    changed = _said("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return head and head + ("+" if changed else "")


def _driver() -> str | None:
    query = ("--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    return _said("nvidia-smi", *query)


def _compiler() -> str:
    try:
        return compiler.version()
    except CompileError as error:
        return f"none: {str(error).splitlines()[0][:100]}"


def _said(*command: str) -> str | None:
    """Return what a program prints, None if it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
