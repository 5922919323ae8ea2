"""Pre-train a backbone on a composition; resumes from its last checkpoint, on a CPU bit for bit.

The BACKBONE artifact holds `weights.safetensors`, `curves.parquet` (step, metric, value), `composition.parquet` (the
training checkpoints: slice, model, epoch) and the pictures `curves.png`, `scales.png` and `reconstruction.png`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import polars as pl
import torch

from mzsane.backbone.checkpoints import Checkpoints
from mzsane.backbone.distributed.launch import launch_ranks
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.training import Training
from mzsane.composition import TokenSlice, choose_checkpoints
from mzsane.config import BackboneConfig, ExecutionConfig
from mzsane.device import choose_device
from mzsane.errors import OutOfMemoryError
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.steady import steady
from mzsane.store.artifacts import Artifact, ArtifactStore, Work
from mzsane.store.serialisation import to_parquet
from mzsane.windows.memory import Mixture
from mzsane.windows.windows import check_positions

VERSION = 6


def plan_backbone(
    config: BackboneConfig, slices: Sequence[TokenSlice], seed: int, mixture: Mixture = "checkpoints"
) -> Work:
    """Name the work of pre-training a backbone."""
    settings = {
        "backbone": config.recipe(),
        "slices": [part.recipe() for part in slices],
        "mixture": mixture,
        "seed": seed,
    }
    inputs = {f"tokens/{number}": part.tokens for number, part in enumerate(slices)}
    return Work("backbone", VERSION, settings, inputs, seed=seed)


@steady
def pretrain(
    config: BackboneConfig,
    slices: Sequence[TokenSlice],
    seed: int,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
    mixture: Mixture = "checkpoints",
    ranks: Ranks | None = None,
) -> Artifact:
    """Pre-train a backbone, or open it when that was done before.

    Killed at any step, the next call continues from the last checkpoint and ends with the same bits.

    Args:
        config: sizes, loss, training.
        slices: the composition.
        seed: of the start, of the order of the data and of all noise.
        store: where the tokens are and the backbone goes.
        execution: device, processes, steps between checkpoints.
        sink: told of metrics and progress.
        mixture: how windows are shared between the slices.
        ranks: the group that this process is one of, when `torchrun` has started it.

    Raises:
        ConfigError: a slice has fewer models than asked for, or its tokens do not fit the backbone.
        DivergedError: the loss is not a number any more, or has exploded.
        OutOfMemoryError: a step does not fit in memory.
        WorkerError: one of several processes was lost.
    """
    work, execution = plan_backbone(config, slices, seed, mixture), execution or ExecutionConfig()
    if found := store.find(work.ref):
        return found
    if ranks is None and execution.ranks > 1:
        launch_ranks(config, slices, seed, store, execution, sink, mixture)
        return store.open(work.ref)
    ranks = ranks or Ranks(device=choose_device(execution.device))
    with _explain_memory(config, ranks):
        chosen = choose_checkpoints(slices, seed, store)
        check_positions([part.table.layout for part in chosen], config.position_limits)
        with Training(config, seed, chosen, mixture, Checkpoints(store.partial(work)), execution, sink, ranks) as run:
            run.resume()
            run.train()
            if not ranks.first:
                ranks.wait()
                return store.open(work.ref)
            files = run.make_files()
    used = [
        part.table.index[part.rows_N.tolist()].select(pl.lit(number).alias("slice"), "model", "epoch")
        for number, part in enumerate(chosen)
    ]
    artifact = store.publish(work, files | {"composition.parquet": to_parquet(pl.concat(used))}, run.count())
    ranks.wait()
    return artifact


@contextmanager
def _explain_memory(config: BackboneConfig, ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        windows = config.part_windows // ranks.count
        raise OutOfMemoryError(
            f"pre-training does not fit in the memory of {ranks.device}: a part of a step has {windows} windows of "
            f"{config.window} tokens, with d_model {config.d_model} and {config.layers} layers; raise "
            "backbone.accumulation, set backbone.recompute, or lower backbone.batch_size, window or max_positions"
        ) from error
