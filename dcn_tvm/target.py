"""What this machine's CPU is: the facts from which schedules compute their defaults.

TVM's own guess is not used: `Target.from_device` names a CPU model that is near (rocketlake on a
machine with AMX), "native" means SSE2, and names of CPU models such as cascadelake make LLVM prefer
256-bit vectors. The level of the instruction set and a few flags beyond it say all that matters.

A target is also a line of text, its *spec*: `LEVEL,FACT=VALUE,...`, such as `x86-64-v3,cores=8`. It
changes what is detected here, or describes another machine.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
_CORES = 4  # of a machine of which only the level is known
_VENDORS = {"authenticamd": "amd", "genuineintel": "intel"}
_DARWIN_KEYS = (
    "machdep.cpu.brand_string",
    "hw.optional.avx2_0",
    "hw.l1dcachesize",
    "hw.l2cachesize",
    "hw.l3cachesize",
)
# Facts that a spec may set, in the order in which it says them.
_FACTS = (
    *("model", "name", "features", "cores", "lanes", "registers"),
    *("l1_bytes", "l2_bytes", "l3_bytes"),
)
_MODEL = re.compile(r"([a-z0-9][a-z0-9._-]*)?")  # names a folder
_NUMBER = re.compile(r"([0-9]+)([KMG]?)")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}


@dataclass(frozen=True)
class Target:
    """Facts of a CPU, for code generation (`level`, `features`) and for schedules (the rest).

    Attributes:
        kind: TVM's target kind, "llvm".
        arch: "x86-64", "aarch64", or what the system calls another one.
        name: the CPU's model in words, without commas.
        model: the exact CPU in a few characters, such as "amd-25-17" (vendor, family, model); ""
            where it is unknown.
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
    model: str
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
        """The name for all machines like this one: their level."""
        return self.level

    @property
    def ids(self) -> tuple[str, ...]:
        """Where tuning logs keep records for this machine, the most specific place first."""
        return (self.model, self.level) if self.model else (self.level,)

    @property
    def spec(self) -> str:
        """The text from which `parse` makes this target again, on any machine if `foreign`."""
        values = {name: getattr(self, name) for name in _FACTS}
        values["features"] = "".join(self.features)
        return ",".join((self.level, *(f"{name}={value}" for name, value in values.items())))

    def key(self) -> str:
        """Return what generated code depends on, for cache keys.

        Vectors are in it where they are not the level's own, but neither model, cores nor caches.
        """
        options = _LLVM_OPTIONS if self.arch == "x86-64" else ()
        usual = (self.lanes, self.registers) == _vectors(self.level)
        vectors = () if usual else (f"{self.lanes}x{self.registers}",)
        return " ".join((self.kind, self.arch, self.level, *self.features, *vectors, *options))

    def to_tvm_dict(self) -> dict[str, object]:
        """Return the argument for `tvm.target.Target`."""
        facts: dict[str, object] = {"kind": self.kind, "num-cores": self.cores}
        if self.arch != arch_of(platform.machine()):
            facts["mtriple"] = f"{self.arch.replace('-', '_')}-unknown-linux-gnu"
        if self.arch == "x86-64":
            facts["mcpu"] = self.level
            facts["cl-opt"] = list(_LLVM_OPTIONS)
        if self.features:
            facts["mattr"] = list(self.features)
        return facts

    def refusal(self, code: Target) -> str | None:
        """Return why this machine cannot run what is compiled for the target `code`, if so."""
        if code.arch != self.arch:
            return f"it is for {code.arch}, and this machine is {self.arch}"
        if code.level not in _levels_up_to(self.level, self.arch):
            return f"it is for {code.level}, and this machine has {self.level}"
        if missing := [feature for feature in code.features if feature not in self.features]:
            return f"it needs {' '.join(missing)}, which this machine does not have"
        return None

    def at_level(self, level: str) -> Target:
        """Return the same machine as if its instruction set ended at `level`.

        Below its own level it has no model: the records of a model are for all that the CPU can do.

        Raises:
            ValueError: this machine has no such level.
        """
        if level == self.level:
            return self
        known = _levels_up_to(self.level, self.arch)
        if level not in known:
            raise ValueError(
                f"the target's level must be one of {', '.join(known)} on this machine "
                f"({self.name}), got {level!r}"
            )
        possible = _features_of(_levels_up_to(level, self.arch))
        lanes, registers = _vectors(level)
        return replace(
            self,
            model="",
            level=level,
            features=tuple(f for f in self.features if f in possible),
            lanes=lanes,
            registers=registers,
        )


def detect() -> Target:
    """Return the target of this machine, changed as `DCN_TVM_TARGET` asks for, if it does.

    Raises:
        ValueError: `DCN_TVM_TARGET` names a level or a feature that the machine does not have, or
            something that is no fact.
    """
    spec = settings.target()
    return _machine() if spec is None else parse(spec)


def parse(spec: str, *, foreign: bool = False) -> Target:
    """Return the target that a spec describes: what it does not say is as on this machine.

    Args:
        spec: `LEVEL,FACT=VALUE,...`, either of both optional: `x86-64-v3`, `cores=4`,
            `x86-64-v4,l2_bytes=1M,features=+avx512bf16+avx512vnni`.
        foreign: whether another machine is described. What the spec does not say is then assumed:
            the level's own vectors, no features, 4 cores, small caches. This machine is not asked.

    Raises:
        ValueError: the machine has no such level or feature, or a fact is none, or not positive.
    """
    level, texts = split_spec(spec)
    if foreign:
        target = _assumed(level)
        possible = _features_of(_levels_up_to(target.level, target.arch))
    else:
        machine = _machine()
        target = machine.at_level(level or machine.level)
        possible = target.features
    facts: dict[str, Any] = {name: _fact(name, text, possible) for name, text in texts.items()}
    return replace(target, **facts)


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Return what a spec starts with, "" if it is a fact, and the texts of its facts.

    Raises:
        ValueError: an item is neither, or a fact is given twice.
    """
    first, *items = spec.split(",")
    if "=" in first:
        first, items = "", [first, *items]
    texts: dict[str, str] = {}
    for item in items:
        name, equals, text = (part.strip() for part in item.partition("="))
        if not (name and equals):
            raise ValueError(f"expected FACT=VALUE after a comma, got {item.strip()!r} in {spec!r}")
        if name in texts:
            raise ValueError(f"{name} is given twice in {spec!r}")
        texts[name] = text
    return first.strip(), texts


def parse_number(name: str, text: str) -> int:
    """Return a fact's positive number; one of bytes may end in K, M or G.

    Raises:
        ValueError: the text is something else.
    """
    match = _NUMBER.fullmatch(text)
    number = int(match[1]) << _UNITS[match[2]] if match else 0
    if not (match and number) or (match[2] and "bytes" not in name):
        units = ", which may end in K, M or G" if "bytes" in name else ""
        raise ValueError(f"{name} must be a positive number{units}, got {text!r}")
    return number


def slug(text: str) -> str:
    """Return `text` as the name of a folder: of a-z, 0-9, dots, hyphens and underscores only."""
    words = re.sub(r"\((r|tm)\)", " ", text.lower())
    return re.sub(r"[^a-z0-9._]+", "-", words).strip("._-")


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
    arch = arch_of(machine)
    flags = frozenset((cpuinfo.get("flags") or cpuinfo.get("Features", "")).split())
    known = _levels_of(arch, flags)
    level = known[-1]
    lanes, registers = _vectors(level)
    l1_bytes, l2_bytes = (caches.get(i) or _CACHE_BYTES[i] for i in (1, 2))
    return Target(
        kind="llvm",
        arch=arch,
        name=_name(cpuinfo) or arch,
        model=_model(cpuinfo),
        level=level,
        features=tuple(
            name for flag, (name, needs) in _FEATURES.items() if flag in flags and needs in known
        ),
        cores=cores,
        lanes=lanes,
        registers=registers,
        l1_bytes=l1_bytes,
        l2_bytes=l2_bytes,
        l3_bytes=caches.get(3) or (l2_bytes if caches else _CACHE_BYTES[3]),
    )


def arch_of(machine: str) -> str:
    """Return our name for what `platform.machine()` says."""
    names = {"amd64": "x86-64", "x86_64": "x86-64", "arm64": "aarch64"}
    return names.get(machine.lower(), machine.lower())


def _vectors(level: str) -> tuple[int, int]:
    """Float32 values in a vector register, and how many registers there are."""
    return _LANES.get(level, 4), _REGISTERS.get(level, 32)


def levels(arch: str) -> tuple[str, ...]:
    """Return the levels of an architecture that are told apart, the lowest first."""
    return _LEVELS.get(arch, (arch,))


def _levels_up_to(level: str, arch: str) -> tuple[str, ...]:
    levels = _LEVELS.get(arch, (level,))
    return levels[: levels.index(level) + 1]


def _features_of(levels: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, needs in _FEATURES.values() if needs in levels)


def _assumed(level: str) -> Target:
    """Return a machine of which nothing but the level is known."""
    arch = next((arch for arch, levels in _LEVELS.items() if level in levels), None)
    if arch is None:
        known = ", ".join(level for levels in _LEVELS.values() for level in levels)
        raise ValueError(f"another machine's level must be one of {known}, got {level!r}")
    flags = " ".join(_X86_LEVELS.get(known, "") for known in _levels_up_to(level, arch))
    return from_facts(arch, {"model name": f"any {level}", "flags": flags}, {}, _CORES)


def _fact(name: str, text: str, possible: Sequence[str]) -> object:
    """Return the value of a fact of a spec, where the machine has the `possible` features."""
    if name not in _FACTS:
        raise ValueError(f"a target's fact must be one of {', '.join(_FACTS)}, got {name!r}")
    if name == "model" and not _MODEL.fullmatch(text):
        raise ValueError(f"model must be made of a-z, 0-9, '.', '_' and '-', got {text!r}")
    if name == "name" and not text:
        raise ValueError("name must not be empty")
    if name in ("model", "name"):
        return text
    if name != "features":
        return parse_number(name, text)
    wanted = {f"+{feature}" for feature in text.split("+")[1:]}
    if text[:1] not in ("", "+") or not wanted.issubset(possible):
        raise ValueError(
            f"features must be some of {''.join(possible) or 'none'} at this level, got {text!r}"
        )
    return tuple(feature for feature in possible if feature in wanted)


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
        return re.sub(r"[\s,]+", " ", name).strip()
    if "CPU part" in cpuinfo:  # ARM's kernel gives numbers only
        return f"ARM implementer {cpuinfo.get('CPU implementer')} part {cpuinfo['CPU part']}"
    return ""


def _model(cpuinfo: Mapping[str, str]) -> str:
    """Return the id of the exact CPU, of numbers as names may hide or repeat them."""
    if "CPU part" in cpuinfo:
        return slug(f"arm-{cpuinfo.get('CPU implementer', '')}-{cpuinfo['CPU part']}")
    vendor, *numbers = (cpuinfo.get(name, "") for name in ("vendor_id", "cpu family", "model"))
    vendor = slug(vendor)
    if vendor and all(number.isdecimal() for number in numbers):
        return "-".join((_VENDORS.get(vendor, vendor), *numbers))
    return slug(cpuinfo.get(_DARWIN_KEYS[0], ""))


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
            if kind != "Instruction":
                caches[int(level)] = parse_number("bytes", size)
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
    brand = fields.get(_DARWIN_KEYS[0], "")
    return (
        {"model name": brand, _DARWIN_KEYS[0]: brand, "flags": flags if has_avx2 else ""},
        {level: int(size) for level, size in sizes if size.isdigit()},
    )
