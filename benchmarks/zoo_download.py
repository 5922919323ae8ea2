"""Only what is needed of a published zoo: five of fifty epochs out of a 2 GB zip on a real HTTP server.

`python benchmarks/zoo_download.py [--gigabytes 2] [--checkpoint-bytes 45000] [--json FILE]`

The zip has the published layout with members that do not compress; server and client share one process. Wanted are
the bytes of the chosen checkpoints and of their models' params.json and result.json.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from measuring import make_row, report_rows  # noqa: E402

from mzsane.config.reading import DownloadConfig  # noqa: E402
from mzsane.fetch.download import archive_paths, download  # noqa: E402
from mzsane.store.artifacts import ArtifactStore  # noqa: E402
from tests.fetch.http_server import serve  # noqa: E402

EPOCHS = range(1, 51)
WANTED = (21, 22, 23, 24, 25)
BAR = 1.1


def write_zoo(path: Path, total: int, checkpoint: int) -> int:
    """Write a zip of about `total` bytes in the published layout; return the number of models."""
    # Slices of one random block: nothing compresses, and it is made in seconds.
    noise = random.Random(0).randbytes(1 << 24)
    models = max(1, total // (len(EPOCHS) * checkpoint))
    result = "".join(f'{{"training_iteration": {epoch}, "test_acc": 0.5}}\n' for epoch in EPOCHS)
    with zipfile.ZipFile(path, "w") as packed:
        for model in range(models):
            home = f"zoo/NN_tune_trainable_{model:05d}_model::nlin=tanh,optim::lr=0.0003,seed={model}_{model:08x}"
            packed.writestr(f"{home}/params.json", json.dumps({"model::type": "CNN3", "seed": model}))
            packed.writestr(f"{home}/result.json", result)
            for epoch in EPOCHS:
                start = (model * len(EPOCHS) + epoch) * 4099 % (len(noise) - checkpoint)
                packed.writestr(f"{home}/checkpoint_{epoch:06d}/checkpoints", noise[start : start + checkpoint])
    return models


def measure(total: int, checkpoint: int, folder: Path) -> list[dict[str, Any]]:
    """Make the zip, fetch the epochs, and return the rows of the result."""
    zoo = folder / "zoo.zip"
    models = write_zoo(zoo, total, checkpoint)
    store = ArtifactStore(str(folder / "store"))
    with serve() as server, zoo.open("rb") as file:
        server.files["/zoo.zip"] = file
        config = DownloadConfig(name="zoo", source=f"{server.url}/zoo.zip", epochs=WANTED)
        began = time.perf_counter()
        artifact = download(config, store)
        seconds = time.perf_counter() - began
        sent, requests, connections = server.sent, len(server.requests), server.most_busy
    members = 0
    with zipfile.ZipFile(zoo) as source:
        wanted = {
            info.filename: info
            for info in source.infolist()
            if info.filename.endswith((".json", *(f"_{epoch:06d}/checkpoints" for epoch in WANTED)))
        }
        directory = zoo.stat().st_size - source.start_dir
        for path in archive_paths(artifact, folder):
            with zipfile.ZipFile(path) as packed:
                members += sum(info.CRC == wanted[info.filename].CRC for info in packed.infolist())
    if members != len(wanted) or len(wanted) != models * (len(WANTED) + 2):
        raise SystemExit(f"{members} members came, {len(wanted)} were wanted")
    needed = sum(info.file_size for info in wanted.values())
    size = zoo.stat().st_size
    ratio = sent / needed
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        make_row("zoo download: bytes moved / bytes wanted", ratio, "ratio", size / needed, BAR, at_most=True),
        make_row("zoo download: connections at once", connections, "connections", None, 2, at_most=True),
        make_row("zoo download: zip on the server", size / 1e6, "MB"),
        make_row("zoo download: wanted", needed / 1e6, "MB"),
        make_row("zoo download: moved", sent / 1e6, "MB", size / 1e6),
        make_row("zoo download: moved, of it the zip's directory", directory / 1e6, "MB"),
        make_row("zoo download: members wanted", members, "members"),
        make_row("zoo download: requests", requests, "requests", members),
        make_row("zoo download: time", seconds, "s"),
        make_row("zoo download: peak memory", memory, "MiB"),
    ]


def main() -> int:
    """Run the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the zip")
    parser.add_argument("--checkpoint-bytes", type=int, default=45_000, help="size of a checkpoint; CNN-l has 45,000")
    parser.add_argument("--json", type=Path, help="file to write the measurements to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mzsane-benchmark-") as folder:
        rows = measure(int(options.gigabytes * 1e9), options.checkpoint_bytes, Path(folder))
    return report_rows(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
