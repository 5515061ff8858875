"""CUDA kernels without a GPU: a driver library that runs them on the host, for tests.

What our compiled kernels launch goes through a driver that is opened by name, so a test can give
them this one. It runs the CUDA source that TVM emitted, compiled by g++, one fiber per thread:
numbers, barriers, races, limits and writes out of bounds are checked; speed and inline PTX are not.
See `driver.cpp` for the driver, `block.hpp` for how threads take turns, `translate.py` for what
becomes of a source, `device/` for CUDA's language.
"""

from .array import CUDA, Array
from .control import ORDERS, Launched, allocations, launches, library, using
from .kernels import DriverError, Kernels, call, enter, leave
from .toolchain import CompileError, available, driver
from .translate import image

__all__ = [
    "CUDA",
    "ORDERS",
    "Array",
    "CompileError",
    "DriverError",
    "Kernels",
    "Launched",
    "allocations",
    "available",
    "call",
    "driver",
    "enter",
    "image",
    "launches",
    "leave",
    "library",
    "using",
]
