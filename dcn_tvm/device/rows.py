"""Rows: what the benchmark measures, the most telling first, and the kernels that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from dcn_tvm import gpu, kernels, ops, suites
from dcn_tvm.bench.contender import LAYOUTS, MEMORY_FORMATS, Mode, Setting
from dcn_tvm.build import Request
from dcn_tvm.device.precision import dtype_of
from dcn_tvm.gpu import Gpu
from dcn_tvm.problem import Problem
from dcn_tvm.suites import Case
from dcn_tvm.workload import Workload

MODES: tuple[Mode, ...] = ("forward", "forward+backward")
# In the order of their worth: half types are what the device is made for.
PRECISIONS = ("bfloat16", "float32", "float16", "tf32")
_OFTEN = 2  # of them, that come first
SMALL = {"height": 8, "width": 9, "boxes": 3, "batch": 1}


@dataclass(frozen=True, eq=False)
class Spec:
    """One row: a case in a precision, a memory format and a mode."""

    case: Case
    mode: Mode
    precision: str
    memory_format: str

    @property
    def key(self) -> str:
        """What it is, in words."""
        form = "nchw" if self.memory_format == "contiguous" else "nhwc"
        return f"{self.case.op} {self.case.label}, {self.mode}, {self.precision} {form}"

    @property
    def problem(self) -> Problem:
        """The static facts of its call."""
        return self.case.problem(dtype_of(self.precision), LAYOUTS[self.memory_format])

    def setting(self, device: str) -> Setting:
        """What is asked of a contender."""
        return Setting(self.mode, dtype_of(self.precision), self.memory_format, device)

    def workload(self) -> Workload:
        """What the row's mode adds to tune: forward, or the gradients."""
        forward = ops.registry()[self.case.op].forward.name
        names = set(ops.registry()[self.case.op].kernels())
        wanted = {forward} if self.mode == "forward" else names - {forward}
        return Workload.of(self.problem, self.case.free_sizes, wanted)


def specs(*, small: bool = False) -> list[Spec]:
    """Return all rows, the most telling first; small: one of each op, on a tiny map."""
    if small:
        return [
            Spec(shrunk(least(op)), mode, "float32", "contiguous")
            for op in suites.LARGE
            for mode in MODES
        ]
    found = [
        Spec(case, *choices)
        for cases in suites.LARGE.values()
        for case in cases
        for choices in _choices(case.op)
    ]
    return sorted(found, key=_rank)


def least(op: str) -> Case:
    """Return the first case of an op's suite with the fewest channels."""
    channels = "in_channels" if has_products(op) else "channels"
    return min(suites.SUITES[op], key=lambda case: case.integer(channels))


def shrunk(case: Case) -> Case:
    """Return a case on a tiny map: the same kernels."""
    sizes = {n: min(size, SMALL.get(n, size)) for n, size in case.free_sizes.items()}
    return case.resized(**sizes)


def has_products(op: str) -> bool:
    """Return whether an op multiplies matrices, which TF32 changes: whether it has a filter."""
    return any(tensor.name == "weight" for tensor in ops.registry()[op].tensors)


def _choices(op: str) -> Iterator[tuple[Mode, str, str]]:
    for mode in MODES:
        for precision in PRECISIONS:
            if precision != "tf32" or has_products(op):
                yield from ((mode, precision, form) for form in MEMORY_FORMATS)


def _rank(spec: Spec) -> tuple[bool, bool, int]:
    """Return what rows come in the order of: of equals those of a case, on the same numbers."""
    usual = suites.LARGE[spec.case.op][0].integer("batch")
    seldom = PRECISIONS.index(spec.precision) >= _OFTEN
    return (spec.case.integer("batch") != usual, seldom, MODES.index(spec.mode))


def requests(
    problem: Problem,
    sizes: dict[str, int],
    names: Iterable[str],
    target: Gpu | None,
    *,
    defaults: bool = False,
) -> list[Request]:
    """Return the requests for kernels of a problem, each for all its outputs.

    Args:
        problem: the op's static facts.
        sizes: of the call.
        names: of the kernels.
        target: the GPU in the manner of the call.
        defaults: whatever records say.
    """
    found = []
    known = ops.registry()[problem.op].kernels()
    for name in names:
        outputs = kernels.possible_outputs(problem, known[name].outputs)
        made = kernels.request(problem, name, outputs, sizes, target)
        found.append(replace(made, recorded=()) if defaults else made)
    return found


def target_of(
    device: str, precision: str = "float32", *, deterministic: bool = False
) -> Gpu | None:
    """Return the device as kernels are compiled for it in a manner; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    _, _, index = device.partition(":")
    here = gpu.of_device(int(index or 0))
    return replace(here, tf32=precision == "tf32", deterministic=deterministic)
