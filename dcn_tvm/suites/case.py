"""A case: the sizes and options of one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dcn_tvm import ops
from dcn_tvm.problem import Problem

Size = int | str | tuple[int, int]  # flags are integers to Python


@dataclass(frozen=True)
class Case:
    """The sizes of one call of an op, and how a table writes them."""

    op: str
    sizes: Mapping[str, Size]
    template: str

    @property
    def label(self) -> str:
        """The case in a few characters."""
        return self.template.format_map(self.sizes)

    def integer(self, name: str) -> int:
        """Return the size `name`, an integer or a flag.

        Raises:
            TypeError: it is something else.
        """
        size = self.sizes[name]
        if not isinstance(size, int):
            raise TypeError(f"{name} must be an integer, got {size}")
        return size

    def pair(self, name: str) -> tuple[int, int]:
        """Return the size `name` as (vertical, horizontal), one number for both.

        Raises:
            TypeError: it is text.
        """
        size = self.sizes[name]
        if isinstance(size, str):
            raise TypeError(f"{name} must be one or two integers, got {size}")
        return (size, size) if isinstance(size, int) else size

    def text(self, name: str) -> str:
        """Return the option `name`, a word.

        Raises:
            TypeError: it is a number.
        """
        size = self.sizes[name]
        if not isinstance(size, str):
            raise TypeError(f"{name} must be a word, got {size}")
        return size

    def problem(self, dtype: str = "float32", layout: str = "nchw") -> Problem:
        """Return the static facts of the call.

        Raises:
            TypeError: there is no such dtype.
            ValueError: there is no such layout.
        """
        kind = ops.registry()[self.op].problem
        known = {field.name for field in dataclasses.fields(kind)}
        facts: dict[str, Any] = {name: size for name, size in self.sizes.items() if name in known}
        return kind(dtype=dtype, layout=layout, **facts)

    @property
    def free_sizes(self) -> dict[str, int]:
        """The sizes that are no facts of the problem."""
        kind = ops.registry()[self.op].problem
        known = {field.name for field in dataclasses.fields(kind)}
        return {name: self.integer(name) for name in self.sizes if name not in known}

    def resized(self, **sizes: Size) -> Case:
        """Return the case with other sizes."""
        return replace(self, sizes={**self.sizes, **sizes})
