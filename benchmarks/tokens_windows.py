"""Training windows: weights a second from the bank and from local parquet, on one core, and memory of streaming.

Weights are counted as delivered: unpadded, of all views, in float32. CNN-s: 66 tokens of 51; ResNet-18: 43,924
tokens of 288; windows of 2,048 tokens. The bank's baseline is a fresh copy of the same number of weights. Streaming
reads a TOKENS artifact in a local folder, checks its sha256 included, one epoch (two of CNN-s) from the first byte on;
a checkpoint of ResNet-18 is drawn as often as it has windows. Its memory is measured in processes of their own, on zoos
of ten and a hundred parts.
"""

import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial

import polars as pl
import torch
from measuring import make_row
from torch import Tensor

from mzsane.backbone import machine
from mzsane.config import NetworkConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network
from mzsane.store.artifacts import ArtifactRef, ArtifactStore, Work
from mzsane.symmetry.derive.trace import derive_groups
from mzsane.symmetry.groups import PermutationGroup
from mzsane.tokens.store import TokenTable, name_part, read_tokens, write_weights
from mzsane.windows.memory import WindowsInMemory
from mzsane.windows.row_groups import stream_table
from mzsane.windows.stream import WindowStream
from mzsane.windows.windows import WindowBatch, WindowSource

WINDOW = 2048
BATCH = 8
BUFFER_PARTS = 4
BANK_BAR, PARQUET_BAR, MEMORY_BAR = 1.0, 0.3, 1.2
PART_BYTES = 64 * 2**20
MEMORY_PART_BYTES, MEMORY_BUFFER = 8 * 2**20, 96 * 2**20
ARCHITECTURES = {"cnn-s": (51, 1, 28, 52_000), "resnet18": (288, 3, 32, 20)}  # width, channels, size, checkpoints


def lay_out(architecture: str) -> tuple[TokenLayout, tuple[PermutationGroup, ...]]:
    """Return the layout and the groups of an architecture."""
    width, channels, size, _ = ARCHITECTURES[architecture]
    network = build_network(NetworkConfig(architecture=architecture), channels, 10, size)
    symmetry = derive_groups(network, torch.zeros(1, channels, size, size))
    return TokenLayout.from_network(network, width), symmetry.groups


def write_tokens(store: ArtifactStore, architecture: str, models: int, part_bytes: int) -> ArtifactRef:
    """Publish a TOKENS artifact of random weights."""
    layout, groups = lay_out(architecture)
    generator = torch.Generator().manual_seed(0)
    rows = max(1, part_bytes // (4 * layout.weights))
    work = Work("tokens", 0, {"architecture": architecture, "models": models})
    return publish_random(store, work, layout, groups, models, rows, generator, torch.ones(()))


def publish_random(
    store: ArtifactStore,
    work: Work,
    layout: TokenLayout,
    groups: Sequence[PermutationGroup],
    models: int,
    part_models: int,
    generator: torch.Generator,
    deviation_P: Tensor,
) -> ArtifactRef:
    """Publish tokens of normal random weights with given deviations, some models a part; one part is held at a time."""
    index = pl.DataFrame({"model": [f"{model:06d}" for model in range(models)], "epoch": 0, "split": "train"})
    files = {}
    for part, first in enumerate(range(0, models, part_models)):
        rows = index.slice(first, part_models)
        flat_NP = deviation_P * torch.randn(len(rows), layout.weights, generator=generator)
        files[name_part(part)] = store.upload(work, name_part(part), partial(write_weights, rows, flat_NP))
    buffer = io.BytesIO()
    index.with_columns((pl.int_range(pl.len()) // part_models).alias("part")).write_parquet(buffer)
    description = {
        "layout": layout.model_dump(mode="json"),
        "groups": [group.model_dump(mode="json") for group in groups],
        "dtype": "float32",
    }
    small = {"index.parquet": buffer.getvalue(), "layout.json": json.dumps(description).encode()}
    return store.publish(work, {**files, **small}, {}).ref


def count_gigabytes(batch: WindowBatch) -> float:
    """Return the weights of a batch, all views, in gigabytes."""
    return 4e-9 * len(batch.views_VBWD) * int(batch.mask_BWD.count_nonzero())


def time_median(run: Callable[[int], object], repeats: int) -> float:
    """Return the median core time of a call, after one that is not counted; waiting for a busy core is none."""
    run(0)
    seconds = []
    for step in range(1, repeats + 1):
        started = time.process_time()
        run(step)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def measure_bank(repeats: int) -> list[dict]:
    """Measure the bank without and with permuted views, and the share of tokens that packing fills."""
    rows = []
    for architecture, (_, _, _, models) in ARCHITECTURES.items():
        layout, groups = lay_out(architecture)
        source = WindowSource(torch.randn(models, layout.weights), layout, groups)
        for views in (1, 2, 6):
            bank = WindowsInMemory([source], WINDOW, max(2, BATCH // views), 0, views)
            batch = bank.draw(0)
            size = count_gigabytes(batch)
            rate = size / time_median(bank.draw, repeats)
            weights = torch.randn(round(size * 1e9 / 4))
            copied = size / time_median(lambda _, weights=weights: weights.clone(), repeats)
            name = f"bank, {architecture}, {views} view{'s' * (views > 1)}"
            rows.append(make_row(name, rate, "GB/s of core time", copied, BANK_BAR if views == 1 else None))
            rows.append(make_row(f"{name}, of the copy's speed", rate / copied, "ratio"))
        if layout.length <= WINDOW:
            filled = float((bank.draw(0).segments_BW > 0).float().mean())
            rows.append(make_row(f"tokens that {architecture} fills", filled, "share", layout.length / WINDOW))
    return rows


def measure_parquet(folder: str) -> list[dict]:
    """Measure streaming, by the wall and by core time of both threads."""
    rows = []
    store = ArtifactStore(folder)
    for architecture, (_, _, _, models) in ARCHITECTURES.items():
        table = read_tokens(store.open(write_tokens(store, architecture, models, PART_BYTES)))
        wall, core = stream_epochs(table, BUFFER_PARTS * PART_BYTES, 2 if architecture == "cnn-s" else 1)
        name = f"parquet, {architecture}, 1 view"
        rows.append(make_row(name, wall, "GB/s of wall time", None, PARQUET_BAR))
        rows.append(make_row(name, core, "GB/s of core time", None, PARQUET_BAR))
    return rows


def stream_epochs(table: TokenTable, buffer_bytes: int, epochs: int) -> tuple[float, float]:
    """Stream some epochs; return gigabytes a second of wall time and of core time."""
    table.layout.gather_TD, table.layout.positions_T3  # noqa: B018 - made once for a layout, not for an epoch
    every_N: Tensor = torch.arange(len(table.index))
    source = stream_table(table, every_N, reuse=math.ceil(table.layout.length / WINDOW))
    delivered = 0.0
    started, busy = time.perf_counter(), time.process_time()
    with WindowStream([source], WINDOW, BATCH, 0, buffer_bytes, views=1) as stream:
        windows = epochs * stream.plan.windows * source.reuse
        for step in range(math.ceil(windows / BATCH)):
            delivered += count_gigabytes(stream.draw(step))
    return delivered / (time.perf_counter() - started), delivered / (time.process_time() - busy)


def measure_memory(folder: str) -> list[dict]:
    """Measure the peak memory of streaming a zoo and one of ten times its size."""
    store = ArtifactStore(folder)
    weights = lay_out("cnn-s")[0].weights
    peaks = []
    for parts in (10, 100):
        ref = write_tokens(store, "cnn-s", parts * (MEMORY_PART_BYTES // (4 * weights)), MEMORY_PART_BYTES)
        command = [sys.executable, __file__, folder, str(ref)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        peaks.append(json.loads(done.stdout))
    small, large = (peak["peak"] for peak in peaks)
    grown = [peak["peak"] - peak["before"] for peak in peaks]
    return [
        make_row("peak memory for 10 times the models", large / small, "ratio", small, MEMORY_BAR, at_most=True),
        make_row("the same, without what was there before the stream", grown[1] / grown[0], "ratio", grown[0]),
    ]


def stream_once(folder: str, ref: str) -> dict[str, float]:
    """Stream an epoch; return this process's peak memory before and after, MB."""
    kind, fingerprint = ref.split("/")
    table = read_tokens(ArtifactStore(folder).open(ArtifactRef(kind=kind, fingerprint=fingerprint)))
    before = read_peak()
    stream_epochs(table, MEMORY_BUFFER, 1)
    return {"before": before, "peak": read_peak()}


def read_peak() -> float:
    """Return this process's peak memory, MB."""
    return machine.measure_memory(torch.device("cpu")) * 1024


def measure_windows(repeats: int = 15) -> list[dict]:
    """Measure all of it."""
    rows = measure_bank(repeats)
    with tempfile.TemporaryDirectory() as folder:
        rows += measure_parquet(folder)
    with tempfile.TemporaryDirectory() as folder:
        rows += measure_memory(folder)
    return rows


if __name__ == "__main__":  # a process of its own, for its memory
    torch.set_num_threads(1)
    print(json.dumps(stream_once(*sys.argv[1:])))
