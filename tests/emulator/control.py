"""A test's view of the driver: choosing it, making it fail, reading what it was asked to do."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .toolchain import driver

ORDERS = ("forward", "reverse", "shuffle")


@dataclass(frozen=True)
class Launched:
    """One launch that the driver accepted, in its own words."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    device: int
    stream: int


@contextmanager
def using(order: str = "forward", seed: int = 0, failing: str = "") -> Iterator[Path]:
    """Let kernels be launched on the emulator while this is open.

    A process opens its driver once and keeps it; order, seed and failing are read at every call.

    Args:
        order: In which order threads and blocks run: one of `ORDERS`.
        seed: Of the shuffled order.
        failing: The entry point that returns an error, say "cuMemAllocAsync".
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
    wanted = {
        "DCN_TVM_CUDA_DRIVER": str(driver()),
        "DCN_TVM_EMULATOR_ORDER": order,
        "DCN_TVM_EMULATOR_SEED": str(seed),
        "DCN_TVM_EMULATOR_FAIL": failing,
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield driver()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@functools.cache
def library() -> ctypes.CDLL:
    """The driver, the same one that a kernel's host part opens."""
    opened = ctypes.CDLL(str(driver()))
    opened.dcn_tvm_emulator_launches.restype = ctypes.c_char_p
    return opened


def launches() -> list[Launched]:
    """What was launched since the last call."""
    rows = []
    for line in library().dcn_tvm_emulator_launches().decode().splitlines():
        name, *words = line.split()
        n = [int(word) for word in words]
        rows.append(Launched(name, (n[0], n[1], n[2]), (n[3], n[4], n[5]), n[6], n[7], n[8]))
    return rows


def allocations() -> int:
    """How many allocations of the driver are not freed."""
    return int(library().dcn_tvm_emulator_allocations())
