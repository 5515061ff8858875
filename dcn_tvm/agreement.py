"""When results agree: the error relative to a trusted result, and how much of it is rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# Relative error in the norm of a result that a right answer stays below: some 1000 roundings of
# what is summed in its own type, 4 where sums are wider and are rounded once.
TOLERANCES = {
    "float32": 1000 * 2.0**-24,
    "float64": 1000 * 2.0**-53,
    "float16": 4 * 2.0**-11,
    "bfloat16": 4 * 2.0**-8,
}


def relative_error(results: Iterable[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest |result - wanted| / |wanted| in the 2-norm.

    Equal results, empty ones too, have the error 0. What differs from zeros has an infinite one, as
    has whatever holds a NaN, or an infinity, for which a norm is no measure.

    Raises:
        ValueError: there are more or fewer results than wanted, or their shapes differ.
    """
    pairs = zip(results, wanted, strict=True)
    return max((_error(result, reference) for result, reference in pairs), default=0.0)


def _error(result: Tensor, wanted: Tensor) -> float:
    if result.shape != wanted.shape:
        raise ValueError(
            f"a result must have shape {tuple(wanted.shape)}, got {tuple(result.shape)}"
        )
    true = wanted.detach().double()
    distance = float(torch.linalg.vector_norm(result.detach().double() - true))
    norm = float(torch.linalg.vector_norm(true))
    if math.isnan(distance) or math.isinf(norm):
        return math.inf
    if norm == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / norm
