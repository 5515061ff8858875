"""Upkeep of files of records: merge what several machines or people found, prune what is stale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcn_tvm.records import store
from dcn_tvm.records.record import Record
from dcn_tvm.records.store import Damage, Line, Summary


@dataclass
class _Load:
    """What goes to one file: records that count in their source, and a later version's lines."""

    records: list[Record] = field(default_factory=list)
    newer: list[bytes] = field(default_factory=list)


def merge(sources: Iterable[Path], root: Path) -> Summary:
    """Add the records of other files to those in `root`, keeping the best evidence for each key.

    Of a file's lines with one key the last counts, as everywhere. Between files the later date
    wins, on the same day the greater speedup. Sources are only read.

    Args:
        sources: files, whose folder's name is the target id; folders of one target; whole roots.
        root: folder of tuning logs.

    Raises:
        ValueError: a source holds no records, or a folder's name is not a target id.
        TimeoutError: another process holds a file.
        OSError: a file in `root` cannot be read or written.

    Example:
        >>> summary = merge([Path("from_the_laptop/tuning_logs")], user_root())
    """
    loads: dict[Path, _Load] = {}
    skipped: list[Damage] = []
    for path in [path for source in sources for path in _files_of(Path(source))]:
        lines, damage = store.read(path)
        target_id = path.parent.name
        for record in _latest(lines):
            to = store.file_of(root, target_id, record.problem.op)
            loads.setdefault(to, _Load()).records.append(record)
        for item in damage:
            if item.newer:
                to = store.file_of(root, target_id, path.stem)
                loads.setdefault(to, _Load()).newer.append(item.text)
            else:
                skipped.append(item)
    total = Summary(skipped=tuple(skipped))
    for to, load in loads.items():
        total += store.update(to, _best_with(load.records), load.newer)
    return total


def prune(
    root: Path,
    target_ids: Iterable[str] | None = None,
    legal: Callable[[Record], str | None] | None = None,
) -> Summary:
    """Keep of the lines with one key only the last, drop what is not legal, and sort.

    Args:
        root: folder of tuning logs.
        target_ids: folders in it; None for all.
        legal: says why a record can no longer be used, or None; where the last line of a key
            cannot, the one before it is asked. It may be slow: no file is locked meanwhile.

    Raises:
        ValueError: an id is not a plain lower-case file name.
        TimeoutError: another process holds a file.
        OSError: a file cannot be read or written.

    Example:
        >>> summary = prune(user_root())
        >>> print(f"{summary.kept} kept, {summary.removed} removed")
    """
    total = Summary()
    for path in store.files(root, target_ids):
        refused = {} if legal is None else _refused(store.read(path)[0], legal)
        done = store.update(path, _latest_but(refused))
        total += replace(done, dropped=tuple(refused.values()))
    return total


def _files_of(source: Path) -> list[Path]:
    source = source.resolve()
    if not source.exists():
        raise ValueError(f"a source must be a file or folder of records, got {source}: no such")
    found = [source] if source.is_file() else store.files_in(source) or store.files(source)
    if not found:
        raise ValueError(
            f"a source must be a file of records, a target's folder or a folder of such, got "
            f"{source}, which holds no .jsonl file"
        )
    return found


def _latest(lines: Iterable[Line]) -> list[Record]:
    return list({line.record.key: line.record for line in lines}.values())


def _best_with(others: list[Record]) -> Callable[[list[Line]], list[Record]]:
    def choose(lines: list[Line]) -> list[Record]:
        best: dict[object, Record] = {}
        for record in (*_latest(lines), *others):
            known = best.setdefault(record.key, record)
            if (record.date, record.speedup) > (known.date, known.speedup):
                best[record.key] = record
        return list(best.values())

    return choose


def _refused(lines: list[Line], legal: Callable[[Record], str | None]) -> dict[str, Damage]:
    """Return what is not legal, by its text: from the last line of each key to the first legal."""
    refused: dict[str, Damage] = {}
    settled = set()
    for line in reversed(lines):
        if line.record.key in settled:
            continue
        if reason := legal(line.record):
            refused[line.record.to_line()] = Damage(line.path, line.number, reason)
        else:
            settled.add(line.record.key)
    return refused


def _latest_but(refused: dict[str, Damage]) -> Callable[[list[Line]], list[Record]]:
    def choose(lines: list[Line]) -> list[Record]:
        return _latest(line for line in lines if line.record.to_line() not in refused)

    return choose
