"""An aarch64 machine that runs a bundle's kernels: qemu, and a C program in Python's place."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SYSTEM = Path("/usr/aarch64-linux-gnu")  # its libraries, where Debian puts them
PACKAGES = "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
_CODES = {torch.float32: (2, 32), torch.float16: (2, 16), torch.bfloat16: (4, 16)}  # of DLPack


def missing() -> str | None:
    """Why there is no such machine here, or None."""
    if platform.machine() == "aarch64":
        return "this machine is aarch64 itself: the other tests run its kernels"
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            return f"there is no {tool}: {PACKAGES}"
    return None if SYSTEM.is_dir() else f"there is no {SYSTEM}: {PACKAGES}"


@dataclass(frozen=True)
class Machine:
    """Runs kernels, with `folder` as its disk."""

    folder: Path
    threads: int = 3

    def build(self) -> None:
        """Compile the program that calls kernels."""
        from tvm_ffi import libinfo

        headers = {str(libinfo.find_include_path()), str(libinfo.find_dlpack_include_path())}
        flags = ["-O1", "-rdynamic", "-fopenmp", *(f"-I{path}" for path in headers)]
        source = str(Path(__file__).with_name("runner.c"))
        command = [COMPILER, *flags, source, "-ldl", "-o", str(self.folder / "runner")]
        subprocess.run(command, check=True, timeout=60)

    def call(
        self,
        kernel: Path,
        shim: Path,
        taken: Sequence[Tensor],
        filled: Sequence[Tensor],
        scalars: Sequence[float],
    ) -> None:
        """Call a library's kernel on dense tensors, and fill those that it fills."""
        lines = [self._line("in", i, tensor) for i, tensor in enumerate(taken)]
        lines += [self._line("out", i, tensor) for i, tensor in enumerate(filled)]
        lines += [f"scalar {scalar!r}" for scalar in scalars]
        call = self.folder / "call"
        call.write_text("\n".join(lines) + "\n")
        command = [EMULATOR, "-L", str(SYSTEM), "-E", f"OMP_NUM_THREADS={self.threads}"]
        command += [str(self.folder / "runner"), str(kernel), str(shim), str(call)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        for i, tensor in enumerate(filled):
            data = bytearray(self._file("out", i).read_bytes())
            tensor.copy_(torch.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape))

    def _file(self, way: str, number: int) -> Path:
        return self.folder / f"{way}{number}"

    def _line(self, way: str, number: int, tensor: Tensor) -> str:
        path = self._file(way, number)
        if way == "in":
            path.write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        code, bits = _CODES[tensor.dtype]
        sizes = " ".join(map(str, tensor.shape))
        return f"{way} {path} {code} {bits} {tensor.dim()} {sizes}"
