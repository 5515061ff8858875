"""Unpack what `dcn-tvm gpu carry` packed, on a machine that has only Python.

`eval "$(python3 FOLDER/unpack.py)"` unpacks FOLDER once and sets PYTHONPATH, and DCN_TVM_BUNDLES if
there is a bundle. Packages that are here already stay: only TVM's own, of which the versions must
match, come before them. This file travels alone: it imports the standard library and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
import os
import shlex
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
BUNDLE = "bundle"
_READY = ".ready"


class UnpackError(Exception):
    """The folder cannot be used here; says why."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what the folder holds.

    Raises:
        UnpackError: it holds nothing, or what only another Python can use.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        bound = [part["name"] for part in manifest["parts"] if part["bound"]]
        python = manifest["python"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnpackError(f"{folder} must hold what `dcn-tvm gpu carry` packed: {error}") from error
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if bound and python != here:
        raise UnpackError(
            f"{folder} was packed for Python {python} ({', '.join(bound)}), and this is {here}: "
            f"pack it with --python {here}"
        )
    return manifest


def unpack(folder: Path, site: Path | None = None) -> Path:
    """Unpack a folder, unless that was done before, and return where the packages are.

    Args:
        folder: what `dcn-tvm gpu carry` made.
        site: where to; a folder of this user among the system's temporary ones if None.

    Raises:
        UnpackError: the folder cannot be used here, or was damaged on the way.
        OSError: the packages cannot be written.
    """
    manifest = read_manifest(folder)
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]
    if site is None:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        site = Path(tempfile.gettempdir()) / f"dcn_tvm-{user}-{digest}"
    ready = site / _READY
    if ready.exists() and ready.read_text() == digest:
        return site
    site.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid") and site.stat().st_uid != os.getuid():
        raise UnpackError(f"{site} belongs to somebody else: name another folder")
    for part in manifest["parts"]:
        if part["always"] or not all(map(is_here, part["provides"])):
            extract(folder, part, site)
    if manifest["bundle"]:
        extract(folder, manifest["bundle"], site / BUNDLE)
    ready.write_text(digest)
    return site


def is_here(module: str) -> bool:
    """Return whether this Python has a package already."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def extract(folder: Path, part: dict[str, Any], site: Path) -> None:
    """Extract one archive, after its checksum was verified."""
    path = folder / part["file"]
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != part["sha256"]:
        raise UnpackError(f"{path} was damaged: its sha256 must be {part['sha256']}, got {found}")
    with lzma.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(site, filter="data")
        else:
            archive.extractall(site)


def exports(site: Path, environment: dict[str, str]) -> str:
    """Return the shell's lines that let Python find what was unpacked."""
    first = [str(site), environment.get("PYTHONPATH", "")]
    lines = [f"export PYTHONPATH={shlex.quote(os.pathsep.join(filter(None, first)))}"]
    if (site / BUNDLE).is_dir():
        named = [str(site / BUNDLE), environment.get("DCN_TVM_BUNDLES", "")]
        lines.append(f"export DCN_TVM_BUNDLES={shlex.quote(os.pathsep.join(filter(None, named)))}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Unpack the folder that this file is in, and print what a shell has to know."""
    try:
        site = unpack(Path(__file__).resolve().parent, Path(arguments[0]) if arguments else None)
    except (UnpackError, OSError, lzma.LZMAError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        print("false")
        return 1
    print(exports(site, dict(os.environ)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
