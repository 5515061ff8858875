"""Safe writing: a line is added by one write, a file is replaced whole, both under one lock."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_WAIT_S = 60.0  # a file is held for milliseconds
_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def add(path: Path, data: bytes, undo: bool) -> None:
    """Add lines to the end in one write, after a newline if a crash left the last one unfinished.

    With `undo`, which needs the lock, a write that fails leaves the file as it was.
    """
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            data = data if file.read(1) == b"\n" else b"\n" + data
        try:
            while data:
                data = data[file.write(data) or 0 :]
            os.fsync(file.fileno())
        except OSError:  # the disk is full
            if undo:
                file.truncate(end)
            raise


def replace_file(path: Path, old: bytes, new: bytes) -> None:
    """Put `new` in the place of the file, which holds `old`, or remove it if `new` is empty."""
    if new == old:
        return
    if not new:
        path.unlink()
        return
    draft = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        with draft.open("wb") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, necessary: bool) -> Iterator[bool]:
    """Hold the lock of the file and yield True, or False where it cannot be had.

    Raises:
        TimeoutError: another process holds it and it is `necessary`, as for a replacement; one
            write at the end is safe enough without.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=_WAIT_S, thread_local=False)
    held = False
    try:
        lock.acquire()
        held = True
    except Timeout:
        reason = f"{path} was held by another process for {_WAIT_S:g} s"
        if necessary:
            raise TimeoutError(reason) from None
        warnings.warn(f"{reason}: adding to it all the same", stacklevel=4)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise
        warnings.warn(f"{path.parent} has no file locks: writing without", stacklevel=4)
    try:
        yield held
    finally:
        if held:
            lock.release()
