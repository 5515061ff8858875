"""The build cache on disk: builds survive the process, are made once, and a damaged one is rebuilt.

Two levels, as in ccache. The *index* maps a request (a hash of everything that determines a build:
problem, kernel, choices, target, versions, sources) to a content key; the *object store* holds the
shared library of a content key (a hash of the scheduled IR, target, versions). A warm process finds
its library by the request alone, without running TVM; two requests that schedule to the same IR
share one library.

    <root>/index/<request>.json      {"content": ..., "facts": {...}}
    <root>/objects/<content>.so      the library
    <root>/objects/<content>.json    {"sha256": ...} of the library
    <root>/locks/<content>.lock      held by the process that makes it

Files appear complete or not at all (written beside their place, synced, renamed), are never changed
in place (another process may have them mapped), and whatever does not verify is removed and
reported as absent. A root that cannot be written is replaced by a private temporary folder.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dcn_tvm.errors import CacheError

SUFFIX = ".dll" if sys.platform == "win32" else ".so"
_KEY = re.compile(r"[0-9a-f]{8,128}")
_WAIT_S = 300.0  # a compilation takes seconds; whoever holds a lock for minutes is stuck
_FULL_BYTES = 4 << 20  # less free space than this explains a compiler or linker that failed


@dataclass(frozen=True)
class Entry:
    """A build: its verified library and what was said about it when it was stored."""

    path: Path
    facts: dict[str, object]


@dataclass(frozen=True)
class CacheInfo:
    """What a cache holds: `entries` libraries, `bytes` in all its files."""

    path: Path
    entries: int
    bytes: int


class _ProduceError(Exception):
    """Carries an exception of the caller's `produce` past the handlers of our own file errors."""


class BuildCache:
    """A build cache in folder `root`, which is made when the first build is stored.

    Safe to use from several threads and processes at once, and in a forked child.

    Example:
        >>> cache = BuildCache(settings.home() / "builds")
        >>> entry = cache.fetch(request) or cache.store(request, content, link, facts)
    """

    def __init__(self, root: Path, wait_s: float = _WAIT_S) -> None:
        self._root = Path(root)
        self._wait_s = wait_s

    def fetch(self, request: str) -> Entry | None:
        """Return the build stored for `request`, or None; never raises for what is on the disk."""
        _check_key("request", request)
        for root in (self._root, *_temporary_roots(self._root)):
            if entry := _fetch(root, request):
                return entry
        return None

    def store(
        self,
        request: str,
        content: str,
        produce: Callable[[Path], None],
        facts: Mapping[str, object],
    ) -> Entry:
        """Return the build of `content`, made by `produce(path)` unless it is there already.

        Of several threads and processes that store the same content one calls `produce`, the others
        wait and reuse. Afterwards `fetch(request)` finds it.

        Args:
            request: key of the request, hexadecimal.
            content: key of the content, hexadecimal.
            produce: writes the library to the path given; its exceptions come through unchanged.
            facts: what to remember about the request, as JSON.

        Raises:
            CacheError: neither the root nor a temporary folder can hold the build.
        """
        _check_key("request", request)
        _check_key("content", content)
        root = _temporary.get(
            self._root, self._root
        )  # once it failed, its time is not wasted again
        try:
            return self._store(root, request, content, produce, facts)
        except _ProduceError as error:
            assert error.__cause__ is not None
            if not _is_full(root):
                raise error.__cause__ from None
            reason = f"the disk is full ({error.__cause__})"
        except OSError as error:
            reason = str(error)
        try:
            root = _make_temporary_root(self._root, reason)
            return self._store(root, request, content, produce, facts)
        except _ProduceError as error:
            assert error.__cause__ is not None
            raise error.__cause__ from None
        except OSError as error:
            raise CacheError(
                f"cannot store a build: {self._root} ({reason}) and a temporary folder ({error}); "
                "set DCN_TVM_HOME to a writable folder"
            ) from error

    def info(self) -> CacheInfo:
        """Return what the cache holds in its root."""
        files = [path for part in ("index", "objects") for path in _files(self._root / part)]
        libraries = [path for path in files if path.suffix == SUFFIX and path.name[0] != "."]
        return CacheInfo(self._root, len(libraries), sum(map(_size_bytes, files)))

    def clear(self) -> int:
        """Remove all builds and return how many libraries went; running kernels keep theirs."""
        entries = self.info().entries
        for part in ("index", "objects"):  # a lock may be held: its empty file stays
            shutil.rmtree(self._root / part, ignore_errors=True)
        return entries - self.info().entries

    def _store(
        self,
        root: Path,
        request: str,
        content: str,
        produce: Callable[[Path], None],
        facts: Mapping[str, object],
    ) -> Entry:
        for part in ("index", "objects", "locks"):
            (root / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        library = root / "objects" / f"{content}{SUFFIX}"
        with _locked(root / "locks" / f"{content}.lock", self._wait_s):
            if not _verify(library):
                _make(library, produce)
            note = {"content": content, "facts": dict(facts)}
            _write(root / "index" / f"{request}.json", json.dumps(note, sort_keys=True).encode())
        return Entry(library, dict(facts))


def _check_key(name: str, key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{name} must be 8 to 128 lower-case hexadecimal digits, got {key!r}")


def _fetch(root: Path, request: str) -> Entry | None:
    index = root / "index" / f"{request}.json"
    try:
        note = json.loads(index.read_bytes())
        content, facts = note["content"], note["facts"]
        _check_key("content", content)
        if not isinstance(facts, dict):
            raise TypeError(f"facts must be an object, got {facts!r}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):  # unreadable, or not what we wrote
        _remove(index)
        return None
    library = root / "objects" / f"{content}{SUFFIX}"
    if _verify(library):
        return Entry(library, facts)
    _remove(index, library, library.with_suffix(".json"))
    return None


def _verify(library: Path) -> bool:
    try:
        wanted = json.loads(library.with_suffix(".json").read_bytes())["sha256"]
        return bool(wanted == hashlib.sha256(library.read_bytes()).hexdigest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make(library: Path, produce: Callable[[Path], None]) -> None:
    for left in library.parent.glob(f".{library.stem}-*"):  # by a process that died at this point
        _remove(left)
    draft = library.parent / f".{library.stem}-{uuid.uuid4().hex}{SUFFIX}"
    try:
        try:
            produce(draft)
        except Exception as error:
            raise _ProduceError from error
        digest = hashlib.sha256(draft.read_bytes()).hexdigest()
        _sync(draft)
        # First the library: a crash in between leaves one that does not verify, and is made again.
        draft.replace(library)
        _write(library.with_suffix(".json"), json.dumps({"sha256": digest}).encode())
    finally:
        _remove(draft)


def _write(path: Path, data: bytes) -> None:
    draft = path.parent / f".{path.stem}-{uuid.uuid4().hex}{path.suffix}"
    try:
        draft.write_bytes(data)
        _sync(draft)
        draft.replace(path)
    finally:
        _remove(draft)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # gone already, or not ours to remove
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the lock; one that cannot be had only risks double work, as files appear atomically."""
    lock = FileLock(path, timeout=wait_s, thread_local=False)
    held = False
    try:
        lock.acquire()
        held = True
    except Timeout:
        warnings.warn(f"{path} was held for {wait_s:g} s: building without it", stacklevel=4)
    except NotImplementedError:  # a file system without locks
        warnings.warn(f"{path.parent} has no file locks: building without", stacklevel=4)
    try:
        yield
    finally:
        if held:
            lock.release()


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except OSError:
        return []


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return True


_temporary: dict[Path, Path] = {}  # root that cannot be written -> its stand-in


def _temporary_roots(root: Path) -> list[Path]:
    return [_temporary[root]] if root in _temporary else []


def _make_temporary_root(root: Path, reason: str) -> Path:
    if root not in _temporary:
        folder = Path(tempfile.mkdtemp(prefix="dcn_tvm-"))
        _temporary[root] = folder
        atexit.register(functools.partial(_remove_folder_of, os.getpid(), folder))
        warnings.warn(
            f"cannot write to {root} ({reason}): builds of this process go to {folder} and are "
            "lost when it ends; set DCN_TVM_HOME to a writable folder",
            stacklevel=3,
        )
    return _temporary[root]


def _remove_folder_of(process: int, folder: Path) -> None:
    if os.getpid() == process:  # a forked child inherits the exit handlers, not the folder
        shutil.rmtree(folder, ignore_errors=True)
