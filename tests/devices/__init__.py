"""Kernels for other makers' GPUs, run through OpenCL or WebGPU on this machine's processor.

A kernel's host part is compiled as for CUDA and is what checks arguments, takes scratch and
launches; behind it stands a driver of our own (`driver.cpp`) whose launches call `launching`, which
hands the device source that TVM generated and the memory of the arguments to a `Device`.
"""

from .launching import Device, Memory, Program, on_device

__all__ = ["Device", "Memory", "Program", "on_device"]
