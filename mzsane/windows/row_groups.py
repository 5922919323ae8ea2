"""Row groups of a slice, read ahead: those that the next draws of an epoch need, never more than may be held.

The row groups of an epoch are put in random order, and the checkpoints of the g-th leave at times drawn evenly from g
to g + G. At any time at most G row groups have checkpoints left to give. The order takes a few dozen bytes a draw.

Suffixes: P weights of a model, N checkpoints, K draws.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.randomness import make_generator
from mzsane.symmetry.groups import PermutationGroup
from mzsane.tokens.store import TokenTable


class RowGroups(Protocol):
    """Flat weights that are read a group of checkpoints at a time."""

    @property
    def counts(self) -> Sequence[int]:
        """Checkpoints of each group, known before any is read."""

    @property
    def row_bytes(self) -> int:
        """Bytes of the flat weights of a checkpoint."""

    def read(self, number: int) -> Tensor:
        """Read the flat weights of a group, (N, P). Called from one background thread."""


@dataclass(frozen=True)
class TokenParts:
    """The parts of a TOKENS artifact as row groups."""

    table: TokenTable

    @property
    def counts(self) -> Sequence[int]:
        """Checkpoints of each part."""
        return [len(rows) for rows in self.table.part_rows]

    @property
    def row_bytes(self) -> int:
        """Bytes of a checkpoint in the stored type."""
        return self.table.layout.weights * self.table.dtype.itemsize

    def read(self, number: int) -> Tensor:
        """Read the weights of a part, (N, P), in the stored type."""
        return self.table.read_part(number)


@dataclass(frozen=True)
class StreamSource:
    """Checkpoints of one layout in row groups: one slice of a composition.

    Attributes:
        row_groups: where the weights are read, in canonical form.
        layout: where each weight sits in the tokens.
        groups: the architecture's permutation groups; none where the symmetry is not known.
        weight: how often its checkpoints are drawn, relative to the other sources (see `MixturePlan`).
        kept: for each row group the rows of it that belong to the slice, (n,) int64; all rows if None.
        reuse: times that a checkpoint is drawn in one epoch, before it is read again; an epoch is longer by that. With
            1 a window of a long model costs a reading of all of it; with its length over the window's, a reading gives
            as many tokens as it has.
    """

    row_groups: RowGroups
    layout: TokenLayout
    groups: tuple[PermutationGroup, ...] = ()
    weight: float = 1.0
    kept: tuple[Tensor, ...] | None = None
    reuse: int = 1


def stream_table(table: TokenTable, rows_N: Tensor, weight: float = 1.0, reuse: int = 1) -> StreamSource:
    """Make a source of some rows of a TOKENS artifact; parts that hold none of them are never read.

    Raises:
        ConfigError: a row is not there, or is given twice.
    """
    kept = tuple(torch.isin(torch.tensor(rows), rows_N).nonzero().squeeze(1) for rows in table.part_rows)
    if sum(len(rows) for rows in kept) != len(rows_N):
        raise ConfigError(
            f"{len(rows_N)} rows are asked for, of which {sum(len(rows) for rows in kept)} are different ones that the "
            f"tokens have; they have {len(table.index)} rows"
        )
    return StreamSource(TokenParts(table), table.layout, table.groups, weight, kept, reuse)


def check_kept(source: StreamSource, number: int) -> list[Tensor]:
    """Return the kept rows of each row group, after a look whether they are there.

    Raises:
        ConfigError: one is not, or is named twice.
    """
    counts = source.row_groups.counts
    if source.kept is None:
        return [torch.arange(count) for count in counts]
    if len(source.kept) != len(counts):
        raise ConfigError(
            f"slice {number} of the composition keeps rows of {len(source.kept)} row groups; there are {len(counts)}"
        )
    for group, (rows, count) in enumerate(zip(source.kept, counts, strict=True)):
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= count or len(rows.unique()) < len(rows)):
            raise ConfigError(
                f"slice {number} of the composition keeps rows {rows.tolist()} of row group {group}: they must be "
                f"different ones from 0 to {count - 1}"
            )
    return list(source.kept)


@dataclass(frozen=True)
class _Epoch:
    """The order of a source's draws in an epoch.

    Attributes:
        turn: for each draw, its row group as the place in `groups`.
        row: for each draw, which of the kept rows of the row group.
        groups: numbers of the row groups, in the order in which they are first needed.
        last: for each of them, the last draw that needs it.
    """

    turn: np.ndarray
    row: np.ndarray
    groups: np.ndarray
    last: np.ndarray


class RowGroupReader:
    """One source's row groups in memory: those that are needed now, and the next ones being read.

    Args:
        source: the source.
        kept: the rows of each row group that are drawn.
        held: number of row groups in memory.
        seed: seed of the order, and the number of the source.
        pool: the background thread.
    """

    def __init__(
        self,
        source: StreamSource,
        kept: Sequence[Tensor],
        held: int,
        seed: tuple[int, int],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._source, self._kept, self._held, self._seed, self._pool = source, kept, held, seed, pool
        self._length = source.reuse * sum(len(rows) for rows in kept)  # draws of an epoch
        self._reading: dict[int, Future[Tensor]] = {}
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)

    def fetch(self, draws_K: np.ndarray) -> Tensor:
        """Return the weights of draws, in the order of time, (K, P)."""
        self._read_ahead(int(draws_K[0]))
        group_K, row_K = self._locate(draws_K)
        if len(draws_K) == 1:
            # A view: of a long model only the window is ever read.
            return self._open(int(group_K[0]), int(draws_K[0]))[int(row_K[0])][None]
        flat_KP = self._open(int(group_K[0]), int(draws_K[0])).new_empty(len(draws_K), self._source.layout.weights)
        order_K = group_K.argsort(kind="stable")
        runs = np.split(order_K, np.flatnonzero(np.diff(group_K[order_K])) + 1)  # the draws of each row group
        # A row group is done with before the next one is opened, which may take its place: no name holds it.
        for at in sorted(runs, key=lambda at: int(at[0])):
            rows = torch.from_numpy(row_K[at])
            flat_KP[torch.from_numpy(at)] = self._open(int(group_K[at[0]]), int(draws_K[at[0]])).index_select(0, rows)
        return flat_KP

    def _locate(self, draws_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the row group of each draw, and which of its kept rows it is, both (K,)."""
        epochs, places_K = np.divmod(draws_K, self._length)
        group_K, row_K = np.empty_like(draws_K), np.empty_like(draws_K)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            plan, now = self._plan(epoch), epochs == epoch
            group_K[now], row_K[now] = plan.groups[plan.turn[places_K[now]]], plan.row[places_K[now]]
        return group_K, row_K

    def _open(self, group: int, draw: int) -> Tensor:
        """Return the kept rows of a draw's row group, (N, P), when they are read."""
        if group not in self._reading:
            self._read_ahead(draw)
        return self._reading[group].result()

    def _read_ahead(self, draw: int) -> None:
        """Let go what no draw soon after this one needs, and read what the next ones need, as many as may be held."""
        epoch, place = divmod(draw, self._length)
        now, following = self._plan(epoch), self._plan(epoch + 1)
        needed = [*now.groups[now.last >= place][: self._held].tolist(), *following.groups[: self._held].tolist()]
        wanted = list(dict.fromkeys(needed))[: self._held]
        for group in set(self._reading) - set(wanted):
            self._reading.pop(group).cancel()
        for group in wanted:
            if group not in self._reading:
                self._reading[group] = self._pool.submit(self._read, group)

    def _read(self, number: int) -> Tensor:
        flat_NP = self._source.row_groups.read(number)
        if flat_NP.shape[1] != self._source.layout.weights:
            raise ConfigError(
                f"slice {self._seed[1]} of the composition has {flat_NP.shape[1]} weights a model in row group "
                f"{number}; its layout has {self._source.layout.weights}"
            )
        rows = self._kept[number]
        return flat_NP if len(rows) == len(flat_NP) else flat_NP[rows]

    def _plan_epoch(self, epoch: int) -> _Epoch:
        seed, source = self._seed
        generator = make_generator(seed, "windows", "order", source, epoch)
        counts = torch.tensor([len(rows) for rows in self._kept])
        filled = torch.nonzero(counts).squeeze(1)
        shuffled = filled[torch.randperm(len(filled), generator=generator)]
        sizes = counts[shuffled] * self._source.reuse
        order_K = torch.repeat_interleave(sizes)  # place of each draw's row group in `shuffled`
        within_K = torch.arange(len(order_K)) - (sizes.cumsum(0) - sizes)[order_K]
        # One of the row groups that are held is being read, the others give.
        giving = self._held - 1
        times_K = order_K + giving * torch.rand(len(order_K), dtype=torch.float64, generator=generator)
        if len(shuffled) <= giving:  # all are held: any order will do
            times_K = torch.rand(len(order_K), dtype=torch.float64, generator=generator)
        sequence_K = times_K.argsort()
        _, first, turn_K = np.unique(order_K[sequence_K].numpy(), return_index=True, return_inverse=True)
        by_need = np.argsort(first)
        turn_K = np.argsort(by_need)[turn_K]
        last = np.zeros(len(first), np.int64)
        np.maximum.at(last, turn_K, np.arange(len(turn_K)))
        row_K = (within_K // self._source.reuse)[sequence_K]
        return _Epoch(turn_K, row_K.numpy(), shuffled.numpy()[by_need], last)
