"""Workloads: problems with the sizes at which they are called, the unit of tuning.

`record_problems` collects those of a model while it runs; a file of them is JSON, one per line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcn_tvm import ops
from dcn_tvm.problem import Problem

Sizes = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Workload:
    """A problem, the free sizes of its calls, and which of its kernels they run.

    Attributes:
        problem: the op's static facts.
        sizes: names and values, sorted, such as (("batch", 1), ("height", 38), ("width", 63)).
        kernels: names of the op's kernels, in its contract's order.
    """

    problem: Problem
    sizes: Sizes
    kernels: tuple[str, ...]

    @classmethod
    def of(
        cls, problem: Problem, sizes: Mapping[str, int], kernels: Iterable[str] | None = None
    ) -> Workload:
        """Return the workload of a problem, by default with all of its kernels.

        Raises:
            ValueError: the op has no such kernel, or a size is not positive.
        """
        known = ops.registry()[problem.op].kernels()
        wanted = set(known if kernels is None else kernels)
        if unknown := sorted(wanted - known.keys()):
            raise ValueError(f"kernel must be one of {', '.join(known)}, got {unknown[0]!r}")
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be a positive number, got {size!r}")
        chosen = tuple(name for name in known if name in wanted)
        return cls(problem, tuple(sorted(sizes.items())), chosen)

    def __str__(self) -> str:
        sizes = " ".join(f"{name} {size}" for name, size in self.sizes)
        return f"{self.problem} {sizes}"

    def to_line(self) -> str:
        """Return the workload as one line of JSON."""
        facts = {
            "op": self.problem.op,
            "problem": json.loads(self.problem.to_json()),
            "sizes": dict(self.sizes),
            "kernels": self.kernels,
        }
        return json.dumps(facts)

    @classmethod
    def from_line(cls, line: str) -> Workload:
        """Return the workload that `to_line` wrote.

        Raises:
            ValueError: the line is something else.
        """
        try:
            facts: dict[str, Any] = json.loads(line)
            kind = ops.registry()[facts["op"]].problem
            return cls.of(kind.from_mapping(facts["problem"]), facts["sizes"], facts["kernels"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a recorded problem ({error!r}): {line[:80]}") from error


class Recording(Iterable[Workload]):
    """What `record_problems` met, each workload once."""

    def __init__(self) -> None:
        self._met: dict[tuple[Problem, Sizes], dict[str, int]] = {}

    def note(self, problem: Problem, sizes: Sizes, kernel: str) -> None:
        """Add a call of a kernel."""
        calls = self._met.setdefault((problem, tuple(sorted(sizes))), {})
        calls[kernel] = calls.get(kernel, 0) + 1

    def __iter__(self) -> Iterator[Workload]:
        for (problem, sizes), calls in list(self._met.items()):  # others may call meanwhile
            if all(size > 0 for _, size in sizes):  # an empty call has nothing to tune
                yield Workload.of(problem, dict(sizes), calls)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def save(self, path: Path | str) -> None:
        """Write one line of JSON for each workload, for `dcn-tvm tune --from-model`."""
        text = "".join(f"{workload.to_line()}\n" for workload in self)
        Path(path).write_text(text, encoding="utf-8")


def load(path: Path | str) -> list[Workload]:
    """Return the workloads that `Recording.save` wrote.

    Raises:
        ValueError: a line is something else; says which.
        OSError: the file cannot be read.
    """
    workloads = []
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            workloads.append(Workload.from_line(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return workloads


_recordings: list[Recording] = []


@contextmanager
def record_problems() -> Iterator[Recording]:
    """Collect the problems and sizes of all calls of dcn_tvm's ops, of all threads, in the block.

    Forward and backward are met apart: a model that only infers has no gradient kernels to tune.

    Example:
        >>> with dcn_tvm.record_problems() as met:
        ...     output = dcn_tvm.roi_align(torch.ones(1, 1, 4, 4), torch.zeros(1, 5), 2)
        >>> [(w.problem.op, w.kernels) for w in met]
        [('roi_align', ('forward',))]
    """
    recording = Recording()
    _recordings.append(recording)
    try:
        yield recording
    finally:
        _recordings.remove(recording)


def listening() -> bool:
    """Return whether anybody records."""
    return bool(_recordings)


def note(problem: Problem, sizes: Sizes, kernel: str) -> None:
    """Tell all who record of a call."""
    for recording in tuple(_recordings):  # another thread's recording may end meanwhile
        recording.note(problem, sizes, kernel)
