"""What all layers on boxes share: the grid of bins, the scale of the map, checks, `repr`."""

import math
from typing import Any, ClassVar

from torch import nn

from dcn_tvm.functional import checks


class BoxPool(nn.Module):
    """A layer with a grid of bins for each box, on a map of some scale."""

    # Arguments of the subclass that `repr` shows where they differ from these.
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, output_size: checks.Pair, spatial_scale: float) -> None:
        super().__init__()
        self.output_size = checks.pair("output_size", output_size, 1)
        if not 0 < spatial_scale < math.inf:
            raise ValueError(f"spatial_scale must be positive and finite, got {spatial_scale}")
        self.spatial_scale = float(spatial_scale)

    def extra_repr(self) -> str:
        """Return the bins, the scale and the arguments that differ from the defaults."""
        parts = [f"output_size={self.output_size}, spatial_scale={self.spatial_scale:.6g}"]
        for name, default in self._defaults.items():
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    """Return the value of an argument that knows few."""
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}")
    return value


def count(name: str, value: int) -> int:
    """Return a number of things, of which there is at least one."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def finite(name: str, value: float) -> float:
    """Return a number that is neither infinite nor NaN."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)
