"""What a step found, item by item, kept so that nothing is done twice.

While a step is not finished its file is `<step>.jsonl`: a line when an item begins and one when it
ends, each synced, so that an item that took its process down is known by the line that is missing.
When all items ended it becomes `<step>.json`, at once, with the facts of the machine.
"""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class Journal:
    """The journal of a step in a folder."""

    def __init__(self, folder: Path, step: str) -> None:
        self.step = step
        self.path = folder / f"{step}.jsonl"
        self.final = folder / f"{step}.json"

    @property
    def finished(self) -> bool:
        """Whether all items of the step ended."""
        return self.final.exists()

    def results(self) -> dict[str, Result]:
        """Return the results of the items that ended, by their keys."""
        if self.finished:
            found = json.loads(self.final.read_text(encoding="utf-8"))["results"]
            return {result["key"]: result for result in found}
        return {line["key"]: line for line in self._lines() if "outcome" in line}

    def interrupted(self) -> str | None:
        """Return the item that began and did not end, if there is one."""
        last = (list(self._lines()) or [{}])[-1]
        return last["key"] if last.get("begun") else None

    def begin(self, key: str) -> None:
        """Note that an item begins."""
        self._add({"key": key, "begun": _now()})

    def end(self, key: str, result: Mapping[str, Any], seconds: float) -> None:
        """Note what became of an item."""
        self._add({"key": key, **plain(dict(result)), "seconds": round(seconds, 3)})

    def drop(self) -> None:
        """Take back that an item began: it was stopped for want of time, and may begin again."""
        if key := self.interrupted():
            self._add({"key": key, "dropped": _now()})

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Replace the lines by one file, which says where and when the results were found."""
        results = list(self.results().values())
        seconds = sum(result["seconds"] for result in results)
        whole = {"step": self.step, "facts": dict(facts), "ended": _now(), "seconds": seconds}
        write(self.final, json.dumps({**whole, "results": results}, indent=1) + "\n")
        self.path.unlink(missing_ok=True)

    def _lines(self) -> Iterable[Result]:
        try:
            texts = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        for text in texts:
            try:
                line = json.loads(text)
            except ValueError:  # cut short by whatever ended the process
                continue
            if isinstance(line, dict) and isinstance(line.get("key"), str):
                yield line

    def _add(self, line: Result) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def write(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that are not finite become texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
