"""A task: one kernel at some sizes on some target, and where a search keeps what it measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dcn_tvm import build, ops
from dcn_tvm.build import Request
from dcn_tvm.gpu import Gpu
from dcn_tvm.kernels import possible_outputs
from dcn_tvm.knobs import Choice, Choices
from dcn_tvm.records import writing
from dcn_tvm.space import Space
from dcn_tvm.target import Target
from dcn_tvm.workload import Sizes, Workload


class Trial(NamedTuple):
    """A point of a space that was tried.

    Attributes:
        choices: the point.
        ratio: its time over the default's, measured in turn with it; None if it failed.
        reason: why it failed.
    """

    choices: dict[str, Choice]
    ratio: float | None
    reason: str = ""


@dataclass(frozen=True)
class Task:
    """What one search tunes: a kernel for all of its outputs, at some sizes.

    Attributes:
        request: the kernel.
        sizes: of the call.
        target: that it is for.
        threads: that it runs with, or the multiprocessors of a GPU.
    """

    request: Request
    sizes: Sizes
    target: Target | Gpu = field(repr=False)
    threads: int

    @cached_property
    def space(self) -> Space:
        """All choices that the kernel's schedule allows."""
        return build.space(self.request, self.target)

    def __str__(self) -> str:
        facts = {**self.request.problem.particulars(), **dict(self.sizes)}
        written = (
            value if name in ("dtype", "layout") else f"{name} {_written(value)}"
            for name, value in facts.items()
        )
        return f"{self.request.problem.op}.{self.request.kernel} {' '.join(written)}"

    def key(self) -> str:
        """Return a hash of all that a measurement depends on, the schedules' sources included."""
        problem = self.request.problem
        parts = (problem.op, problem.to_json(), self.request.kernel, json.dumps(self.sizes))
        machine = (self.target.ids[0], self.target.key(), str(self.threads))
        facts = (*machine, *build.versions(), build.fingerprint())
        return hashlib.sha256("\n".join((*parts, *facts)).encode()).hexdigest()

    def library_name(self, choices: Choices) -> str:
        """Return the name of the library of a point: tasks that differ in sizes share it."""
        request = self.request
        parts = (request.problem.op, request.problem.to_json(), request.kernel, *request.outputs)
        made = "\n".join((*parts, self.target.key(), json.dumps(sorted(choices.items()))))
        return hashlib.sha256(made.encode()).hexdigest()[:32]


def _written(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def tasks_of(workload: Workload, target: Target | Gpu, threads: int) -> Iterator[Task]:
    """Yield a task for each of a workload's kernels."""
    device = target if isinstance(target, Gpu) else None
    kernels = ops.registry()[workload.problem.op].kernels()
    for name in workload.kernels:
        outputs = possible_outputs(workload.problem, kernels[name].outputs)
        request = Request(workload.problem, name, outputs, target=device)
        yield Task(request, workload.sizes, target, threads)


class Journal:
    """What a search has measured so far, on disk: it survives whatever ends the search."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._path = folder / f"{task.key()}.jsonl"

    def read(self) -> list[Trial]:
        """Return what was measured; a line that a crash left half-written is passed over."""
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        return [trial for line in lines if (trial := _parse(line))]

    def add(self, trials: list[Trial]) -> None:
        """Keep trials."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(trial._asdict()) + "\n" for trial in trials)
        writing.add(self._path, text.encode(), undo=False)

    def remove(self) -> None:
        """Forget: the search is over, or starts anew."""
        self._path.unlink(missing_ok=True)


def _parse(line: str) -> Trial | None:
    try:
        facts: Mapping[str, object] = json.loads(line)
        choices, ratio = facts["choices"], facts["ratio"]
        if isinstance(choices, dict) and isinstance(ratio, float | None):
            return Trial(choices, ratio, str(facts["reason"]))
    except (ValueError, KeyError, TypeError):
        pass
    return None
