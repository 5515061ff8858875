"""The environment variables that dcn_tvm reads, all of them.

| variable                | meaning                                          | default             |
|-------------------------|--------------------------------------------------|---------------------|
| `DCN_TVM_HOME`          | folder of what is kept on disk: builds, records  | user's cache folder |
| `DCN_TVM_TARGET`        | facts to be changed: `LEVEL,FACT=VALUE,...`      | as detected         |
| `DCN_TVM_PROGRESS`      | say what is being compiled: `auto`, `0` or `1`   | `auto`: on a tty    |
| `DCN_TVM_BUNDLES`       | bundles to use, separated as in `PATH`           | none                |
| `DCN_TVM_CUDA_COMPILER` | the only compiler for GPUs: `nvcc` or `nvrtc`    | nvcc, then NVRTC    |
| `DCN_TVM_CUDA_DRIVER`   | CUDA's driver; `cuda/launch.c` reads it          | `libcuda.so.1`      |

They are read when they are needed, not at import, so a program may set them first.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import platformdirs

_FACT = r"\s*[a-z0-9_]+\s*=[^,]*"
_SPEC = re.compile(rf"([a-z0-9][a-z0-9._-]*|{_FACT})\s*(,{_FACT})*")


def home() -> Path:
    """Return the folder in which dcn_tvm keeps its files; it need not exist yet.

    Raises:
        ValueError: `DCN_TVM_HOME` is a relative path or names something that is not a folder.
    """
    text = os.environ.get("DCN_TVM_HOME", "").strip()
    if not text:
        return platformdirs.user_cache_path("dcn_tvm", appauthor=False)
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise ValueError(f"DCN_TVM_HOME must be an absolute path, got {text!r}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"DCN_TVM_HOME must be a folder, got {text!r}, which is none")
    return path


def target() -> str | None:
    """Return the target that the user asks for, such as "x86-64-v3,cores=8", or None.

    Whether there are such facts and the machine has them is the business of `dcn_tvm.target.parse`.

    Raises:
        ValueError: `DCN_TVM_TARGET` does not look like a level, facts, or both.
    """
    text = os.environ.get("DCN_TVM_TARGET", "").strip()
    if not text:
        return None
    if not _SPEC.fullmatch(text):
        raise ValueError(
            f"DCN_TVM_TARGET must be LEVEL,FACT=VALUE,... such as 'x86-64-v3,cores=8', got {text!r}"
        )
    return text


def bundles() -> tuple[Path, ...]:
    """Return the bundles that the user wants to be loaded, in order, as absolute paths."""
    parts = os.environ.get("DCN_TVM_BUNDLES", "").split(os.pathsep)
    return tuple(Path(part.strip()).expanduser().absolute() for part in parts if part.strip())


def cuda_compiler() -> str | None:
    """Return "nvcc" or "nvrtc" if no other compiler may be used for GPUs, else None.

    Raises:
        ValueError: `DCN_TVM_CUDA_COMPILER` is none of the two.
    """
    text = os.environ.get("DCN_TVM_CUDA_COMPILER", "").strip().lower()
    if text not in ("", "nvcc", "nvrtc"):
        raise ValueError(f"DCN_TVM_CUDA_COMPILER must be nvcc or nvrtc, got {text!r}")
    return text or None


def progress() -> bool:
    """Return whether a compilation announces itself on standard error.

    Raises:
        ValueError: `DCN_TVM_PROGRESS` is none of auto, 0 and 1.
    """
    text = os.environ.get("DCN_TVM_PROGRESS", "").strip().lower() or "auto"
    if text not in ("auto", "0", "1"):
        raise ValueError(f"DCN_TVM_PROGRESS must be auto, 0 or 1, got {text!r}")
    if text == "auto":
        return sys.stderr is not None and sys.stderr.isatty()
    return text == "1"
