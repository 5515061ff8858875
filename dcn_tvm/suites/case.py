"""A case: the sizes and options of one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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

    def resized(self, **sizes: Size) -> Case:
        """Return the case with other sizes."""
        return replace(self, sizes={**self.sizes, **sizes})
