"""The processes that pre-train one backbone together, each with a part of every batch.

`torchrun` starts them and tells each its number through the environment. A single process is a group of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from mzsane.errors import ConfigError


class Ranks:
    """A group of processes.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
        device: this process's device.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | str = "cpu") -> None:
        self.rank, self.count, self.device = rank, count, torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """Return this process's part of a batch.

        Raises:
            ConfigError: it cannot be shared evenly.
        """
        if size % self.count:
            raise ConfigError(
                f"{size} windows (backbone.batch_size / backbone.accumulation) cannot be shared by "
                f"{self.count} processes: take a multiple, or other execution.ranks"
            )
        each = size // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes; gradients do not pass."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes one after another; gradients pass to the own ones alone."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that `torchrun` has started; leaves them at the end."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, count, device)
    finally:
        dist.destroy_process_group()
