"""Where the C headers of tvm-ffi are: what a kernel takes, in C."""

from __future__ import annotations

from tvm_ffi import libinfo


def folders() -> tuple[str, ...]:
    """Return the folders of tvm-ffi's and DLPack's headers, each once."""
    found = (libinfo.find_include_path(), libinfo.find_dlpack_include_path())
    return tuple(dict.fromkeys(map(str, found)))
