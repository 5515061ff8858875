"""OpenCL on this machine's processor, through PoCL."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcn_tvm.cuda.lower import Lowered
from dcn_tvm.gpu import Gpu

from .launching import Memory, Sizes

os.environ.setdefault("POCL_MAX_PTHREAD_COUNT", "1")  # tests run side by side


@functools.cache
def unavailable() -> str | None:
    """Why nothing runs here, or None."""
    try:
        import pyopencl
    except ImportError as error:
        return f"pyopencl is not installed: {error}"
    try:
        platforms = pyopencl.get_platforms()
    except pyopencl.Error as error:
        return f"there is no OpenCL: {error}"
    found = [platform for platform in platforms if "Portable Computing" in platform.name]
    return None if found else "PoCL is not installed"


class OpenCL:
    """PoCL's device for the processor.

    It compiles a kernel when it is launched, for much longer than these run: not optimised, unless
    a test is about that.
    """

    target = Gpu("opencl", "", "")
    code = 4

    def __init__(self, options: Sequence[str] = ("-cl-opt-disable",)) -> None:
        import pyopencl

        self.options = list(options)
        (platform,) = (p for p in pyopencl.get_platforms() if "Portable Computing" in p.name)
        self.device = platform.get_devices()[0]
        self.context = pyopencl.Context([self.device])
        self.queue = pyopencl.CommandQueue(self.context)

    def has(self, extension: str) -> bool:
        """Whether it knows an extension of the language."""
        return extension in self.device.extensions.split()

    def program(self, lowered: Lowered) -> _Program:
        """Compile the source, as it is."""
        return _Program(self, lowered.source)


class _Program:
    def __init__(self, device: OpenCL, source: str) -> None:
        import pyopencl

        self.device = device
        self.kernels: dict[str, Any] = {}
        self.built = pyopencl.Program(device.context, source).build(
            options=device.options, cache_dir=False
        )

    def launch(self, name: str, grid: Sizes, block: Sizes, arguments: Sequence[Any]) -> None:
        import pyopencl

        flags = pyopencl.mem_flags.READ_WRITE | pyopencl.mem_flags.USE_HOST_PTR
        queue, given, buffers = self.device.queue, [], []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                buffers.append((pyopencl.Buffer(self.device.context, flags, 0, argument), argument))
                given.append(buffers[-1][0])
            else:
                given.append(argument)
        sizes = [count * threads for count, threads in zip(grid, block, strict=True)]
        if name not in self.kernels:
            self.kernels[name] = getattr(self.built, name)
        self.kernels[name](queue, sizes, list(block), *given)
        for buffer, memory in buffers:
            _bring_back(queue, buffer, memory)
        queue.finish()


def _bring_back(queue: Any, buffer: Any, memory: Memory) -> None:
    """Let the host see what a kernel wrote to its memory."""
    import pyopencl

    mapped, _ = pyopencl.enqueue_map_buffer(
        queue, buffer, pyopencl.map_flags.READ, 0, memory.shape, memory.dtype
    )
    mapped.base.release(queue)
