"""A bundle on disk: verified when it is opened, and again whenever a library is taken from it.

What is loaded is never the bundle's own file, which may change or be cut short while it is mapped,
but a copy of the bytes that were verified, kept in the build cache.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from dcn_tvm import gpu, settings
from dcn_tvm.build import Request
from dcn_tvm.bundles import manifest, targets
from dcn_tvm.bundles.manifest import Compiled, Library, Manifest
from dcn_tvm.cache import BuildCache
from dcn_tvm.errors import BundleError
from dcn_tvm.gpu import Gpu
from dcn_tvm.problem import Problem
from dcn_tvm.target import Target

_MANIFEST_BYTES = 64 << 20  # some 50,000 kernels
_LISTED = 8  # kernels in a message
_Key = tuple[Problem, str, tuple[str, ...]]


class Bundle:
    """Compiled kernels in a folder, all of them verified.

    Attributes:
        path: of the folder.
        manifest: what it says it holds.

    Raises:
        BundleError: there is none, it is damaged, or nothing of it can run on this machine.
    """

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self.path = path
        self.manifest = manifest.read(_read(path, manifest.NAME, _MANIFEST_BYTES))
        if sha256 is not None and sha256 != self.manifest.sha256:
            raise BundleError(f"{path} must have the sha256 {sha256}, got {self.manifest.sha256}")
        _check_versions(path, self.manifest)
        for library in self.manifest.libraries():
            self._verified(library)
        self._check_targets()
        self._kernels: dict[_Key, list[Compiled]] = {}
        for kernel in self.manifest.kernels:
            key = (kernel.problem, kernel.kernel, kernel.outputs)
            self._kernels.setdefault(key, []).append(kernel)
        self._copy = functools.cache(self._make_copy)

    @property
    def kernels(self) -> tuple[Compiled, ...]:
        """What it holds; `str` of one is readable."""
        return self.manifest.kernels

    @property
    def targets(self) -> tuple[str, ...]:
        """What its kernels are compiled for, such as "x86-64-v3" or "sm_90"."""
        return tuple(dict.fromkeys(targets.name(kernel.code) for kernel in self.kernels))

    @property
    def sha256(self) -> str:
        """The checksum over all of it."""
        return self.manifest.sha256

    def __repr__(self) -> str:
        ops = ", ".join(dict.fromkeys(kernel.problem.op for kernel in self.kernels))
        return f"<Bundle {self.path}: {len(self.kernels)} kernels of {ops} for {self._targets()}>"

    def find(self, request: Request) -> Path | None:
        """Return the library of exactly this kernel that suits its target best, or None.

        The choices that records ask for do not matter: the bundle's were made when it was.

        Raises:
            BundleError: the library has been changed.
        """
        fitting = [kernel for kernel in self._compiled(request) if not _refusal(kernel, request)]
        if not fitting:
            return None
        best = max(fitting, key=lambda kernel: targets.rank(kernel.code, request.target))
        return self._copy(best.library)

    def shim(self) -> Path | None:
        """Return the library that launches kernels on this machine, or None.

        Raises:
            BundleError: it has been changed.
        """
        here = targets.this_host()
        return next((self._copy(s) for s in self.manifest.shims if s.host == here), None)

    def reasons(self, request: Request) -> list[str]:
        """Return why `find` finds nothing: what there is instead, kernel by kernel."""
        refused = [
            f"{kernel} is of this problem, but {_refusal(kernel, request)}"
            for kernel in self._compiled(request)
        ]
        for kernel in self.kernels:
            alike = (kernel.problem.op, kernel.kernel) == (request.problem.op, request.kernel)
            if not alike or _refusal(kernel, request):
                continue
            if kernel.problem != request.problem:
                refused.append(f"{kernel} has {_difference(kernel.problem, request.problem)}")
            elif kernel.outputs != request.outputs:
                refused.append(f"{kernel} computes other outputs")
        more = len(refused) - _LISTED
        return refused[:_LISTED] + ([f"and {more} more"] if more > 0 else [])

    def _compiled(self, request: Request) -> Sequence[Compiled]:
        return self._kernels.get((request.problem, request.kernel, request.outputs), ())

    def _targets(self) -> str:
        return ", ".join(self.targets)

    def _check_targets(self) -> None:
        """Refuse a bundle of which nothing can run here."""
        devices: tuple[Gpu, ...] = ()
        if not any(_runs(kernel, devices) for kernel in self.kernels):
            devices = gpu.detect()  # only now: it starts the driver
            if not any(_runs(kernel, devices) for kernel in self.kernels):
                hosts = ", ".join(str(host) for host in {k.library.host: 0 for k in self.kernels})
                raise BundleError(
                    f"{self.path} is for {self._targets() or 'nothing'} ({hosts}), and this "
                    f"machine is {targets.machine(devices)}"
                )

    def _verified(self, library: Library) -> bytes:
        data = _read(self.path, library.file, library.bytes)
        if len(data) != library.bytes:
            got = f"{len(data)}: it was cut short" if len(data) < library.bytes else "more"
            raise BundleError(
                f"{self.path / library.file} must have {library.bytes} bytes, got {got}"
            )
        if (digest := hashlib.sha256(data).hexdigest()) != library.sha256:
            raise BundleError(
                f"{self.path / library.file} was changed: its sha256 must be {library.sha256}, "
                f"got {digest}"
            )
        return data

    def _make_copy(self, library: Library) -> Path:
        data, key = self._verified(library), library.sha256

        def write(path: Path) -> None:
            path.write_bytes(data)

        cache = BuildCache(settings.home() / "builds")
        return cache.store(key, key, write, {"bundle": str(self.path), "file": library.file}).path


def _refusal(kernel: Compiled, request: Request) -> str | None:
    return targets.refusal(kernel.code, kernel.library.host, request.target)


def _runs(kernel: Compiled, devices: Iterable[Gpu]) -> bool:
    """Return whether a call could be served here, in the kernel's own manner."""
    host, code = kernel.library.host, kernel.code
    if isinstance(code, Target):
        return targets.refusal(code, host, None) is None
    manner = targets.manners(code)
    return any(
        targets.refusal(code, host, targets.in_manner(device, manner)) is None for device in devices
    )


def _difference(have: Problem, wanted: Problem) -> str:
    facts = ((name, getattr(have, name)) for name in have.__dataclass_fields__)
    other = [f"{name} {value}" for name, value in facts if value != getattr(wanted, name)]
    return ", ".join(other)


def _check_versions(path: Path, read: Manifest) -> None:
    """Refuse kernels that follow the conventions of other releases of what calls them."""
    for name, version in manifest.versions().items():
        made = read.versions.get(name, "none")
        if made.split(".")[:2] != version.split(".")[:2]:
            raise BundleError(
                f"{path} was compiled for {name} {made}, and {version} is installed: compile the "
                "bundle again"
            )


def _read(folder: Path, name: str, most: int) -> bytes:
    """Return at most `most` bytes, and one more if there are more, of a plain file in a folder."""
    path = folder
    try:
        for part in name.split("/"):
            if not stat.S_ISDIR(path.stat().st_mode):
                raise BundleError(f"a bundle must be a folder, got {path}")
            path = path / part
            if stat.S_ISLNK(path.lstat().st_mode):
                raise BundleError(f"{path} is a link: a bundle must hold its files itself")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise BundleError(f"{path} must be a plain file")
            return file.read(min(most, facts.st_size) + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
