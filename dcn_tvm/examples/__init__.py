"""Examples: realistic arguments of a call, for any problem of any op, at any sizes.

The tuner and the benchmark measure them, and judge results by their reference. They are drawn as
detectors and segmentation networks would have them, off every kink, where two right answers may
differ. What is particular to an op stands in the file of its family; adding it there is all that a
new op needs.
"""

from __future__ import annotations

from collections.abc import Mapping

from dcn_tvm import ops
from dcn_tvm.examples import deform_conv2d, roi
from dcn_tvm.examples.contract import Example, Family
from dcn_tvm.problem import Problem

__all__ = ["Example", "example", "judged_sizes"]

_FAMILIES: dict[str, Family] = {
    "deform_conv2d": deform_conv2d.FAMILY,
    **dict.fromkeys(roi.OPTIONS, roi.FAMILY),
}


def example(problem: Problem, sizes: Mapping[str, int], seed: int = 0) -> Example:
    """Return a call of a problem.

    Args:
        problem: the op's static facts.
        sizes: the free sizes of the call, by the names of the op's contract; a stride may be
            missing, and names that the op does not have mean nothing.
        seed: equal ones give equal numbers.

    Raises:
        ValueError: the op has no examples, a size is missing or not positive, they leave no output,
            or no call has this problem, as one with offset parts but no offset.
    """
    made = _family(problem).example(problem, sizes, seed)
    contract = ops.registry()[problem.op]
    facts = contract.facts(made.tensors, made.attributes, problem.dtype, problem.layout)
    if (met := contract.problem(*facts)) != problem:
        raise ValueError(f"no call has the problem {problem}; the one it describes is {met}")
    return made


def judged_sizes(problem: Problem, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return sizes no larger than these, mostly, at which the reference takes little time.

    A map too small to have an output is made as large as it must be.

    Raises:
        ValueError: the op has no examples, or a size is missing or not positive.
    """
    return _family(problem).judged_sizes(problem, sizes)


def _family(problem: Problem) -> Family:
    if problem.op not in _FAMILIES:
        raise ValueError(f"op must be one of {', '.join(_FAMILIES)}, got {problem.op}")
    return _FAMILIES[problem.op]
