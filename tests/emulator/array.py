"""Arrays that pass for tensors of a CUDA device.

A kernel gets them as arguments through DLPack; around each lie zones that nobody may write.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CUDA = 2  # DLPack's number
ZONE = 4096  # bytes on each side
POISON = 0xFF
ALIGNMENT = 256  # of what a driver allocates

_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_BFLOAT = 4


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (
    ("tensor", _DLTensor),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
)

# What a consumer holds, by the address of its structure: kept until it calls the deleter.
_held: dict[int, tuple[Any, ...]] = {}


def _release(managed: Any) -> None:
    _held.pop(ctypes.addressof(managed.contents), None)


_delete = _Deleter(_release)


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Array:
    """A copy of a numpy array that says that it lies on a device.

    Args:
        array: The values; bfloat16 as `ml_dtypes` has it, or as uint16 with `dtype="bfloat16"`.
        dtype: Another name than numpy's for what the array holds.
        device: DLPack's device type and number.
        shift: Bytes by which the data lies off the alignment of an allocation, as in a view.
    """

    def __init__(
        self,
        array: np.ndarray[Any, Any],
        dtype: str | None = None,
        device: tuple[int, int] = (CUDA, 0),
        shift: int = 0,
    ) -> None:
        array = np.asarray(array)
        self.shape = array.shape
        self.dtype = dtype or array.dtype.name
        self.device = device
        self._memory = np.full(array.nbytes + 2 * ZONE + ALIGNMENT + shift, POISON, np.uint8)
        start = ZONE + -(self._memory.ctypes.data + ZONE) % ALIGNMENT + shift
        self._zones = (self._memory[:start], self._memory[start + array.nbytes :])
        self._data = self._memory[start : start + array.nbytes].view(array.dtype)
        self._data = self._data.reshape(array.shape)
        self._data[...] = array

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: Any = np.float32, **options: Any) -> Array:
        """An array that holds poison: of floating point, no numbers."""
        array = cls(np.zeros(shape, dtype), **options)
        array._data.view(np.uint8)[...] = POISON
        return array

    @property
    def pointer(self) -> int:
        """Where the data lies."""
        return int(self._data.ctypes.data)

    @property
    def bytes(self) -> int:
        """How many the data has."""
        return self._data.nbytes

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy of the values, after `check`."""
        self.check()
        return self._data.copy()

    def check(self) -> None:
        """Raise AssertionError where something was written before or behind the data."""
        before, behind = self._zones
        for zone, place in ((before, "before"), (behind, "behind")):
            (touched,) = np.nonzero(zone != POISON)
            if len(touched):
                distance = len(zone) - touched[-1] if zone is before else touched[0] + 1
                raise AssertionError(
                    f"{len(touched)} bytes were written {place} an array of {self.dtype} "
                    f"{self.shape}, the nearest {distance} bytes {place} it"
                )

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **_: Any) -> Any:
        ndim = len(self.shape)
        shape = (ctypes.c_int64 * max(ndim, 1))(*self.shape)
        strides = (ctypes.c_int64 * max(ndim, 1))(
            *(stride // self._data.itemsize for stride in self._data.strides)
        )
        code = _BFLOAT if self.dtype == "bfloat16" else _CODES[np.dtype(self.dtype).kind]
        tensor = _DLTensor(
            self.pointer, *self.device, ndim, code, 8 * self._data.itemsize, 1, shape, strides, 0
        )
        managed = _Managed(tensor, None, _delete)
        address = ctypes.addressof(managed)
        _held[address] = (managed, shape, strides, self._memory)
        return _new_capsule(address, b"dltensor", None)
