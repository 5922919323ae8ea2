"""Training windows from zoos that do not fit in memory: row groups read ahead into a shuffle buffer of bounded size.

As in the token bank the order of all draws is a plan of whole numbers, so that a step's batch is a function of seed and
step alone; only the order within an epoch differs, so that few row groups are needed at a time (`row_groups`).

Suffixes: K draws.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.randomness import make_generator
from mzsane.windows.assembly import WindowAssembler, WindowCutter
from mzsane.windows.memory import Mixture, MixturePlan, check_sizes
from mzsane.windows.row_groups import RowGroupReader, StreamSource, check_kept
from mzsane.windows.windows import WindowBatch, check_composition

_FEWEST_HELD = 2  # row groups of a source: one in use, one being read


class WindowStream:
    """Training windows from row groups, read ahead by a background thread; as `WindowsInMemory`, step by step.

    Steps asked for one after another read every row group once an epoch; any other step is found as well, at the price
    of filling the buffer anew.

    Args:
        sources: the slices of the composition.
        window: tokens of a window.
        batch_size: windows of a batch; one holds several small models.
        seed: seed of all that is drawn.
        buffer_bytes: bytes of weights to hold, the row group that is being read included.
        views: views of each window (see `WindowBatch`).
        device: where the batches shall be.
        mixture: how the weights of the sources are meant (see `MixturePlan`).

    Raises:
        ConfigError: a size is below 1, the sources do not fit together or their own layouts, a row is asked for that
            is not there, or the buffer does not hold two row groups of each source.
    """

    def __init__(
        self,
        sources: Sequence[StreamSource],
        window: int,
        batch_size: int,
        seed: int,
        buffer_bytes: int,
        views: int = 2,
        device: torch.device | str = "cpu",
        mixture: Mixture = "checkpoints",
    ) -> None:
        check_sizes(window=window, batch_size=batch_size, views=views)
        check_sizes(**{f"reuse of slice {number}": source.reuse for number, source in enumerate(sources)})
        kept = [check_kept(source, number) for number, source in enumerate(sources)]
        counts = [sum(len(rows) for rows in groups) for groups in kept]
        layouts, weights = [source.layout for source in sources], [source.weight for source in sources]
        check_composition(layouts, counts, weights)
        self.seed = seed
        self.batch_size, self._device = batch_size, device
        self.plan = MixturePlan(counts, [layout.length for layout in layouts], weights, window, seed, mixture)
        cutters = [WindowCutter(source.layout, source.groups, window) for source in sources]
        self._assembler = WindowAssembler(cutters, (views, batch_size, window))
        held = _count_held(sources, kept, buffer_bytes)
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._readers = [
            RowGroupReader(source, rows, held, (seed, number), self._pool)
            for number, (source, rows) in enumerate(zip(sources, kept, strict=True))
        ]

    def draw(self, step: int) -> WindowBatch:
        """Draw the windows of a step: the same ones whenever it is asked for."""
        pieces = self.plan.place(step, self.batch_size)
        generator = make_generator(self.seed, "windows", "step", step)
        return self._assembler.assemble(pieces, self._fetch, generator).to(self._device)

    def _fetch(self, source: int, draws_K: Tensor) -> Tensor:
        return self._readers[source].fetch(draws_K.numpy())

    def close(self) -> None:
        """Stop reading and give the memory back."""
        self._pool.shutdown(cancel_futures=True)
        self._readers.clear()

    def __enter__(self) -> "WindowStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _count_held(sources: Sequence[StreamSource], kept: Sequence[Sequence[Tensor]], buffer_bytes: int) -> int:
    """Return how many row groups of each source the buffer holds, the same number of all.

    While a row group is read, all of it is in memory, also what is not kept.

    Raises:
        ConfigError: not two.
    """
    reading = max(source.row_groups.row_bytes * max(source.row_groups.counts) for source in sources)
    holding = sum(
        source.row_groups.row_bytes * max(len(rows) for rows in groups)
        for source, groups in zip(sources, kept, strict=True)
    )
    held = (buffer_bytes - reading) // holding
    if held < _FEWEST_HELD:
        needed = reading + _FEWEST_HELD * holding
        gib = math.ceil(needed / 2**30 * 1000) / 1000
        raise ConfigError(
            f"a buffer of {buffer_bytes} bytes is too small for row groups of {holding} bytes from {len(sources)} "
            f"slices: it must have at least {needed}; set backbone.memory_gib to {gib}"
        )
    return held
