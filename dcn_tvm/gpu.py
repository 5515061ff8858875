"""What the GPUs of this machine are: the facts from which schedules compute their defaults.

They come from torch, so that TVM need not be built with CUDA to tell them. Those that every device
of an architecture has in common are also in a table here, for machines that have no such device.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import Any

from dcn_tvm.target import parse_number, slug, split_spec

# KiB of shared memory of a multiprocessor, and the most that a block may opt in to: "Technical
# Specifications per Compute Capability" in the CUDA programming guide. The driver keeps 1 KiB.
_SHARED_KIB = {
    "sm_70": (96, 96),
    "sm_75": (64, 64),
    "sm_80": (164, 163),
    "sm_86": (100, 99),
    "sm_89": (100, 99),
    "sm_90": (228, 227),
    "sm_100": (228, 227),
    "sm_120": (100, 99),
}
# TVM's kinds for which schedules/gpu has kernels, and nothing here launches them.
SOURCE_ONLY = ("opencl", "metal", "webgpu", "rocm", "vulkan")
_MULTIPROCESSORS = 64  # between those of a small device and those of the largest
_ARCH = re.compile("sm_[1-9][0-9]{1,2}")
# Fact → torch's name for it.
_PROPERTIES = {
    "multiprocessors": "multi_processor_count",
    "warp": "warp_size",
    "max_threads_per_block": "max_threads_per_block",
    "shared_bytes_per_block": "shared_memory_per_block",
    "shared_bytes_per_block_optin": "shared_memory_per_block_optin",
    "shared_bytes_per_multiprocessor": "shared_memory_per_multiprocessor",
    "registers_per_multiprocessor": "regs_per_multiprocessor",
    "l2_bytes": "L2_cache_size",
    "memory_bytes": "total_memory",
}


@dataclass(frozen=True)
class Gpu:
    """Facts of a GPU; 0 is unknown.

    Attributes:
        kind: TVM's target kind: "cuda", or one of `SOURCE_ONLY`.
        name: the device's model in words, without commas; "" where only the architecture is known.
        arch: such as "sm_90".
        multiprocessors: of the device.
        warp: threads that run in step.
        max_threads_per_block: of any kernel.
        shared_bytes_per_block: shared memory of a block that asks for nothing special.
        shared_bytes_per_block_optin: the most that a block may ask for.
        shared_bytes_per_multiprocessor: shared by the blocks that it runs.
        registers_per_multiprocessor: of 32 bits.
        l2_bytes: cache of level 2.
        memory_bytes: the device's own.
        deterministic: whether kernels must give the same bits in every run, as
            `torch.use_deterministic_algorithms` asks for.
        tf32: whether products of float32 may be rounded to TF32 first, as
            `torch.backends.cuda.matmul.allow_tf32` allows.
    """

    kind: str
    name: str
    arch: str
    multiprocessors: int = 0
    warp: int = 32
    max_threads_per_block: int = 1024
    shared_bytes_per_block: int = 48 << 10
    shared_bytes_per_block_optin: int = 0
    shared_bytes_per_multiprocessor: int = 0
    registers_per_multiprocessor: int = 0
    l2_bytes: int = 0
    memory_bytes: int = 0
    deterministic: bool = False
    tf32: bool = False

    @property
    def capability(self) -> int:
        """Of a CUDA device, such as 90; 0 of others."""
        return int(self.arch[3:]) if self.kind == "cuda" else 0

    @property
    def id(self) -> str:
        """The name for all devices like this one: their architecture."""
        return self.arch

    @property
    def ids(self) -> tuple[str, ...]:
        """Where tuning logs keep records for this device, the most specific place first."""
        model = slug(self.name)
        return (model, self.arch) if model else (self.arch,)

    @property
    def cores(self) -> int:
        """What a kernel's work is spread over: multiprocessors, or a usual number where unknown."""
        return self.multiprocessors or _MULTIPROCESSORS

    def key(self) -> str:
        """Return what generated code depends on, for cache keys."""
        manner = (name for name in ("deterministic", "tf32") if getattr(self, name))
        return " ".join((self.kind, self.arch, *manner))

    def to_tvm_dict(self) -> dict[str, object]:
        """Return the argument for `tvm.target.Target`."""
        arch = {"arch": self.arch} if self.kind == "cuda" else {}
        return {"kind": self.kind, **arch}

    @property
    def spec(self) -> str:
        """The text from which `assumed` makes this device again: what is known of it."""
        facts = {name: getattr(self, name) for name in ("name", *_PROPERTIES)}
        return ",".join((self.arch, *(f"{name}={fact}" for name, fact in facts.items() if fact)))


def detect() -> tuple[Gpu, ...]:
    """Return this machine's CUDA devices in torch's order; none if there is no working driver."""
    import torch

    if torch.version.hip is not None:
        return ()  # torch calls other makers' devices CUDA too
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(from_properties(torch.cuda.get_device_properties(i)) for i in range(count))
    except (RuntimeError, AssertionError, OSError):  # a driver that is there and does not work
        return ()


@functools.cache
def of_device(index: int) -> Gpu:
    """Return the CUDA device that torch knows by this index.

    Raises:
        NotImplementedError: torch was built for the devices of another maker.
        RuntimeError: there is no such device.
    """
    import torch

    if torch.version.hip is not None:
        raise NotImplementedError("dcn_tvm has kernels for CUDA's devices, not for those of ROCm")
    return from_properties(torch.cuda.get_device_properties(index))


def from_properties(properties: Any) -> Gpu:
    """Return the GPU of `torch.cuda.get_device_properties`.

    What an older torch does not tell is what the architecture has, or unknown.
    """
    gpu = _of_arch(f"sm_{properties.major}{properties.minor}")
    told = {fact: getattr(properties, name, None) for fact, name in _PROPERTIES.items()}
    facts: dict[str, Any] = {fact: value for fact, value in told.items() if value}
    return replace(gpu, name=" ".join(properties.name.replace(",", " ").split()), **facts)


def assumed(spec: str) -> Gpu:
    """Return the GPU that a spec describes: what it does not say is what its architecture has.

    Args:
        spec: `ARCH,FACT=VALUE,...`, such as "sm_80" or "sm_80,multiprocessors=108,l2_bytes=40M".

    Raises:
        ValueError: the architecture is none, or a fact is none, or not positive.
    """
    arch, texts = split_spec(spec)
    if not _ARCH.fullmatch(arch):
        raise ValueError(f"a GPU's architecture must be sm_NN such as 'sm_90', got {arch!r}")
    facts: dict[str, Any] = {}
    for name, text in texts.items():
        if name != "name" and name not in _PROPERTIES:
            known = ", ".join(("name", *_PROPERTIES))
            raise ValueError(f"a GPU's fact must be one of {known}, got {name!r}")
        facts[name] = text if name == "name" else parse_number(name, text)
    return replace(_of_arch(arch), **facts)


def _of_arch(arch: str) -> Gpu:
    """Return what is known of every device of an architecture."""
    gpu = Gpu("cuda", "", arch)
    if arch not in _SHARED_KIB:
        return gpu
    shared, optin = _SHARED_KIB[arch]
    return replace(
        gpu,
        shared_bytes_per_block_optin=optin << 10,
        shared_bytes_per_multiprocessor=shared << 10,
        registers_per_multiprocessor=65536,
    )
