"""An allocator such as a framework gives to kernels, of host memory and with a book of it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tvm_ffi
from emulator.array import _DLTensor as DLTensor


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (
    ("version", ctypes.c_uint32 * 2),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
    ("flags", ctypes.c_uint64),
    ("tensor", DLTensor),
)
_SetError = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
_Allocate = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(DLTensor),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
    _SetError,
)


class Allocator:
    """Gives `left` pieces of memory, and remembers how large they were."""

    def __init__(self, left: int = 1000) -> None:
        self.left = left
        self.sizes: list[int] = []
        self.devices: list[int] = []
        self.freed = 0
        self.function = _Allocate(self._allocate)
        self._delete = _Deleter(self._free)
        self._held: dict[int, tuple[Any, ...]] = {}

    def _allocate(self, prototype: Any, out: Any, context: Any, set_error: Any) -> int:
        if not self.left:
            set_error(context, b"MemoryError", b"the test gives no more memory")
            return -1
        self.left -= 1
        asked = prototype.contents
        size = asked.shape[0] * asked.bits // 8
        memory = ctypes.create_string_buffer(size + 64)
        shape, strides = (ctypes.c_int64 * 1)(asked.shape[0]), (ctypes.c_int64 * 1)(1)
        start = ctypes.addressof(memory) + -ctypes.addressof(memory) % 64
        tensor = DLTensor(
            *(start, asked.device_type, asked.device_id, 1, asked.code, asked.bits, asked.lanes),
            *(shape, strides, 0),
        )
        managed = _Managed((ctypes.c_uint32 * 2)(1, 1), None, self._delete, 0, tensor)
        self._held[ctypes.addressof(managed)] = (managed, memory, shape, strides)
        out[0] = ctypes.addressof(managed)
        self.sizes.append(size)
        self.devices.append(asked.device_id)
        return 0

    def _free(self, managed: Any) -> None:
        del self._held[ctypes.addressof(managed.contents)]
        self.freed += 1


@contextmanager
def using(allocator: Allocator) -> Iterator[Allocator]:
    """Let kernels that this thread calls take their scratch from the allocator."""
    library = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
    before = ctypes.c_void_p()
    change = library.TVMFFIEnvSetDLPackManagedTensorAllocator
    change.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))
    assert not change(ctypes.cast(allocator.function, ctypes.c_void_p), 0, ctypes.byref(before))
    try:
        yield allocator
    finally:
        assert not change(before, 0, None)
