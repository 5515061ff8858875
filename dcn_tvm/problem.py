"""A problem: the frozen static facts of one operator call, the key of every build and record."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPES = ("float32", "float64", "float16", "bfloat16")
LAYOUTS = ("nchw", "nhwc")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Static facts of an op; batch, height, width and RoI counts are free variables of its kernels.

    Subclasses add the op's channels, kernel size, conventions. Two calls with equal problems share
    their builds, whatever the image sizes.
    """

    op: ClassVar[str]

    dtype: str
    layout: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TypeError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout}")

    @property
    def accumulate(self) -> str:
        """Type of sums, coordinates and packed operands: float64 for float64, else float32."""
        return "float64" if self.dtype == "float64" else "float32"

    def absent(self) -> tuple[str, ...]:
        """Names of the optional tensors that this problem does not have."""
        return ()

    def particulars(self) -> dict[str, Any]:
        """Return the facts that are not the defaults of their class, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def to_json(self) -> str:
        """Canonical text: sorted keys, no spaces; equal problems give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Self:
        """Build from plain JSON values, lists standing for tuples."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"{cls.op} has no field {unknown[0]!r}; fields: {', '.join(sorted(known))}"
            )
        frozen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**frozen)
