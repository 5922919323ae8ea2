"""Tokens: times the plain copy of the same bytes, views and windows a second, size of the artifact, on one core.

`python benchmarks/tokens.py [--json FILE] [--s3 s3://bucket/prefix] [--only layout|symmetry|windows|store]`

Baselines are measured in the same run. The S3 part needs a bucket at MZSANE_S3_ENDPOINT, with credentials in the
environment.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import make_row, report_rows, time_in_turns
from tokens_symmetry import measure_symmetry
from tokens_windows import PART_BYTES, measure_windows, stream_epochs, write_tokens

from mzsane.config import NetworkConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network
from mzsane.store.artifacts import ArtifactStore
from mzsane.tokens.store import read_tokens

REPEATS = 15
LAYOUTS = {"a ResNet-18": ("resnet18", 3, 32, 288, 1, 1.5), "1,000 CNN-s": ("cnn-s", 1, 28, 51, 1000, 4.0)}
SIZE_BAR, S3_BAR = 1.03, 0.15


def measure_layouts() -> list[dict[str, Any]]:
    """Tokenize and detokenize, on a GPU too where there is one."""
    rows = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name, (architecture, channels, size, token_dim, models, bar) in LAYOUTS.items():
            network = build_network(NetworkConfig(architecture=architecture), channels, 10, size)
            layout = TokenLayout.from_network(network, token_dim)
            flat_BP = torch.randn(models, layout.weights, device=device)
            tokens_BTD = layout.tokenize(flat_BP)
            copy, tokenize, detokenize = time_in_turns(
                REPEATS,
                flat_BP.clone,
                lambda layout=layout, flat_BP=flat_BP: layout.tokenize(flat_BP),
                lambda layout=layout, tokens_BTD=tokens_BTD: layout.detokenize(tokens_BTD),
            )
            bar = bar if device == "cpu" else None
            where = "" if device == "cpu" else ", GPU"
            rows.append(make_row(f"tokenize {name}, times the copy{where}", tokenize / copy, "ratio", None, bar, True))
            rows.append(
                make_row(f"detokenize {name}, times the copy{where}", detokenize / copy, "ratio", None, bar, True)
            )
    return rows


def measure_store(s3: str | None) -> list[dict[str, Any]]:
    """Measure the artifact's size, and streaming of one from S3."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        for architecture, models in (("cnn-s", 20_000), ("resnet18", 4)):
            tokens = store.open(write_tokens(store, architecture, models, PART_BYTES))
            stored = sum(entry.bytes for entry in tokens.manifest.files.values())
            raw = 4 * models * read_tokens(tokens).layout.weights
            rows.append(
                make_row(
                    f"artifact of {models:,} {architecture}, times its weights",
                    stored / raw,
                    "ratio",
                    None,
                    SIZE_BAR,
                    True,
                )
            )
    if s3:
        options = {"endpoint_url": os.environ["MZSANE_S3_ENDPOINT"]}
        with tempfile.TemporaryDirectory() as cache:
            store = ArtifactStore(s3, Path(cache), options)
            for architecture, models in (("cnn-s", 52_000), ("resnet18", 20)):
                tokens = store.open(write_tokens(store, architecture, models, PART_BYTES))
                wall, core = stream_epochs(read_tokens(tokens), 4 * PART_BYTES, 2)
                rows.append(make_row(f"S3, {architecture}, 1 view", wall, "GB/s of wall time", None, S3_BAR))
                rows.append(make_row(f"S3, {architecture}, 1 view, both threads", core, "GB/s of core time"))
    return rows


def main() -> int:
    """Run the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--s3", help="a folder in a bucket to stream from")
    parser.add_argument("--only", choices=("layout", "symmetry", "windows", "store"), help="only one part")
    options = parser.parse_args()
    if options.s3 and not os.environ.get("MZSANE_S3_ENDPOINT"):
        parser.error("--s3 needs the address of the endpoint in MZSANE_S3_ENDPOINT")
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "layout": measure_layouts,
        "symmetry": measure_symmetry,
        "windows": measure_windows,
        "store": lambda: measure_store(options.s3),
    }
    rows = [row for name, part in parts.items() if options.only in (None, name) for row in part()]
    return report_rows(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
