"""Zoo training: images a second against a plain loop, cores against one, and on a GPU many models at once.

Baseline: one process, one thread, preloaded tensors, default memory format, unfused optimizer.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import make_row, report_rows
from torch.nn import functional

from mzsane.config import ExecutionConfig, GlyphsConfig, RecipeConfig, ZooConfig
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.train_batched import BatchedModels, fit_epochs_batched
from mzsane.networks.train_loop import fit_epochs
from mzsane.parallel import limit_threads, map_processes
from mzsane.problems.images.dataset import ImageSplit, load_images
from mzsane.randomness import make_generator
from mzsane.store.artifacts import ArtifactStore
from mzsane.zoo.train import train_zoo

IMAGES = GlyphsConfig(source="glyphs", images=10_000)
CONFIG = ZooConfig(name="bench", images=IMAGES, models=2, epochs=1, keep_epochs=1, batch_size=64)
RECIPE = RecipeConfig(batch_size=64)
GPU_MODELS = 512


def build(seed: int) -> torch.nn.Module:
    """Build a CNN-s."""
    network = build_network(CONFIG.network, 1, 10)
    initialise_network(network, "kaiming_uniform", make_generator(seed, "bench"))
    return network


def train_plainly(network: torch.nn.Module, split: ImageSplit) -> None:
    """Train one epoch as a short script would."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for batch in torch.randperm(len(split.labels_N), device=split.labels_N.device).split(64):
        loss = functional.cross_entropy(network(split.images_NCHW[batch]), split.labels_N[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_ours(network: torch.nn.Module, split: ImageSplit) -> None:
    """Train one epoch by the loop of zoo training."""
    next(fit_epochs(network, split, RECIPE, make_generator(0, "order")))


def measure_seconds(run: Callable[[], None]) -> float:
    """Return the wall time of a call, GPU work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def train_job(seed: int) -> None:
    """Train one network in a worker process, images in memory from the first call on."""
    train_ours(build(seed), load_images(IMAGES).splits["train"])


def measure_cpu(repeats: int) -> list[dict]:
    """Compare our loop with the plain one, and two processes with one; interleaved, medians."""
    split = load_images(IMAGES).splits["train"]
    plain, ours, serial, parallel = [], [], [], []
    list(map_processes(train_job, [0] * 4, 2))  # starts the workers and loads their images
    for seed in range(repeats):
        with limit_threads():
            plain.append(measure_seconds(lambda seed=seed: train_plainly(build(seed), split)))
            ours.append(measure_seconds(lambda seed=seed: train_ours(build(seed), split)))
        serial.append(measure_seconds(lambda: list(map_processes(train_job, range(4), 1))))
        parallel.append(measure_seconds(lambda: list(map_processes(train_job, range(4), 2))))
    count = len(split.labels_N)
    base, own = statistics.median(plain), statistics.median(ours)
    return [
        make_row("plain loop", 1e6 * base / count, "microseconds an image"),
        make_row("our loop, times as fast", base / own, "ratio", 1e6 * base / count, 1.3),
        make_row(
            "two processes, times one", statistics.median(serial) / statistics.median(parallel), "ratio", 1.0, 1.8
        ),
    ]


def measure_stage() -> list[dict]:
    """Time the whole stage, metrics and artifact included."""
    config = CONFIG.model_copy(update={"models": 8, "epochs": 3})
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure_seconds(lambda: train_zoo(config, ArtifactStore(folder), ExecutionConfig(device="cpu")))
    return [make_row("whole stage, model-epochs a second", 8 * 3 / seconds, "1/s")]


def measure_gpu() -> list[dict]:
    """Compare many models at once with one by one on the GPU, on 60,000 images of MNIST's size."""
    device = torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60_000, 1, 28, 28, generator=generator)
    split = ImageSplit(images, torch.randint(10, (60_000,), generator=generator)).to(device)
    network = build(0).to(device)
    train_plainly(network, split)
    one = measure_seconds(lambda: train_plainly(network, split))
    models = BatchedModels.stack([build(seed) for seed in range(GPU_MODELS)], device)
    generators = [torch.Generator().manual_seed(seed) for seed in range(GPU_MODELS)]
    training = fit_epochs_batched(models, [split] * GPU_MODELS, [RECIPE] * GPU_MODELS, generators, 2)
    next(training)
    many = measure_seconds(lambda: next(training))
    rate = GPU_MODELS / many
    return [
        make_row("one model on the GPU, model-epochs a second", 1 / one, "1/s"),
        make_row(f"{GPU_MODELS} models at once, model-epochs a second", rate, "1/s"),
        make_row(f"{GPU_MODELS} models at once, times one by one", rate * one, "ratio", 1 / one, 50.0),
        make_row("peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB"),
    ]


def main() -> int:
    """Run the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rows = measure_cpu(options.repeats) + measure_stage()
    if torch.cuda.is_available():
        rows += measure_gpu()
    return report_rows(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
