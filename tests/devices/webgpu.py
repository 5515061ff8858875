"""WebGPU on this machine's processor, through wgpu and Mesa's Vulkan driver for processors."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcn_tvm.cuda.lower import Lowered
from dcn_tvm.gpu import Gpu

from .launching import Sizes

MOST_BLOCKS = 65535  # along a dimension of the grid
# The standard has every device give 8; gradients of offsets of boxes take more than that.
STORAGE_BUFFERS = 10
# What every device has otherwise.
LIMITS = {
    "max-storage-buffers-per-shader-stage": STORAGE_BUFFERS,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-storage-size": 16384,
}
_BINDING = re.compile(r"@group\(0\) @binding\((\d+)\) var<([^>]*)> (\w+)")
_FUNCTION = re.compile(r"^// Function: (\w+)$", re.MULTILINE)


@functools.cache
def unavailable() -> str | None:
    """Why nothing runs here, or None."""
    try:
        import wgpu
        from wgpu.backends.wgpu_native.extras import set_instance_extras
    except (ImportError, OSError) as error:
        return f"wgpu is not installed: {error}"
    set_instance_extras(backends=["Vulkan"])  # OpenGL complains where there is no display
    if _adapter(wgpu) is None:
        return "there is no Vulkan driver for the processor (Mesa's lavapipe)"
    return None


def _adapter(wgpu: Any) -> Any:
    """The adapter for the processor: tests shall not depend on the GPU of a machine."""
    adapters = wgpu.gpu.enumerate_adapters_sync()
    for adapter in adapters:
        info = adapter.info
        if info["adapter_type"] == "CPU" and info["backend_type"] == "Vulkan":
            return adapter
    return None


class WebGPU:
    """The processor as a device, with the limits that every browser's device has."""

    target = Gpu("webgpu", "", "")
    code = 15

    def __init__(self) -> None:
        import wgpu

        adapter = _adapter(wgpu)
        features = {"shader-f16"} & set(adapter.features)
        self.half = bool(features)
        self.device = adapter.request_device_sync(
            required_features=sorted(features), required_limits=LIMITS
        )

    def program(self, lowered: Lowered) -> _Program:
        """Compile the kernels, each of which is a source of its own."""
        return _Program(self.device, lowered.source)


class _Program:
    def __init__(self, device: Any, source: str) -> None:
        self.device = device
        # the generator says a kernel's name above it twice, with a line of its own in between
        parts = _FUNCTION.split(source)[1:]
        self.sources: dict[str, str] = {}
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            self.sources[name] = self.sources.get(name, "") + text
        self.pipelines = {name: self._pipeline(name) for name in self.sources}

    def _pipeline(self, name: str) -> Any:
        module = self.device.create_shader_module(code=self.sources[name])
        return self.device.create_compute_pipeline(
            layout="auto", compute={"module": module, "entry_point": name}
        )

    def launch(self, name: str, grid: Sizes, block: Sizes, arguments: Sequence[Any]) -> None:
        assert max(grid) <= MOST_BLOCKS, "a runtime would spread these blocks over two dimensions"
        queue, pipeline = self.device.queue, self.pipelines[name]
        memory = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        numbers = [argument for argument in arguments if not isinstance(argument, np.ndarray)]
        numbers.append(np.uint32(grid[0] - 1))
        entries, written = [], []
        for number, access, variable in _BINDING.findall(self.sources[name]):
            index = int(number)
            if variable == "podArgs":
                data, uses = b"".join(n.tobytes() for n in numbers), "UNIFORM|COPY_DST"
            else:
                data, uses = memory[index].tobytes(), "STORAGE|COPY_DST|COPY_SRC"
            buffer = self.device.create_buffer_with_data(data=data, usage=uses)
            resource = {"buffer": buffer, "offset": 0, "size": buffer.size}
            entries.append({"binding": index, "resource": resource})
            if "read_write" in access:
                written.append((buffer, memory[index]))
        group = self.device.create_bind_group(
            layout=pipeline.get_bind_group_layout(0), entries=entries
        )
        encoder = self.device.create_command_encoder()
        run = encoder.begin_compute_pass()
        run.set_pipeline(pipeline)
        run.set_bind_group(0, group)
        run.dispatch_workgroups(*grid)
        run.end()
        queue.submit([encoder.finish()])
        for buffer, target in written:
            target[:] = np.frombuffer(queue.read_buffer(buffer), np.uint8)
