"""Items: the pieces of a step. A child process does them one after another, as long as it can."""

from __future__ import annotations

import faulthandler
import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dcn_tvm.device.journal import FAILED, PASSED, SKIPPED, Journal, Result

# What a child's exit code says.
DONE, RESTART, NO_TIME = 0, 4, 3
_LINES = 6  # of a traceback, from its end


@dataclass(frozen=True)
class Context:
    """Where and how a step works.

    Attributes:
        out: folder of the results.
        device: in torch's words; all but "cuda" is a stand-in that tries the machinery.
        deadline: in seconds since the epoch.
        seconds: that the contenders of a row may take.
        cold: whether the caches are flushed before each measured call.
        small: only the least of everything.
    """

    out: Path
    device: str
    deadline: float
    seconds: float = 0.2
    cold: bool = False
    small: bool = False

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def to_json(self) -> str:
        """Return the context as text, for a child process."""
        return json.dumps({**asdict(self), "out": str(self.out)})

    @classmethod
    def from_json(cls, text: str) -> Context:
        """Return the context that `to_json` wrote."""
        facts = json.loads(text)
        return cls(**{**facts, "out": Path(facts["out"])})


class Skipped(Exception):
    """An item that cannot be done here; says why."""


@dataclass(frozen=True)
class Item:
    """A piece of a step.

    Attributes:
        key: what it is, in words; no two items of a step have the same.
        run: does it and returns what it found; what is "wrong" with it makes it fail.
        least_s: without so much time left it is not begun.
        most_s: after that it is taken to hang, and its process is ended.
    """

    key: str
    run: Callable[[], Result] = field(repr=False)
    least_s: float = 4.0
    most_s: float = 60.0


def work(items: Iterable[Item], journal: Journal, context: Context) -> int:
    """Do what the journal does not have yet; return `DONE`, `RESTART` or `NO_TIME`.

    An item that took an earlier process down, or hung, has failed. After an error that leaves the
    device unusable a new process has to go on.
    """
    if key := journal.interrupted():
        why = "the process that ran it ended: it crashed, or took too long"
        journal.end(key, {"outcome": FAILED, "why": why}, 0.0)
    done = journal.results()
    for item in items:
        if item.key in done:
            continue
        if context.left_s < item.least_s:
            return NO_TIME
        outcome = _do(item, journal)
        print(f"{journal.step}: {item.key}: {outcome}", flush=True)
        if outcome == FAILED and not usable(context.device):
            return RESTART
    return DONE


def usable(device: str) -> bool:
    """Return whether the device still works in this process."""
    try:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _do(item: Item, journal: Journal) -> str:
    journal.begin(item.key)
    start = time.perf_counter()
    faulthandler.dump_traceback_later(item.most_s, exit=True)
    try:
        found: dict[str, Any] = item.run()
        result = {"outcome": FAILED if found.get("wrong") else PASSED, **found}
    except Skipped as reason:
        result = {"outcome": SKIPPED, "why": str(reason)}
    except Exception as error:  # whatever a kernel, a peer or torch raises is a finding
        lines = "".join(traceback.format_exception(error)).splitlines()[-_LINES:]
        result = {"outcome": FAILED, "why": _first_line(error), "traceback": lines}
    finally:
        faulthandler.cancel_dump_traceback_later()
    journal.end(item.key, result, time.perf_counter() - start)
    return str(result["outcome"])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
