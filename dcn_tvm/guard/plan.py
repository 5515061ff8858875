"""Which kernels are guarded, and for which machine they are compiled: for none in particular.

Every op's suite says what to guard, with a small map, as kernels are the same for any map, and with
few channels: valgrind takes 0.1 µs for an instruction, and more where it multiplies and adds. Of
problems that then differ in channels alone the one with the fewest stands for all. channels_last
has kernels of its own; of these each op's first problem is guarded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dcn_tvm import ops, suites, target
from dcn_tvm.build import Request
from dcn_tvm.kernels import possible_outputs
from dcn_tvm.suites import Case
from dcn_tvm.workload import Sizes

# All facts are said, so that schedules choose the same everywhere. valgrind knows no AVX-512.
TARGET = target.parse(
    "x86-64-v3,cores=4,lanes=8,registers=16,l1_bytes=32K,l2_bytes=1M,l3_bytes=32M", foreign=True
)
# Of the calls, where the op has them: a million instructions, of which the fixed part is little.
SIZES = {
    **{"batch": 1, "height": 10, "width": 14, "boxes": 12},
    **{"in_channels": 64, "out_channels": 64},
}


@dataclass(frozen=True)
class Guarded:
    """A kernel of which the instructions are counted.

    Attributes:
        name: of the kernel and its call, as the budget has it.
        request: the kernel.
        sizes: of the call.
    """

    name: str
    request: Request
    sizes: Sizes


def guarded(names: Sequence[str] | None = None) -> list[Guarded]:
    """Return the guarded kernels of some ops, of all if none are named.

    Raises:
        ValueError: there is no such op.

    Example:
        >>> guarded(["roi_pool"])[0].name
        'roi_pool.forward nchw 1x256x10x14 12 boxes max'
    """
    known = tuple(suites.SUITES)
    for name in names or ():
        if name not in known:
            raise ValueError(f"op must be one of {', '.join(known)}, got {name}")
    found: dict[str, Guarded] = {}
    for op in known:
        if op in (names or known):
            found |= {each.name: each for each in _of_op(suites.SUITES[op])}
    return list(found.values())


def _of_op(cases: Sequence[Case]) -> Iterator[Guarded]:
    chosen = _representatives(cases)
    for layout, some in (("nchw", chosen), ("nhwc", chosen[:1])):
        for case in some:
            yield from _of_case(case, layout)


def _representatives(cases: Sequence[Case]) -> list[Case]:
    """Make cases small, and of those that then differ in channels alone return the least."""
    least: dict[tuple[object, ...], Case] = {}
    for case in cases:
        small = case.resized(**{name: n for name, n in SIZES.items() if name in case.sizes})
        kind = tuple(item for item in small.problem().particulars().items() if not _wide(item[0]))
        least[kind] = min(least.get(kind, small), small, key=_channels)
    return list(least.values())


def _wide(field: str) -> bool:
    return field.endswith("channels")


def _channels(case: Case) -> int:
    facts = case.problem().particulars()
    return math.prod(size for name, size in facts.items() if _wide(name))


def _of_case(case: Case, layout: str) -> Iterator[Guarded]:
    problem = case.problem(layout=layout)
    for name, kernel in ops.registry()[case.op].kernels().items():
        request = Request(problem, name, possible_outputs(problem, kernel.outputs))
        sizes = tuple(sorted(case.free_sizes.items()))
        yield Guarded(f"{case.op}.{name} {layout} {case.label}", request, sizes)
