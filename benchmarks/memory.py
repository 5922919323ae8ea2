"""Memory: the peak of a process that trains a zoo, reads one, or builds tokens, with ten times the checkpoints.

`python benchmarks/memory.py [--json FILE] [--models N]`

Memory is to grow with settings, not with the zoo: shards and parts are made so small that the smaller zoo has several
of each already. Every number is the peak of a process of its own, libraries included;
what each checkpoint adds is a row of its own, because the libraries hide it in the ratio of small zoos.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import make_row, report_rows

from mzsane.config import ExecutionConfig, GlyphsConfig, NetworkConfig, ReadConfig, TokensConfig, ZooConfig
from mzsane.networks.build import build_network
from mzsane.store.artifacts import ArtifactStore
from mzsane.tokens import build
from mzsane.zoo import shards
from mzsane.zoo.read import read_zoo
from mzsane.zoo.train import train_zoo

STAGES = {"train": "training", "tokens": "building tokens", "read": "reading"}
TIMES, BAR = 10, 1.1
PIECE_BYTES = 2**19
NETWORK = NetworkConfig(architecture="cnn-s")


def run_stage(stage: str, models: int, folder: Path) -> int:
    """Run a stage on so many models; return the peak memory of this process in bytes."""
    torch.set_num_threads(1)
    shards.SHARD_BYTES = build.ROW_GROUP_BYTES = PIECE_BYTES
    store, execution = ArtifactStore(str(folder / "store")), ExecutionConfig(processes=1, device="cpu")
    images = GlyphsConfig(source="glyphs", characters="AB", images=60)
    config = ZooConfig(name="memory", images=images, models=models, epochs=1, keep_epochs=1)
    if stage == "train":
        train_zoo(config, store, execution)
    elif stage == "tokens":
        build.build_tokens(TokensConfig(barrier_pairs=0), config, store, execution)
    else:
        read_zoo(ReadConfig(name="memory", source=str(folder / "files")), store, execution)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_files(folder: Path, models: int) -> None:
    """Write state dicts of random weights, a folder a model."""
    network = build_network(NETWORK, 1, 10)
    for number in range(models):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
        (folder / f"model-{number:06d}").mkdir(parents=True)
        torch.save(network.state_dict(), folder / f"model-{number:06d}" / "checkpoint.pt")


def measure_stages(models: int) -> list[dict[str, Any]]:
    """Measure all stages with so many models, and ten times as many."""
    peaks: dict[str, list[int]] = {stage: [] for stage in STAGES}
    for count in (models, TIMES * models):
        with tempfile.TemporaryDirectory() as name:
            write_files(Path(name) / "files", count)
            for stage, found in peaks.items():
                command = [sys.executable, __file__, "--stage", stage, "--folder", name, "--models", str(count)]
                found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    rows = []
    for stage, (few, many) in peaks.items():
        title = f"{STAGES[stage]} {TIMES * models:,} models, times the peak of {models:,}"
        rows.append(make_row(title, many / few, "ratio", few / 2**20, BAR, True))
        each = (many - few) / ((TIMES - 1) * models)
        rows.append(make_row(f"{STAGES[stage]}, for each further checkpoint", each, "bytes"))
    return rows


def main() -> int:
    """Run the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--models", type=int, default=300, help="models of the smaller zoo")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(run_stage(options.stage, options.models, options.folder))
        return 0
    return report_rows(measure_stages(options.models), options.json)


if __name__ == "__main__":
    sys.exit(main())
