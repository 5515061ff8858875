"""What this machine's CPU is: the facts from which schedules compute their defaults.

TVM's own guess is not used: `Target.from_device` names a CPU model that is near (rocketlake on a
machine with AMX), "native" means SSE2, and names of CPU models such as cascadelake make LLVM prefer
256-bit vectors. The level of the instruction set and a few flags beyond it say all that matters.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dcn_tvm import settings

# Levels of the x86-64 psABI in the kernel's names for flags; each includes those before it.
_X86_LEVELS = {
    "x86-64": "",
    "x86-64-v2": "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    "x86-64-v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}
_LEVELS = {"x86-64": tuple(_X86_LEVELS), "aarch64": ("armv8",)}
_LANES = {"x86-64-v3": 8, "x86-64-v4": 16}  # float32 per vector; 128-bit vectors elsewhere
_REGISTERS = {"x86-64": 16, "x86-64-v2": 16, "x86-64-v3": 16}  # 32 elsewhere
# Beyond the level: flag → (LLVM's name, the level that it needs).
_FEATURES = {
    "avx_vnni": ("+avxvnni", "x86-64-v3"),
    "avx512_vnni": ("+avx512vnni", "x86-64-v4"),
    "avx512_bf16": ("+avx512bf16", "x86-64-v4"),
    "avx512_fp16": ("+avx512fp16", "x86-64-v4"),
    "amx_tile": ("+amx-tile", "x86-64-v4"),
    "amx_bf16": ("+amx-bf16", "x86-64-v4"),
    "amx_int8": ("+amx-int8", "x86-64-v4"),
    "asimdhp": ("+fullfp16", "armv8"),
    "asimddp": ("+dotprod", "armv8"),
    "bf16": ("+bf16", "armv8"),
    "i8mm": ("+i8mm", "armv8"),
}
# LLVM vectorises short loops by masking what is left over, and LLVM 22 stores too much where one
# lane of a truncating store is left (9 bfloat16 numbers become 10; llvm/llvm-project#179489).
_LLVM_OPTIONS = ("-vectorizer-min-trip-count:uint=0",)
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CACHE_BYTES = {1: 32 << 10, 2: 512 << 10, 3: 4 << 20}  # where the system does not say
_DARWIN_KEYS = (
    "machdep.cpu.brand_string",
    "hw.optional.avx2_0",
    "hw.l1dcachesize",
    "hw.l2cachesize",
    "hw.l3cachesize",
)


@dataclass(frozen=True)
class Target:
    """Facts of a CPU, for code generation (`level`, `features`) and for schedules (the rest).

    Attributes:
        kind: TVM's target kind, "llvm".
        arch: "x86-64", "aarch64", or what the system calls another one.
        name: the CPU's model in words.
        level: of the instruction set: "x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64", "armv8".
        features: beyond the level, in LLVM's names, such as "+avx512bf16".
        cores: that this process may use.
        lanes: float32 values in a vector register.
        registers: vector registers.
        l1_bytes: data cache of level 1, of one core.
        l2_bytes: cache of level 2.
        l3_bytes: cache of level 3; the level 2's size where there is none.
    """

    kind: str
    arch: str
    name: str
    level: str
    features: tuple[str, ...]
    cores: int
    lanes: int
    registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int

    @property
    def id(self) -> str:
        """The name under which tuning logs keep records for machines like this one."""
        return self.level

    def key(self) -> str:
        """Return what generated code depends on, for cache keys: neither cores nor caches."""
        options = _LLVM_OPTIONS if self.arch == "x86-64" else ()
        return " ".join((self.kind, self.arch, self.level, *self.features, *options))

    def to_tvm_dict(self) -> dict[str, object]:
        """Return the argument for `tvm.target.Target`."""
        facts: dict[str, object] = {"kind": self.kind, "num-cores": self.cores}
        if self.arch == "x86-64":
            facts["mcpu"] = self.level
            facts["cl-opt"] = list(_LLVM_OPTIONS)
        if self.features:
            facts["mattr"] = list(self.features)
        return facts

    def at_level(self, level: str) -> Target:
        """Return the same machine as if its instruction set ended at `level`.

        Raises:
            ValueError: this machine has no such level.
        """
        levels = _LEVELS.get(self.arch, (self.level,))
        known = levels[: levels.index(self.level) + 1]
        if level not in known:
            raise ValueError(
                f"the target's level must be one of {', '.join(known)} on this machine "
                f"({self.name}), got {level!r}"
            )
        needs: dict[str, str] = dict(_FEATURES.values())
        return replace(
            self,
            level=level,
            features=tuple(f for f in self.features if needs[f] in known[: known.index(level) + 1]),
            lanes=_LANES.get(level, 4),
            registers=_REGISTERS.get(level, 32),
        )


def detect() -> Target:
    """Return the target of this machine, at the level that `DCN_TVM_TARGET` asks for, if any.

    Raises:
        ValueError: `DCN_TVM_TARGET` names a level that the machine does not have.
    """
    level = settings.target()
    return _machine() if level is None else _machine().at_level(level)


def from_facts(
    machine: str, cpuinfo: Mapping[str, str], caches: Mapping[int, int], cores: int
) -> Target:
    """Return the target for facts read elsewhere.

    Args:
        machine: the architecture, as `platform.machine()` says it.
        cpuinfo: one processor's lines of /proc/cpuinfo; without flags the lowest level is assumed.
        caches: bytes of the data or unified cache of each level; what is missing is assumed.
        cores: that the process may use.
    """
    arch = {"amd64": "x86-64", "x86_64": "x86-64", "arm64": "aarch64"}.get(
        machine.lower(), machine.lower()
    )
    flags = frozenset((cpuinfo.get("flags") or cpuinfo.get("Features", "")).split())
    known = _levels_of(arch, flags)
    level = known[-1]
    l1_bytes, l2_bytes = (caches.get(i) or _CACHE_BYTES[i] for i in (1, 2))
    return Target(
        kind="llvm",
        arch=arch,
        name=_name(cpuinfo) or arch,
        level=level,
        features=tuple(
            name for flag, (name, needs) in _FEATURES.items() if flag in flags and needs in known
        ),
        cores=cores,
        lanes=_LANES.get(level, 4),
        registers=_REGISTERS.get(level, 32),
        l1_bytes=l1_bytes,
        l2_bytes=l2_bytes,
        l3_bytes=caches.get(3) or (l2_bytes if caches else _CACHE_BYTES[3]),
    )


def _levels_of(arch: str, flags: frozenset[str]) -> list[str]:
    if arch != "x86-64":
        return list(_LEVELS.get(arch, (arch,)))
    known: list[str] = []
    for level, needed in _X86_LEVELS.items():
        if not flags.issuperset(needed.split()):
            break
        known.append(level)
    return known


def _name(cpuinfo: Mapping[str, str]) -> str:
    if name := cpuinfo.get("model name", ""):
        return re.sub(r"\s+", " ", name)
    if "CPU part" in cpuinfo:  # ARM's kernel gives numbers only
        return f"ARM implementer {cpuinfo.get('CPU implementer')} part {cpuinfo['CPU part']}"
    return ""


@functools.cache
def _machine() -> Target:
    machine = platform.machine()
    if sys.platform == "darwin":
        return from_facts(machine, *_read_darwin(), cores=os.cpu_count() or 1)
    if not sys.platform.startswith("linux"):
        return from_facts(machine, {}, {}, cores=os.cpu_count() or 1)
    return from_facts(machine, _read_cpuinfo(), _read_caches(), len(os.sched_getaffinity(0)))


def _read_cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    try:
        with path.open(errors="replace") as file:
            return parse_cpuinfo(file)
    except OSError:
        return {}


def parse_cpuinfo(lines: Iterable[str]) -> dict[str, str]:
    """Return the fields of the first processor; later ones are not read: there may be hundreds."""
    fields: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if separator:
            fields[name.strip()] = value.strip()
        elif fields:
            break
    return fields


def _read_caches(folder: Path = _CACHES) -> dict[int, int]:
    caches: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
            unit = {"K": 10, "M": 20, "G": 30}.get(size[-1:], 0)
            if kind != "Instruction":
                caches[int(level)] = int(size.rstrip("KMG")) << unit
        except (OSError, ValueError):  # a container may hide some of them
            continue
    return caches


def _read_darwin() -> tuple[dict[str, str], dict[int, int]]:
    command = ["/usr/sbin/sysctl", "-i", *_DARWIN_KEYS]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return {}, {}
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    # Every Mac with AVX2 has the whole level; its kernel has other names for the flags.
    flags = " ".join(_X86_LEVELS[level] for level in ("x86-64-v2", "x86-64-v3"))
    has_avx2 = fields.get("hw.optional.avx2_0") == "1"
    sizes = enumerate((fields.get(key, "") for key in _DARWIN_KEYS[2:]), start=1)
    return (
        {"model name": fields.get(_DARWIN_KEYS[0], ""), "flags": flags if has_avx2 else ""},
        {level: int(size) for level, size in sizes if size.isdigit()},
    )
