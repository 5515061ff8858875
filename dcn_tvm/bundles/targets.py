"""What a bundle's kernels are compiled for, as text, and whether it can run here.

A target is `cpu` (this machine's), `cpu:SPEC` or `cuda:SPEC`, where the spec is that of
`dcn_tvm.target` or `dcn_tvm.gpu`: `cpu:x86-64-v3`, `cpu:armv8,cores=8`, `cuda:sm_90`.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dcn_tvm import gpu
from dcn_tvm import target as cpu
from dcn_tvm.gpu import Gpu
from dcn_tvm.target import Target

Code = Target | Gpu
_ARCHS = {"aarch64": "armv8", "arm64": "armv8", "x86_64": "x86-64"}  # their lowest levels


@dataclass(frozen=True)
class Host:
    """A kind of machine whose processes can load a library, whatever its level or its GPUs."""

    system: str
    arch: str

    def __str__(self) -> str:
        return f"{self.system} {self.arch}"


def parse(text: str) -> Code:
    """Return the target that a user names.

    Raises:
        ValueError: there is none of this kind, or no such level, architecture or fact.

    Example:
        >>> parse("cpu:aarch64").id, parse("cuda:sm_90").id
        ('armv8', 'sm_90')
    """
    kind, colon, spec = text.partition(":")
    if kind == "cuda" and spec:
        return gpu.assumed(spec)
    if kind == "cpu" and spec:
        level, comma, facts = spec.partition(",")
        return cpu.parse(f"{_ARCHS.get(level, level)}{comma}{facts}", foreign=True)
    if kind == "cpu" and not colon:
        return cpu.detect()
    if kind in gpu.SOURCE_ONLY:
        raise ValueError(
            f"a bundle's target must be cpu, cpu:LEVEL or cuda:sm_NN, got {text!r}: for {kind} "
            "only source is generated (dcn_tvm.cuda.lower), and nothing launches it"
        )
    raise ValueError(f"a target must be cpu, cpu:LEVEL or cuda:sm_NN, got {text!r}")


def written(code: Code) -> str:
    """Return the text from which `parse` makes the target again, on any machine."""
    return f"{'cpu' if isinstance(code, Target) else code.kind}:{code.spec}"


def name(code: Code) -> str:
    """Return the target in a few characters: what decides where it runs."""
    manner = () if isinstance(code, Target) else manners(code)
    features = "".join(code.features) if isinstance(code, Target) else ""
    return " ".join((code.id + features, *manner))


def manners(code: Gpu) -> tuple[str, ...]:
    """Return in which ways the code computes otherwise than by default."""
    return tuple(manner for manner in ("deterministic", "tf32") if getattr(code, manner))


def in_manner(code: Gpu, manner: tuple[str, ...]) -> Gpu:
    """Return the same device for code that computes in these ways."""
    return replace(code, deterministic="deterministic" in manner, tf32="tf32" in manner)


def this_host() -> Host:
    """Return what libraries this process can load."""
    return Host(sys.platform, cpu.arch_of(platform.machine()))


def host_of(code: Code, launcher: Host | None = None) -> Host:
    """Return which processes can load what is compiled here for a target.

    Args:
        code: the target.
        launcher: of the kernels of a GPU; such as this process if absent.
    """
    here = this_host()
    if isinstance(code, Gpu):
        return launcher or here
    if code.arch == here.arch:
        return here
    return Host("linux", code.arch)  # what `Target.to_tvm_dict` says of another architecture


def parse_host(arch: str) -> Host:
    """Return the machines of an architecture: of Linux, unless it is this one's.

    Raises:
        ValueError: no kernels can be compiled for it.
    """
    level = _ARCHS.get(arch, arch)
    return host_of(cpu.parse(level, foreign=True))


def any_of(host: Host) -> Target:
    """Return the target whose code every machine of this kind can run."""
    return cpu.parse(cpu.levels(host.arch)[0], foreign=True)


def refusal(code: Code, host: Host, wanted: Gpu | None) -> str | None:
    """Return why a library for a target cannot run here, or None if it can.

    Args:
        code: what it is compiled for.
        host: which processes can load it.
        wanted: the device of the call and its manner; None for this machine's CPU.
    """
    if host != this_host():
        return f"it is for {host}, and this process is {this_host()}"
    if isinstance(code, Target):
        return "it is for the CPU" if wanted else cpu.detect().refusal(code)
    if wanted is None or wanted.kind != code.kind:
        return f"it is for {code.id}"
    # Machine code of CUDA runs on later devices of its own generation, sm_80 on sm_86.
    here, there = wanted.capability, code.capability
    if here // 10 != there // 10 or here < there:
        return f"it is for {code.id}, and this device is {wanted.id}"
    if wanted.deterministic and not code.deterministic:
        return "it is not deterministic"
    if code.tf32 and not wanted.tf32:
        return "it rounds to TF32, which is not allowed"
    return None


def rank(code: Code, wanted: Gpu | None) -> tuple[int, ...]:
    """Return how well a target that can run here suits: the larger the better."""
    if isinstance(code, Target):
        return (cpu.levels(code.arch).index(code.level), len(code.features))
    same = wanted is not None and manners(wanted) == manners(code)
    return (same, code.capability)


def machine(devices: Sequence[Gpu] | None = None) -> str:
    """Return what this machine is, for messages; without its devices if none are given."""
    here = cpu.detect()
    text = f"{this_host()} with {here.level}{''.join(here.features)}"
    if devices is None:
        return text
    found = ", ".join(dict.fromkeys(device.id for device in devices))
    return f"{text} and {found or 'no CUDA device'}"
