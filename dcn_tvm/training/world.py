"""The processes that train together: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

_T = TypeVar("_T")


@dataclass(frozen=True)
class World:
    """A process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, batch: Sequence[_T]) -> list[_T]:
        """Return this process's part of a batch.

        Raises:
            ValueError: the batch cannot be divided evenly, so that the mean over the processes
                would not be the mean over the batch.
        """
        if len(batch) % self.size:
            raise ValueError(
                f"a batch must be a multiple of {self.size} processes, got {len(batch)}"
            )
        part = len(batch) // self.size
        return list(batch[self.rank * part : (self.rank + 1) * part])

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network, its gradients averaged over the processes."""
        return network if self.size == 1 else DistributedDataParallel(network)

    def mean(self, value: Tensor) -> float:
        """Return the mean of a number over the processes.

        For a mean over equal parts of a batch that is the mean over the batch. torchvision's
        detectors divide by the boxes that were sampled, which a process may have fewer of.
        """
        total = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total.item() / self.size

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started, by gloo; alone if it started none.

    Example:
        >>> with joined() as world:
        ...     world.share([1, 2, 3, 4])
        [1, 2, 3, 4]
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    dist.init_process_group("gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
