"""Files of records, `<root>/<target id>/<op>.jsonl`: read whatever is in them, write without loss.

A line is added by one write at the end of the file, and files are replaced whole, both under one
lock. What cannot be read never raises, is reported with file and line, and is never thrown away:
lines of a later version stay as they are, damaged ones go to `<op>.jsonl.damaged` beside the file
when it is rewritten.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from dcn_tvm import _resources, ops, settings
from dcn_tvm.records.record import NewerRecordError, Record, RecordError
from dcn_tvm.records.writing import add, locked, replace_file

_SUFFIX = ".jsonl"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Line:
    """A record and the line, counted from 1, on which it stands."""

    record: Record
    path: Path
    number: int


@dataclass(frozen=True)
class Damage:
    """A line that is not used, and why; line 0 stands for the whole file.

    Attributes:
        newer: a later version of dcn_tvm may be able to read it.
        text: the line as it stands in the file.
    """

    path: Path
    number: int
    reason: str
    newer: bool = False
    text: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        place = f"{self.path}:{self.number}" if self.number else f"{self.path}"
        return f"{place}: {self.reason}"


@dataclass(frozen=True)
class Summary:
    """What became of the lines of some files.

    Attributes:
        kept: records that the files hold now.
        added: those of them that they did not hold before.
        removed: records that they held before and hold no more.
        dropped: those of them that were refused, with the reason.
        newer: lines of a later version, left as they are.
        moved: damaged lines, now in the `.damaged` file beside theirs.
        skipped: damaged lines of files that were only read.
    """

    kept: int = 0
    added: int = 0
    removed: int = 0
    dropped: tuple[Damage, ...] = ()
    newer: tuple[Damage, ...] = ()
    moved: tuple[Damage, ...] = ()
    skipped: tuple[Damage, ...] = ()

    def __add__(self, other: Summary) -> Summary:
        return Summary(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def user_root() -> Path:
    """Return the folder of the user's own records; it need not exist yet."""
    return settings.home() / "tuning_logs"


def shipped_root() -> Path:
    """Return the folder of the records that come with dcn_tvm."""
    return _resources.root("tuning_logs")


def file_of(root: Path, target_id: str, op: str) -> Path:
    """Return the file of an op's records for a target; it need not exist.

    Raises:
        ValueError: the id is not a plain lower-case file name.
    """
    if not _NAME.fullmatch(target_id):
        raise ValueError(
            f"a target id must be lower-case letters, digits, '.', '_', '-', got {target_id!r}"
        )
    return root / target_id / f"{op}{_SUFFIX}"


def files(root: Path, target_ids: Iterable[str] | None = None) -> list[Path]:
    """Return all files of records in a root, sorted, for these targets or all.

    Raises:
        ValueError: an id is not a plain lower-case file name.
    """
    if target_ids is None:
        folders = [path for path in _entries(root) if _NAME.fullmatch(path.name)]
    else:
        folders = [file_of(root, target_id, "").parent for target_id in target_ids]
    return [path for folder in folders for path in files_in(folder)]


def files_in(folder: Path) -> list[Path]:
    """Return the files of records of one target's folder; hidden ones are drafts and locks."""
    return [p for p in _entries(folder) if p.suffix == _SUFFIX and not p.name.startswith(".")]


def read(path: Path) -> tuple[list[Line], list[Damage]]:
    """Return the records of a file and what else is in it; a missing file is empty.

    Never raises for what is on the disk.

    Example:
        >>> lines, damage = read(user_root() / "x86-64-v4" / "deform_conv2d.jsonl")
    """
    try:
        return _parse(path, path.read_bytes())
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [Damage(path, 0, f"cannot be read: {error.strerror or error}")]


def append(root: Path, target_id: str, records: Iterable[Record]) -> None:
    """Add records to the files of their ops; several processes may do so at once.

    Args:
        root: folder of tuning logs, made if it is not there.
        target_id: the folder in it.
        records: each becomes one line.

    Raises:
        ValueError: the id is not a plain lower-case file name.
        OSError: a file cannot be written; then it is as it was.

    Example:
        >>> append(user_root(), target.detect().id, [record])
    """
    texts: dict[Path, bytes] = {}
    for record in records:
        path = file_of(root, target_id, record.problem.op)
        texts[path] = texts.get(path, b"") + record.to_line().encode() + b"\n"
    for path, data in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, necessary=False) as held:
            add(path, data, undo=held)


def rewrite(path: Path, records: Iterable[Record]) -> Summary:
    """Replace the records of a file, sorted; lines that cannot be read are kept, see `Summary`.

    Raises:
        TimeoutError: another process holds the file.
        OSError: it cannot be read or written; then it is as it was.
    """
    return update(path, lambda lines: records)


def update(
    path: Path, choose: Callable[[list[Line]], Iterable[Record]], newer: Iterable[bytes] = ()
) -> Summary:
    """Replace a file's records by what `choose` makes of its lines, read under its lock.

    Args:
        path: the file, made if it is not there and removed if nothing is left in it.
        choose: fast, as other processes wait.
        newer: lines of a later version to add as they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, necessary=True):
        old = path.read_bytes() if path.exists() else b""
        lines, damage = _parse(path, old)
        chosen = sorted(choose(lines), key=lambda record: record.key)
        left = [item for item in damage if item.newer]
        broken = [item for item in damage if not item.newer]
        texts = [record.to_line().encode() for record in chosen]
        kept = dict.fromkeys((*(item.text for item in left), *newer))
        if broken:  # first, so that a crash in between doubles lines and loses none
            moved = b"".join(item.text + b"\n" for item in broken)
            add(path.with_name(f"{path.name}.damaged"), moved, undo=True)
        replace_file(path, old, b"".join(text + b"\n" for text in (*texts, *kept)))
    before = Counter(line.record.to_line().encode() for line in lines)
    after = Counter(texts)
    return Summary(
        kept=after.total(),
        added=(after - before).total(),
        removed=(before - after).total(),
        newer=tuple(left),
        moved=tuple(broken),
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _parse(path: Path, data: bytes) -> tuple[list[Line], list[Damage]]:
    lines: list[Line] = []
    damage: list[Damage] = []
    for number, text in enumerate(data.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            lines.append(Line(_record(path, text), path, number))
        except RecordError as error:
            newer = isinstance(error, NewerRecordError)
            damage.append(Damage(path, number, str(error), newer, text))
    return lines, damage


def _record(path: Path, text: bytes) -> Record:
    try:
        record = Record.from_line(text.decode())
    except UnicodeDecodeError as error:
        raise RecordError(f"a record must be UTF-8: {error.reason}") from None
    op = record.problem.op
    if path.stem != op and path.stem in ops.registry():
        raise RecordError(f"op must be {path.stem}, as the file is called, got {op}")
    return record
