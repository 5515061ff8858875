"""Launching emulated kernels straight through the driver, without a host part."""

from __future__ import annotations

import ctypes
from typing import Any

from .array import Array
from .control import library
from .translate import image

DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class DriverError(RuntimeError):
    """An error that an entry point of the driver returned, with its number."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def call(name: str, *arguments: Any) -> None:
    """Call an entry point; raise DriverError where it fails."""
    code = getattr(library(), name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        library().cuGetErrorString(code, ctypes.byref(text))
        raise DriverError(code, (text.value or b"").decode())


def enter(device: int = 0) -> None:
    """Make a device current in this thread."""
    context = ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxPushCurrent_v2", context)


def leave() -> None:
    """Take back `enter`."""
    call("cuCtxPopCurrent_v2", None)


class Kernels:
    """The kernels of a CUDA source, or of an image of one.

    Example:
        >>> Kernels(source).launch("scale", 4, 256, Array(x), ctypes.c_int64(1024))
    """

    def __init__(self, source: str | bytes) -> None:
        code = image(source) if isinstance(source, str) else source
        self._library = ctypes.c_void_p()
        enter()
        try:
            call("cuLibraryLoadData", ctypes.byref(self._library), code, *(None, None, 0) * 2)
        finally:
            leave()

    def kernel(self, name: str) -> ctypes.c_void_p:
        """The handle of one of them."""
        found = ctypes.c_void_p()
        call("cuLibraryGetKernel", ctypes.byref(found), self._library, name.encode())
        return found

    def launch(
        self,
        name: str,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        *arguments: Array | Any,
        shared: int = 0,
    ) -> None:
        """Run a kernel on device 0: arrays go as pointers, scalars as ctypes of their size."""
        values = [
            ctypes.c_void_p(argument.pointer) if isinstance(argument, Array) else argument
            for argument in arguments
        ]
        pointers = (ctypes.c_void_p * max(len(values), 1))(*map(ctypes.addressof, values))
        sizes = [
            ctypes.c_uint(extent)
            for extents in (grid, block)
            for extent in (*((extents,) if isinstance(extents, int) else extents), 1, 1)[:3]
        ]
        enter()
        try:
            kernel = self.kernel(name)
            if shared > 48 << 10:
                call("cuKernelSetAttribute", DYNAMIC_SHARED_BYTES, shared, kernel, 0)
            call("cuLaunchKernel", kernel, *sizes, shared, None, pointers, None)
        finally:
            leave()
