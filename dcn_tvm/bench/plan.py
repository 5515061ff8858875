"""What is to be measured, and how: everything that a benchmark is asked beside its problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch

from dcn_tvm.bench.contender import (
    MEMORY_FORMATS,
    MODES,
    Contender,
    Mode,
    OpBench,
    Setting,
    bench_of,
)
from dcn_tvm.suites import Case

# Words for modes: a backward pass is timed with its forward pass, as a training step calls them.
_ALIASES: dict[str, tuple[Mode, ...]] = {
    "backward": ("forward+backward",),
    "both": ("forward", "forward+backward"),
}
_ALWAYS = ("ours", "baseline", "rest")  # roles: whom others are measured against


def _default_dtypes() -> dict[Mode, tuple[str, ...]]:
    """Return float32, and for inference bfloat16 as well."""
    return {mode: ("float32", "bfloat16")[: 1 + (mode == "forward")] for mode in get_args(Mode)}


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        modes: of calls.
        dtypes: of tensors, for each mode.
        memory_formats: of maps.
        device: in torch's words.
        against: the names of the contenders beside ours and the baseline; None is all.
        cold: whether caches are overwritten before each call.
        seconds: that a problem and mode may take once everything is compiled; slow contenders may
            need more for their `min_rounds`.
        min_rounds: turns of every contender.
        memory: whether to measure memory, in a process of its own.
    """

    modes: tuple[Mode, ...] = MODES
    dtypes: dict[Mode, tuple[str, ...]] = field(default_factory=_default_dtypes)
    memory_formats: tuple[str, ...] = MEMORY_FORMATS
    device: str = "cpu"
    against: frozenset[str] | None = None
    cold: bool = False
    seconds: float = 3.0
    min_rounds: int = 3
    memory: bool = True

    @property
    def all_dtypes(self) -> tuple[str, ...]:
        """The dtypes of any mode."""
        return tuple(dict.fromkeys(d for mode in self.modes for d in self.dtypes[mode]))

    def wants(self, contender: Contender) -> bool:
        """Return whether a contender is asked for, and runs on the device."""
        chosen = self.against is None or contender.name in self.against
        kind = self.device.partition(":")[0]
        return (chosen or contender.role in _ALWAYS) and kind in contender.devices

    def entrants(self, bench: OpBench, case: Case, mode: Mode) -> list[tuple[Contender, Setting]]:
        """Return who takes part in a case and mode, in every setting that is asked for."""
        return [
            (contender, self._on_device(setting))
            for contender in bench.present(case)
            if self.wants(contender)
            for setting in contender.settings
            if setting.mode == mode
            and setting.dtype in self.dtypes[mode]
            and setting.memory_format in self._formats(contender)
        ]

    def _formats(self, contender: Contender) -> tuple[str, ...]:
        """Return the wanted memory formats; a baseline that has none of them runs in its own."""
        own = tuple(dict.fromkeys(setting.memory_format for setting in contender.settings))
        wanted = tuple(name for name in self.memory_formats if name in own)
        return own if contender.role == "baseline" and not wanted else wanted

    def absent(self, ops: Sequence[str]) -> dict[str, str]:
        """Return, for each contender that is wanted and cannot run, why not and how to get it."""
        found: dict[str, str] = {}
        for op in ops:
            bench = bench_of(op)
            wanted = {c.name for c in bench.contenders if self.wants(c)}
            found |= {name: why for name, why in bench.absent().items() if name in wanted}
        return found

    def _on_device(self, setting: Setting) -> Setting:
        return Setting(setting.mode, setting.dtype, setting.memory_format, self.device)


def parse_modes(names: Sequence[str] | None) -> tuple[Mode, ...]:
    """Return the modes of these names, all if there are none.

    Raises:
        ValueError: a name is no mode.
    """
    known: dict[str, tuple[Mode, ...]] = {mode: (mode,) for mode in MODES}
    known |= _ALIASES
    for name in names or ():
        if name not in known:
            raise ValueError(f"mode must be one of {', '.join(known)}, got {name}")
    wanted = {mode for name in names or MODES for mode in known[name]}
    return tuple(mode for mode in MODES if mode in wanted)


def parse_dtypes(names: Sequence[str] | None) -> dict[Mode, tuple[str, ...]]:
    """Return the dtypes of each mode: these for all of them; by default see `Plan`.

    Raises:
        ValueError: a name is none of a dtype that any contender takes.
    """
    if not names:
        return _default_dtypes()
    _check("dtype", names, ("float32", "bfloat16", "float16", "float64"))
    return {mode: tuple(dict.fromkeys(names)) for mode in MODES}


def parse_memory_formats(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return these memory formats, all if there are none.

    Raises:
        ValueError: a name is none.
    """
    _check("memory format", names or (), MEMORY_FORMATS)
    return tuple(f for f in MEMORY_FORMATS if f in (names or MEMORY_FORMATS))


def parse_against(names: Sequence[str] | None, ops: Sequence[str]) -> frozenset[str] | None:
    """Return the contenders of these names, None for all.

    Raises:
        ValueError: no op has a contender of a name.
    """
    if not names:
        return None
    known = dict.fromkeys(c.name for op in ops for c in bench_of(op).contenders if c.role != "ours")
    _check("contender", names, tuple(known))
    return frozenset(names)


def parse_cache(name: str) -> bool:
    """Return whether caches are to be cold.

    Raises:
        ValueError: the name is neither "warm" nor "cold".
    """
    _check("cache", [name], ("warm", "cold"))
    return name == "cold"


def parse_device(name: str) -> str:
    """Return a device in torch's words.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu or cuda, got {name}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device must be the cpu or one of {count} CUDA devices, got {name}")
    return "cpu" if device.type == "cpu" else str(device)


def _check(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}, got {name}")
