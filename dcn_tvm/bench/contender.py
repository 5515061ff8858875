"""What a benchmark compares: a contender prepares a call for a case and a setting."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from dcn_tvm import examples
from dcn_tvm.bench import on_device
from dcn_tvm.examples import Example
from dcn_tvm.suites import Case

Mode = Literal["forward", "forward+backward", "network"]
MODES: tuple[Mode, ...] = ("forward", "forward+backward", "network")
MEMORY_FORMATS = ("contiguous", "channels_last")
LAYOUTS = dict(zip(MEMORY_FORMATS, ("nchw", "nhwc"), strict=True))

Call = Callable[[], Sequence[Tensor]]


class Work(NamedTuple):
    """What a call does: operations, and the bytes it must move at least."""

    flops: int
    bytes_moved: int


@dataclass(frozen=True)
class Setting:
    """What is asked of a contender beside the sizes; the device in torch's words."""

    mode: Mode = "forward"
    dtype: str = "float32"
    memory_format: str = "contiguous"
    device: str = "cpu"


def settings(
    modes: Sequence[Mode] = MODES,
    dtypes: Sequence[str] = ("float32",),
    memory_formats: Sequence[str] = MEMORY_FORMATS,
) -> tuple[Setting, ...]:
    """Return every combination."""
    return tuple(Setting(m, d, f) for m in modes for d in dtypes for f in memory_formats)


_PLAIN = Setting()


def example_of(case: Case, setting: Setting = _PLAIN) -> Example:
    """Return the call of a case, with the same numbers for everyone."""
    problem = case.problem(setting.dtype, LAYOUTS[setting.memory_format])
    if setting.device != "cpu":
        return on_device.example(problem, case.free_sizes, setting.device)
    return examples.example(problem, case.free_sizes)


@dataclass(frozen=True)
class Contender:
    """One provider of an op, or a floor that does as many operations.

    Attributes:
        name: what the tables call it.
        role: "ours"; "peer", the same function by others; "baseline", to whose time all others are
            related; "floor", another function that does as much; "rest", what the network mode
            does beside the op.
        package: the distribution whose version a row states.
        settings: the settings it takes part in.
        prepare: makes the inputs and returns the call to time; the call returns the results: the
            output and, in the backward mode, the gradients.
        install: how to get it.
        imports: the modules that must be importable.
        serves: whether it can do a case at all; it takes no part in the others.
        work: what it does where that is not the op's: a copy computes nothing.
        devices: the types of devices that it runs on, in torch's words.
    """

    name: str
    role: Literal["ours", "peer", "baseline", "floor", "rest"]
    package: str
    settings: tuple[Setting, ...]
    prepare: Callable[[Case, Setting], Call]
    install: str
    imports: tuple[str, ...] = ()
    serves: Callable[[Case], bool] = lambda case: True
    devices: tuple[str, ...] = ("cpu",)
    work: Callable[[Case, Setting], Work] | None = None

    def absent_because(self) -> str | None:
        """Return why the contender cannot run here, or None if it can."""
        for module in self.imports:
            try:
                importlib.import_module(module)
            except Exception as error:  # a mismatched build raises anything
                return f"{type(error).__name__}: {error}".splitlines()[0]
        return None

    @property
    def same_function(self) -> bool:
        """Whether its results must agree with the oracle's."""
        return self.role in ("ours", "peer")

    @property
    def version(self) -> str:
        """The version of the distribution that provides it."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:  # a bare checkout on the path
            return "checkout"


@dataclass(frozen=True)
class OpBench:
    """Everything the benchmark knows about one op.

    Attributes:
        contenders: in the order of the tables' columns.
        oracle: prepares a trusted call on the same numbers in at least float32; what calls itself
            the same function must agree with it before it is timed.
        flops: floating-point operations of a case in a mode.
        shrink: the same channels on a tiny image: the same kernels, next to no work.
        bytes_moved: what a case must read and write at least in a setting, each tensor once in
            every direction that it has to go.
        judged: the case on which the oracle is asked, by the same kernels: a smaller one where the
            oracle would take too long. Then all of the case is only compared among contenders.
    """

    contenders: tuple[Contender, ...]
    oracle: Callable[[Case, Setting], Call]
    flops: Callable[[Case, Mode], int]
    shrink: Callable[[Case], Case]
    bytes_moved: Callable[[Case, Setting], int]
    judged: Callable[[Case], Case] = lambda case: case

    def work(self, contender: Contender, case: Case, setting: Setting) -> Work:
        """Return what a contender does in a call."""
        if contender.work is not None:
            return contender.work(case, setting)
        return Work(self.flops(case, setting.mode), self.bytes_moved(case, setting))

    def contender(self, name: str) -> Contender:
        """Return the contender called `name`."""
        return next(contender for contender in self.contenders if contender.name == name)

    def present(self, case: Case | None = None) -> tuple[Contender, ...]:
        """Return the contenders that can run here, and, if a case is given, can do it."""
        able = (c for c in self.contenders if case is None or c.serves(case))
        return tuple(c for c in able if c.absent_because() is None)

    def absent(self) -> dict[str, str]:
        """Return, for each contender that cannot run here, why not and how to get it."""
        reasons = {c: c.absent_because() for c in self.contenders}
        return {c.name: f"{reason}; {c.install}" for c, reason in reasons.items() if reason}


def bench_of(op: str) -> OpBench:
    """Return the benchmark of `op`.

    Raises:
        ValueError: there is none.
    """
    name = f"dcn_tvm.bench.{op}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(f"there is no benchmark of {op!r}") from error
    bench = module.BENCH
    assert isinstance(bench, OpBench)
    return bench
