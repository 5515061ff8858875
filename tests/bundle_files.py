"""Bundles written by hand, and programs that use some.

The libraries of those written by hand hold any bytes, which is enough until one is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcn_tvm.build import Request
from dcn_tvm.bundles import manifest, targets
from dcn_tvm.bundles.manifest import Compiled, Library, Manifest
from dcn_tvm.bundles.targets import Code, Host
from dcn_tvm.ops.roi_align import RoIAlignProblem

PROBLEM = RoIAlignProblem("float32", "nchw", 8, (3, 3))
FORWARD = Request(PROBLEM, "forward", ("output",))
HERE = targets.this_host()


# Whatever imports TVM fails, as where it is not installed.
WITHOUT_TVM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tvm":
            raise ModuleNotFoundError("No module named 'tvm'", name="tvm")

sys.meta_path.insert(0, Absent())
"""


def library(folder: Path, file: str, data: bytes, host: Host = HERE) -> Library:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Library(file, len(data), hashlib.sha256(data).hexdigest(), host)


def write(
    folder: Path, codes: Sequence[Code], host: Host = HERE, request: Request = FORWARD
) -> Manifest:
    """Write a bundle with one kernel for several targets; a library holds its target's name."""
    kernels = []
    for code in codes:
        name = targets.name(code)
        made = library(folder, f"{name.replace(' ', '-')}/kernel.so", name.encode(), host)
        names = (request.problem, request.kernel, request.outputs, code, made)
        kernels.append(Compiled(*names, choices={"vectors": 1}, provenance="default"))
    shim = library(folder, f"{host.system}/openmp.so", b"shim", host)
    written = Manifest(manifest.versions(), {"date": "today"}, tuple(kernels), (shim,))
    (folder / manifest.NAME).write_text(written.to_json())
    return written


def change(folder: Path, edit: Callable[[dict[str, Any]], object], *, sign: bool = True) -> None:
    """Change what a manifest says, and its checksum, unless one is careless."""
    path = folder / manifest.NAME
    content = json.loads(path.read_text())
    edit(content)
    if sign:
        del content["sha256"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(content))


def run(code: str, *python: str, **settings: str | Path) -> str:
    """Run a program where there is no C compiler, with a cache of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DCN_TVM"))}
    environment = kept | {"CC": "there-is-no-such-compiler"}
    environment |= {name: str(value) for name, value in settings.items()}
    command = [*(python or (sys.executable,)), "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
