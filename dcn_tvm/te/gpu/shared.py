"""Shared memory of a block: a plan of what lies where, of which the schedule knows the size.

On CUDA all lies in one array whose size the launch says, as a kernel's own arrays end at 48 KiB;
what lies `over` lies over the rest, for numbers that live when the others do not. Other targets
know neither casts nor such sizes: there each is an array of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.script.ir_builder import tirx as T

ALIGNMENT = 16  # bytes
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "float64": 8}
Sizes = Mapping[str, tuple[int, str]]


class Shared:
    """Arrays by name, of a number of elements and a type each."""

    def __init__(self, scope: str, arrays: Sizes, over: Sizes, kept: Sizes) -> None:
        """Arrays, others that lie over them where they can, and those that nothing lies over."""
        self.scope, self._sizes = scope, {**arrays, **over, **kept}
        self._starts, end = _packed(arrays, 0)
        starts, after = _packed(over, end if scope == "shared" else 0)
        rest, self.bytes = _packed(kept, max(end, after))
        self._starts |= starts | rest
        self._arrays: dict[str, Any] = {}

    def open(self) -> None:
        """Allocate them."""
        if self.scope == "shared":
            for name, (count, dtype) in self._sizes.items():
                self._arrays[name] = T.sblock_alloc_buffer((count,), dtype, scope="shared")
            return
        arena = T.sblock_alloc_buffer((self.bytes,), "uint8", scope=self.scope)
        for name, (count, dtype) in self._sizes.items():
            start = self._starts[name] // BYTES[dtype]
            self._arrays[name] = T.decl_buffer(
                (count,), dtype, data=arena.data, elem_offset=start, scope=self.scope
            )

    def __getitem__(self, name: str) -> Any:
        return self._arrays[name]

    def barrier(self) -> None:
        """Wait for all threads of the block."""
        T.evaluate(T.tvm_storage_sync("shared"))


def _packed(arrays: Sizes, start: int) -> tuple[dict[str, int], int]:
    """Where each begins, and the end of all."""
    starts = {}
    for name, (count, dtype) in arrays.items():
        starts[name] = start
        start += -(-count * BYTES[dtype] // ALIGNMENT) * ALIGNMENT
    return starts, start
