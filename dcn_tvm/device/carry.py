"""Packing what a machine lacks that has torch and CUDA, but neither the compiler nor a network.

1. `wanted` says which distributions: tvm-ffi, the compiler, what `dcn_tvm` and its command line
   import, on request what tuning needs; torch, numpy and the like are taken to be there.
2. Each becomes one archive, of the installed files without headers and sources. What is compiled
   for another Python than this one is fetched as a wheel for that Python.
3. xz with the filter for x86 code and a dictionary as large as the library brings the compiler to
   less than a quarter of its size; that takes minutes, so archives are kept in the user's folder.

`unpack.py`, which goes along, does the rest over there.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dcn_tvm import settings
from dcn_tvm.device import unpack
from dcn_tvm.errors import DcnTvmError

COMPILER = "apache-tvm"
BASE = ("apache-tvm-ffi", "filelock", "platformdirs", "rich", "typer")
# xgboost's own wheel has 230 MB for GPUs; its cost model runs on the CPU.
TUNING = ("cloudpickle", "psutil", "tornado", "xgboost-cpu")
FETCHED = ("xgboost-cpu",)
FIRST = ("apache-tvm", "apache-tvm-ffi")  # come before what the machine has
GIVEN = {"numpy", "torch", "torchvision", "scipy", "setuptools"}
# Headers and sources, and the runtime that launches kernels where ours does not.
LEFT_OUT = {
    "apache-tvm": (
        *("tvm/3rdparty/", "tvm/include/", "tvm/src/", "tvm/web/"),
        "tvm/lib/libtvm_runtime_cuda.so",
    ),
    "apache-tvm-ffi": (
        *("tvm_ffi/3rdparty/", "tvm_ffi/include/", "tvm_ffi/src/", "tvm_ffi/cython/"),
        *("tvm_ffi/share/", "tvm_ffi/stub/"),
    ),
    "xgboost-cpu": ("xgboost/dask/", "xgboost/spark/", "xgboost/testing/"),
    "tornado": ("tornado/test/",),
}
_PLATFORMS = ("28", "27", "24", "17")
_BOUND = re.compile(r"\.cpython-(\d)(\d+)-")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[^;]*(;.*)?")
_DICTIONARY_BYTES = 192 << 20
_LEAST_DICTIONARY_BYTES = 1 << 20


class CarryError(DcnTvmError):
    """What has to be carried cannot be had."""


@dataclass(frozen=True)
class Part:
    """One archive of a carried folder.

    Attributes:
        name: of the distribution.
        version: of it.
        file: of the archive.
        sha256: of the archive.
        bytes: of the archive.
        unpacked_bytes: of what is in it.
        provides: the modules that it has.
        always: it is unpacked also where there is one of its name.
        bound: only one version of Python can load it.
    """

    name: str
    version: str
    file: str
    sha256: str
    bytes: int
    unpacked_bytes: int
    provides: tuple[str, ...]
    always: bool
    bound: bool


@dataclass(frozen=True)
class _Files:
    """A distribution's files by their place in site-packages."""

    version: str
    read: dict[str, Callable[[], bytes]]


def wanted(
    *, compiler: bool = True, tuning: bool = False, has: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return the distributions to carry, with all that they require and is not there already."""
    there = {*GIVEN, *map(_plain, has)}
    roots = (*BASE, *((COMPILER,) if compiler else ()), *(TUNING if tuning else ()))
    found: dict[str, None] = {}
    left = list(roots)
    while left:
        name = _plain(left.pop(0))
        if name in found or name in there:
            continue
        found[name] = None
        if name not in FETCHED:
            left += _requirements(name)
    return tuple(found)


def carry(
    folder: Path,
    *,
    python: str | None = None,
    compiler: bool = True,
    tuning: bool = False,
    has: Iterable[str] = (),
    bundle: Path | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> list[Part]:
    """Pack what a machine without compiler and network needs; return the parts.

    Args:
        folder: made if it is not there; what an earlier call left in it is replaced.
        python: the version there, such as "3.12"; this one if None.
        compiler: pack TVM's compiler; without it a bundle must have every kernel.
        tuning: pack what tuning needs.
        has: distributions that are there, with what they require.
        bundle: a folder of compiled kernels to go along.
        report: is told what is being packed.

    Raises:
        CarryError: a distribution is not installed, or not to be had for that Python.
        ValueError: the version or the folder makes no sense.
        OSError: the folder cannot be written.
    """
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    python = python or here
    if not re.fullmatch(r"3\.\d{1,2}", python):
        raise ValueError(f"a version of Python must be such as 3.12, got {python!r}")
    if folder.exists() and any(folder.iterdir()) and not (folder / unpack.MANIFEST).exists():
        raise ValueError(f"{folder} exists and holds something else: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.tar.xz"), folder / unpack.MANIFEST):
        old.unlink(missing_ok=True)
    parts = []
    for name in wanted(compiler=compiler, tuning=tuning, has=has):
        report(name)
        parts.append(_part(name, python, folder))
    packed = None
    if bundle is not None:
        report("bundle")
        files = {str(p.relative_to(bundle)): p.read_bytes for p in _files_below(bundle)}
        packed = _packed(unpack.BUNDLE, _Files("", files), folder)
    shutil.copyfile(Path(unpack.__file__), folder / "unpack.py")
    manifest = {
        "format": 1,
        "python": python,
        "parts": [asdict(part) for part in parts],
        "bundle": None if packed is None else asdict(packed),
    }
    (folder / unpack.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return [*parts, packed] if packed else parts


def _part(name: str, python: str, folder: Path) -> Part:
    files = _installed(name)
    if files is None or _bound_to(files) not in (None, python):
        files = _fetched(name, python, None if files is None else files.version)
    return _packed(name, files, folder)


def _packed(name: str, files: _Files, folder: Path) -> Part:
    contents = {
        place: read() for place, read in sorted(files.read.items()) if _is_carried(name, place)
    }
    archive = _archive(contents)
    file = f"{name}.tar.xz"
    shutil.copyfile(archive, folder / file)
    data = archive.read_bytes()
    return Part(
        name=name,
        version=files.version,
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        unpacked_bytes=sum(map(len, contents.values())),
        provides=_modules(contents),
        always=name in FIRST,
        bound=_bound_to(files) is not None,
    )


def _is_carried(name: str, place: str) -> bool:
    if "__pycache__/" in place or place.startswith(("..", "/")) or place.endswith("/RECORD"):
        return False
    return not place.startswith(LEFT_OUT.get(name, ()))


def _installed(name: str) -> _Files | None:
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    if name in FETCHED or found.files is None:
        return None
    paths = {str(file): Path(str(found.locate_file(file))) for file in found.files}
    read = {place: path.read_bytes for place, path in paths.items() if path.is_file()}
    return _Files(found.version, dict(read))


def _fetched(name: str, python: str, version: str | None) -> _Files:
    """Return the files of a wheel for another Python, fetched by pip."""
    exact = name if version is None else f"{name}=={version}"
    machine = {"arm64": "aarch64"}.get(_machine(), _machine())
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _PLATFORMS]
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch),
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", python),
            *(word for platform in platforms for word in ("--platform", platform)),
            exact,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel"]
            raise CarryError(f"{exact} for Python {python} cannot be fetched: {lines[-1]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            contents = {n: wheel.read(n) for n in wheel.namelist() if not n.endswith("/")}
    found = version or wheels[0].name.split("-")[1]
    return _Files(found, {name: _constant(data) for name, data in contents.items()})


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _machine() -> str:
    import platform

    return platform.machine()


def _bound_to(files: _Files) -> str | None:
    """Return the only Python that can load the files, None if many can."""
    for place in files.read:
        if match := _BOUND.search(place):
            return f"{match[1]}.{match[2]}"
    return None


def _modules(places: dict[str, bytes]) -> tuple[str, ...]:
    """Return the top-level modules that the files make."""
    tops = dict.fromkeys(place.split("/")[0] for place in places if place.endswith((".py", ".so")))
    names = (top.split(".")[0] for top in tops if not top.endswith(".libs"))
    return tuple(name for name in dict.fromkeys(names) if name.isidentifier())


def _archive(contents: dict[str, bytes]) -> Path:
    """Return the archive of some files: one that was packed before, if there is one."""
    digest = hashlib.sha256()
    for place, data in contents.items():
        digest.update(f"{place}\0{len(data)}\0".encode() + data)
    kept = settings.home() / "carry" / f"{digest.hexdigest()[:32]}.tar.xz"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = kept.with_suffix(f".{time.time_ns()}")
    try:
        with lzma.open(draft, "wb", filters=_filters(sum(map(len, contents.values())))) as stream:
            with tarfile.open(fileobj=stream, mode="w|") as archive:
                for place, data in contents.items():
                    info = tarfile.TarInfo(place)
                    info.size, info.mode = len(data), 0o644
                    archive.addfile(info, io.BytesIO(data))
        draft.replace(kept)
    finally:
        draft.unlink(missing_ok=True)
    return kept


def _filters(size: int) -> list[dict[str, Any]]:
    dictionary = min(_DICTIONARY_BYTES, max(_LEAST_DICTIONARY_BYTES, size))
    code = [{"id": lzma.FILTER_X86}] if "86" in _machine() else []
    return [*code, {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]


def _requirements(name: str) -> Iterator[str]:
    """Yield what a distribution always requires on a Linux with a Python of today."""
    try:
        lines: Sequence[str] = metadata.requires(name) or ()
    except metadata.PackageNotFoundError as error:
        raise CarryError(f"{name} is not installed: pip install {name}") from error
    for line in lines:
        match = _REQUIREMENT.match(line)
        marker = (match[2] or "") if match else ""
        if match and not re.search(r"extra|python_version|python_full|win|platform_sys", marker):
            yield match[1]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
