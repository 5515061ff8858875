"""From a request to a call: the host part is TVM's and ours, a launch is the device's."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from dcn_tvm import build
from dcn_tvm import target as targets
from dcn_tvm.build import Request
from dcn_tvm.cuda import lower
from dcn_tvm.cuda.lower import Lowered
from dcn_tvm.gpu import Gpu
from dcn_tvm.knobs import Knobs
from tests.emulator import Array, toolchain
from tests.emulator.operators import through

Memory = np.ndarray[Any, np.dtype[np.uint8]]  # bytes of a tensor or of scratch, in place
Sizes = tuple[int, int, int]
_SCALARS = {"l": np.int64, "i": np.int32, "f": np.float32, "d": np.float64}
_LEAST_BYTES = 16  # of a buffer: no device has empty ones; there is that much behind every array
_LAUNCH = ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p),
    *(ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_void_p)),
)


class Program(Protocol):
    """The kernels of a function, on a device."""

    def launch(self, name: str, grid: Sizes, block: Sizes, arguments: Sequence[Any]) -> None:
        """Run a kernel to its end; arguments are `Memory`, which it may write to, and numbers."""


class Device(Protocol):
    """What runs kernels: `code` is DLPack's number for it."""

    target: Gpu
    code: int

    def program(self, lowered: Lowered) -> Program:
        """Compile the source of a function's kernels."""


def on_device(
    op_name: str, device: Device, choose: Callable[[], Knobs] = Knobs
) -> Callable[..., Tensor]:
    """The public function of an op, with gradients, for CPU tensors that the device computes with.

    Args:
        op_name: of the contract.
        device: where the kernels run.
        choose: makes the knobs of each kernel; a kernel is built once for the same `choose`.
    """

    def run(request: Request, arrays: Sequence[Array], scalars: Sequence[float]) -> None:
        function = _kernel(request, device, choose)
        with _driving({array.pointer: array.bytes for array in arrays}):
            function(*arrays, *scalars)

    return through(op_name, run, (device.code, 0))


class _Loaded:
    """A program and how its kernels are called, by the image that the host part holds."""

    def __init__(self, program: Program, lowered: Lowered) -> None:
        self.program = program
        self.signatures = {kernel.name: kernel.signature for kernel in lowered.kernels}


_loaded: list[_Loaded] = []
_modules: list[Any] = []  # a module's functions are valid only as long as it lives
_sizes: dict[int, int] = {}  # bytes of the arrays of the call that is under way, by address
_errors: list[BaseException] = []  # of launches, as none can leave them


@functools.cache
def _kernel(request: Request, device: Device, choose: Callable[[], Knobs]) -> Any:
    function = build.schedule(request, device.target, choose()).function
    lowered = lower.lower(
        function, device.target.to_tvm_dict(), dict(targets.detect().to_tvm_dict())
    )
    _loaded.append(_Loaded(device.program(lowered), lowered))
    _modules.append(lower.assemble(lowered, f"{len(_loaded) - 1}\0".encode()))
    return _modules[-1][build.SYMBOL]


@contextmanager
def _driving(sizes: dict[int, int]) -> Iterator[None]:
    """Let kernels be launched here, on these arrays."""
    name, before = "DCN_TVM_CUDA_DRIVER", os.environ.get("DCN_TVM_CUDA_DRIVER")
    _driver()
    os.environ[name] = str(_built())
    _sizes.clear()
    _sizes.update(sizes)
    try:
        yield
    except RuntimeError as error:
        if _errors:
            raise _errors.pop() from error
        raise
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@functools.cache
def _built() -> Path:
    source = Path(__file__).with_name("driver.cpp").read_text()
    return toolchain.library("devices", source, ["-O2"])


@functools.cache
def _driver() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_built()))
    library.dcn_tvm_devices_bytes.restype = ctypes.c_size_t
    library.dcn_tvm_devices_bytes.argtypes = (ctypes.c_void_p,)
    library.dcn_tvm_devices_launch(_launch)
    return library


@_LAUNCH
def _launch(image: bytes, name: bytes, sizes: Any, parameters: Any) -> int:
    try:
        loaded = _loaded[int(image)]
        kinds = loaded.signatures[name.decode()]
        values = [
            _memory(ctypes.c_void_p.from_address(parameters[i]).value)
            if kind == "p"
            else np.ctypeslib.as_array(
                ctypes.cast(parameters[i], ctypes.POINTER(ctypes.c_uint8)), (8,)
            ).view(_SCALARS[kind])[0]
            for i, kind in enumerate(kinds.rstrip("XYZxyz"))
        ]
        grid, block = (sizes[0], sizes[1], sizes[2]), (sizes[3], sizes[4], sizes[5])
        loaded.program.launch(name.decode(), grid, block, values)
    except BaseException as error:
        _errors.append(error)
        return 1
    return 0


def _memory(pointer: int | None) -> Memory:
    """The bytes of the array or of the scratch that begins there."""
    size = _sizes.get(pointer or 0, 0) or _driver().dcn_tvm_devices_bytes(pointer)
    whole = max(_LEAST_BYTES, -(-size // 4) * 4)
    memory: Memory = np.ctypeslib.as_array(
        ctypes.cast(pointer or 0, ctypes.POINTER(ctypes.c_uint8)), (whole,)
    )
    return memory
