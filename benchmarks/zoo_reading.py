"""Read a zoo in the published layout into an artifact: checkpoints a second and memory, one process.

    python benchmarks/zoo_reading.py [--json FILE] [--small N] [--large N]

The zoo is made of random CNN-s weights, ten epochs a model. Each reading runs in a process of its own, so that its
peak memory is its own, and reads a zoo of ten first, so that imports are not counted; the baseline is a plain loop of
`torch.load` over such files, without an artifact. All of a reading counts, the zoo's card too.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import torch

from mzsane.config import ExecutionConfig, NetworkConfig
from mzsane.config.reading import ReadConfig
from mzsane.networks.build import build_network
from mzsane.store.artifacts import ArtifactStore
from mzsane.store.serialisation import load_torch
from mzsane.zoo.read import read_zoo

_EPOCHS = 10
_RATE_BAR = 1000.0  # checkpoints a second
_MEMORY_BAR = 1.2  # peak for the large zoo over that for the small one
_BASELINE_FILES = 500
_FIRST = "first"
_CLOCKS = ("wall_time", "core_time")  # they differ where other work runs on the same cores


def main() -> None:
    """Measure, print a table and write the results if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--small", type=int, default=1000, help="checkpoints of the small zoo")
    parser.add_argument("--large", type=int, default=10_000, help="checkpoints of the large zoo")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.read:
        read_once(arguments.read.with_name(_FIRST))
        print(json.dumps(read_once(arguments.read)))
        return
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        write_zoo(Path(folder, _FIRST), _EPOCHS)
        for count in (arguments.small, arguments.large):
            zoo = Path(folder, str(count))
            write_zoo(zoo, count)
            measured[count] = run_alone(zoo)
        baseline = loop_plainly(Path(folder, str(arguments.small)))
    results = [
        {
            "name": f"reading {arguments.large} CNN-s checkpoints, one process",
            "value": round(arguments.large / measured[arguments.large][clock]),
            "unit": f"checkpoints/s of {clock.replace('_', ' ')}",
            "baseline": round(baseline[clock]),
            "bar": _RATE_BAR,
            "holds": arguments.large / measured[arguments.large][clock] >= _RATE_BAR,
        }
        for clock in _CLOCKS
    ]
    small, large = measured[arguments.small]["peak_mb"], measured[arguments.large]["peak_mb"]
    results.append(
        {
            "name": f"peak memory for {arguments.large} over that for {arguments.small} checkpoints",
            "value": round(large / small, 3),
            "unit": f"ratio ({large:.0f} MB / {small:.0f} MB)",
            "baseline": None,
            "bar": _MEMORY_BAR,
            "holds": large / small <= _MEMORY_BAR,
        }
    )
    print(f"{'what':56} {'value':>8} {'baseline':>9} {'bar':>7}  holds  unit")
    for row in results:
        baseline_text = "-" if row["baseline"] is None else row["baseline"]
        holds = "yes" if row["holds"] else "NO"
        print(f"{row['name']:56} {row['value']:>8} {baseline_text:>9} {row['bar']:>7}  {holds:5}  {row['unit']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def write_zoo(folder: Path, count: int) -> None:
    """Write a zoo of random weights in the published layout."""
    generator = torch.Generator().manual_seed(count)
    shapes = {name: value.shape for name, value in build_network(NetworkConfig(), 1, 10).state_dict().items()}
    for number in range(count // _EPOCHS):
        model = folder / f"NN_tune_trainable_{number:05d}_seed={number}"
        model.mkdir(parents=True)
        (model / "params.json").write_text(json.dumps({"model::type": "CNN", "model::nlin": "tanh", "seed": number}))
        lines = []
        for epoch in range(_EPOCHS):
            checkpoint = model / f"checkpoint_{epoch:06d}"
            checkpoint.mkdir()
            state = OrderedDict((name, torch.randn(shape, generator=generator)) for name, shape in shapes.items())
            torch.save(state, checkpoint / "checkpoints")
            metrics = {"train_acc": 0.9, "test_acc": 0.85, "train_loss": 0.3, "test_loss": 0.4, "val_acc": 0.86}
            lines.append(json.dumps({**metrics, "training_iteration": epoch, "hostname": "somewhere", "pid": 1234}))
        (model / "result.json").write_text("\n".join(lines))


def run_alone(zoo: Path) -> dict[str, float]:
    """Read a zoo in a process of its own."""
    command = [sys.executable, __file__, "--read", str(zoo)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def read_once(zoo: Path) -> dict[str, float]:
    """Read a zoo into a new artifact; return the seconds it took by each clock and the process's peak memory."""
    with tempfile.TemporaryDirectory() as root:
        start, busy = time.perf_counter(), time.process_time()
        artifact = read_zoo(
            ReadConfig(name="benchmark", source=str(zoo)), ArtifactStore(root), ExecutionConfig(processes=1)
        )
        seconds = {"wall_time": time.perf_counter() - start, "core_time": time.process_time() - busy}
    assert artifact.manifest.counts["rejected"] == 0
    return {**seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def loop_plainly(zoo: Path) -> dict[str, float]:
    """Return how many checkpoints a second a plain loop loads, by each clock."""
    files = sorted(zoo.glob("*/checkpoint_*/checkpoints"))[:_BASELINE_FILES]
    start, busy = time.perf_counter(), time.process_time()
    for file in files:
        load_torch(file.read_bytes())
    seconds = {"wall_time": time.perf_counter() - start, "core_time": time.process_time() - busy}
    return {clock: len(files) / value for clock, value in seconds.items()}


if __name__ == "__main__":
    main()
