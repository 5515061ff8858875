"""Machines: what kernels are generated for, and the bench on which they are measured.

A machine is named by the spec of a CPU (`dcn_tvm.target`), such as `x86-64-v3`, or as torch names a
device: `cuda`, `cuda:1`.

Of a GPU's manners (`Gpu.deterministic`, `Gpu.tf32`) only the plain one is tuned. Records do not say
for which manner they are, and all look them up: deterministic gradients have the same choices, with
other instructions in the same loops. Products of TF32 have others, on tensor cores: there the
choices of plain float32 are not legal, and calls take the next record, or the default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dcn_tvm import gpu
from dcn_tvm import target as targets
from dcn_tvm.cuda import compiler
from dcn_tvm.gpu import Gpu
from dcn_tvm.target import Target
from dcn_tvm.tuning.bench import Bench, Cpu
from dcn_tvm.tuning.cuda import Cuda
from dcn_tvm.tuning.remote import Tracker

_DEVICE = re.compile(r"cuda(?::([0-9]{1,3}))?")


@dataclass(frozen=True)
class Machine:
    """What code is for and where it is measured.

    Attributes:
        target: for code generation and schedules.
        bench: runs it.
        threads: what its records say: threads, or the multiprocessors of a GPU.
    """

    target: Target | Gpu
    bench: Bench
    threads: int

    def versions(self) -> tuple[str, ...]:
        """Return name and version of the compiler of device code; the CPU's is a part of TVM.

        Raises:
            CompileError: there is none.
        """
        return (compiler.version(),) if isinstance(self.target, Gpu) else ()


def parse(
    spec: Target | str | None, threads: int | None = None, tracker: Tracker | None = None
) -> Machine:
    """Return the machine that a spec names; this one's CPU if None.

    Args:
        spec: of the target.
        threads: of a CPU; its cores if None.
        tracker: of the servers that measure instead of this machine.

    Raises:
        ValueError: the spec makes no sense or names what this machine does not have, or a GPU
            comes with threads or a tracker.
    """
    if is_device(spec):
        if tracker is not None:
            raise ValueError(f"servers behind a tracker measure kernels of CPUs, not of {spec}")
        if threads is not None:
            raise ValueError(f"threads are a CPU's: every kernel has all of {spec}")
        return _device(str(spec))
    if spec is None:
        target = targets.detect()
    elif isinstance(spec, str):
        target = targets.parse(spec, foreign=tracker is not None)
    else:
        target = spec
    count = target.cores if threads is None else threads
    if count <= 0:
        raise ValueError(f"threads must be positive, got {threads}")
    return Machine(target, tracker or Cpu(count), count)


def is_device(spec: object) -> bool:
    """Return whether a spec names a CUDA device."""
    return isinstance(spec, str) and _DEVICE.fullmatch(spec) is not None


def devices() -> tuple[Machine, ...]:
    """Return the CUDA devices of this machine, in torch's order."""
    found = enumerate(gpu.detect())
    return tuple(Machine(device, Cuda(device, i), device.cores) for i, device in found)


def _device(spec: str) -> Machine:
    match = _DEVICE.fullmatch(spec)
    assert match is not None
    index, found = int(match[1] or 0), devices()
    if index >= len(found):
        here = ", ".join(f"cuda:{i} ({m.target.name})" for i, m in enumerate(found)) or "none"
        raise ValueError(f"torch finds no device {spec} on this machine; it finds {here}")
    return found[index]
