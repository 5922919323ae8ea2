"""Write a zoo in the layout of the published model zoos, so that tools made for those read it.

One folder a model: `params.json` (its settings under the published keys), `result.json` (a JSON line an epoch) and
`checkpoint_000NNN/checkpoints` (a state dict) for each kept epoch.
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.storage import Storage
from mzsane.zoo.shards import iterate_weights

_TYPES = {"cnn-s": "CNN", "cnn-l": "CNN3", "mlp": "MLP", "resnet18": "Resnet18", "vit": "vit"}
_KEYS = {  # ours: theirs
    "activation": "model::nlin",
    "dropout": "model::dropout",
    "width": "model::width",
    "initialisation": "model::init_type",
    "optimizer": "optim::optimizer",
    "learning_rate": "optim::lr",
    "weight_decay": "optim::wd",
    "schedule": "optim::scheduler",
    "batch_size": "training::batchsize",
    "label_noise": "training::label_noise",
    "data_fraction": "training::data_fraction",
    "seed": "seed",
}
_SHORT = {"accuracy": "acc", "loss": "loss"}


def export_zoo(zoo: Artifact, target: str, sink: MetricSink = NO_SINK) -> int:
    """Write a zoo's models below a folder or URL; files that are there already are replaced.

    Args:
        zoo: the ZOO artifact.
        target: folder or fsspec URL.
        sink: told of every shard.

    Returns:
        Number of checkpoints written.

    Raises:
        StoreError: the target cannot be written.
    """
    storage = Storage(target, setting="the export's target")
    history = pl.read_parquet(zoo.path("history.parquet"))
    lines = _write_lines(history) if len(history) else {}
    total, done = zoo.manifest.counts["checkpoints"], 0
    described: set[str] = set()
    for rows, weights in iterate_weights(zoo):
        for position, row in enumerate(rows.iter_rows(named=True)):
            folder = f"NN_tune_trainable_{row['model'].replace('/', '_')}"
            if folder not in described:
                described.add(folder)
                storage.write(f"{folder}/params.json", json.dumps(_describe(row), indent=1).encode())
                text = (
                    lines.get(row["model"]) or _write_lines(rows.filter(pl.col("model") == row["model"]))[row["model"]]
                )
                storage.write(f"{folder}/result.json", text.encode())
            state = {name: value[position].clone() for name, value in weights.items()}
            storage.write(f"{folder}/checkpoint_{row['epoch']:06d}/checkpoints", _save(state))
        done += len(rows)
        sink.progress(done, total, "checkpoints")
    return done


def _describe(row: Mapping[str, Any]) -> dict[str, Any]:
    recipe = json.loads(row["recipe"]) if row["recipe"] else {}
    params = {_KEYS.get(key, key): value for key, value in recipe.items() if key != "architecture"}
    return {
        "model::type": _TYPES.get(row["architecture"], row["architecture"]),
        "dataset::name": row["dataset"],
        **{key: value for key, value in params.items() if value is not None},
    }


def _write_lines(history: pl.DataFrame) -> dict[str, str]:
    """Return the text of `result.json` by model."""
    names = [f"{split}_{kind}" for split in ("train", "val", "test") for kind in _SHORT]
    lines: dict[str, list[str]] = {}
    for row in history.sort("model", "epoch").iter_rows(named=True):
        result = {"training_iteration": row["epoch"]}
        for name in names:
            split, _, kind = name.partition("_")
            if row.get(name) is not None:
                result[f"{split}_{_SHORT[kind]}"] = row[name]
        lines.setdefault(row["model"], []).append(json.dumps(result))
    return {model: "\n".join(texts) + "\n" for model, texts in lines.items()}


def _save(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
