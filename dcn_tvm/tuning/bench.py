"""Benches: where the kernels of a task run, and by which clock they are timed there."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from dcn_tvm import kernels, measure
from dcn_tvm.measure import Timing


class Bench(ABC):
    """Runs and times kernels for a station, in the station's process; so it can be pickled.

    Arguments come as a kernel takes them: tensors of this machine's memory, the last of which it
    fills, then numbers.

    Attributes:
        patience_s: more than a batch takes, before what runs it is taken to hang.
        seconds_each: of measuring, for each library of a batch.
        batch: points that are tried between two lessons of the search.
        runs: calls of which a candidate's results are checked, for kernels whose threads may race.
        retries: whether what fails alone gets a second chance, as it may not be to blame.
    """

    patience_s: ClassVar[float] = 60.0
    seconds_each: ClassVar[float] = 0.15
    batch: ClassVar[int] = 8
    runs: ClassVar[int] = 1
    retries: ClassVar[bool] = False

    def stations(self) -> int:
        """Return how many processes may measure at the same time.

        Raises:
            ConnectionError: there is nothing to measure on.
        """
        return 1

    def wait(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Wait until there is something to measure on.

        Raises:
            ConnectionError: nothing came.
        """

    def usable(self) -> bool:
        """Return whether what failed left the process in order, for the candidates after it."""
        return True

    @abstractmethod
    def rotate(
        self, libraries: Mapping[str, Path], arguments: Sequence[Any], seconds: float
    ) -> dict[str, Timing]:
        """Time libraries of one kernel in turn, on the same data.

        Raises:
            RuntimeError: one of them failed.
        """

    @abstractmethod
    def run(self, library: Path, arguments: Sequence[Any], outputs: int) -> None:
        """Call a kernel once, and wait until its outputs, the last of the tensors, are filled.

        Raises:
            RuntimeError: it failed.
        """


@dataclass(frozen=True)
class Cpu(Bench):
    """This machine's processor, with so many threads."""

    threads: int
    turn_us: ClassVar[float] = 4000.0

    def rotate(
        self, libraries: Mapping[str, Path], arguments: Sequence[Any], seconds: float
    ) -> dict[str, Timing]:
        """Time them by the system's clock."""
        torch.set_num_threads(self.threads)
        calls = {
            name: functools.partial(kernels.open_library(path), *arguments)
            for name, path in libraries.items()
        }
        return measure.rotate(calls, seconds=seconds, min_rounds=3, turn_us=self.turn_us)

    def run(self, library: Path, arguments: Sequence[Any], outputs: int) -> None:
        """Call a kernel, which fills the tensors themselves."""
        torch.set_num_threads(self.threads)
        kernels.open_library(library)(*arguments)
