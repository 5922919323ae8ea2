"""Write a zoo in the layout of the published model zoos, so that tools made for those read it.

One folder a model: `params.json` (its settings under the published keys), `result.json` (a JSON line an epoch, with the
settings under `config`) and `checkpoint_000NNN/checkpoints` (a state dict) for each kept epoch.
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import polars as pl
import torch
from pydantic import TypeAdapter
from torch import Tensor

from mzsane.config import ImagesConfig
from mzsane.errors import ConfigError
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.recognise import recognise
from mzsane.problems.images.dataset import load_images
from mzsane.store.artifacts import Artifact
from mzsane.store.storage import Storage
from mzsane.zoo.formats.listing import is_litter
from mzsane.zoo.formats.published import describe_model, describe_schedule, name_folders, rename_tensors, write_result
from mzsane.zoo.shards import iterate_weights, read_index


def export_zoo(zoo: Artifact, target: str, sink: MetricSink = NO_SINK) -> int:
    """Write a zoo's models below a folder or URL; files of an earlier export of the same zoo are replaced.

    Args:
        zoo: the ZOO artifact.
        target: folder or fsspec URL.
        sink: told of every shard.

    Returns:
        Number of checkpoints that are there.

    Raises:
        ConfigError: the target has other files, or two models would share a folder.
        StoreError: the target cannot be written.
    """
    storage = Storage(target, setting="the export's target")
    index = read_index(zoo)
    folders = name_folders(index["model"].unique(maintain_order=True))
    _check_target(storage, set(folders.values()), index, folders)
    history = pl.read_parquet(zoo.path("history.parquet"))
    lines = _group(history if len(history) else index)
    images = _count_images(zoo)
    total, written = len(index), set[str]()
    described: dict[str, dict[str, Any]] = {}
    for rows, weights in iterate_weights(zoo):
        found = recognise(tuple((name, tuple(value.shape[1:])) for name, value in weights.items()), None)
        for position, row in enumerate(rows.iter_rows(named=True)):
            folder = folders[row["model"]]
            recipe = json.loads(row["recipe"]) if row["recipe"] else {}
            if folder not in described:
                params = describe_model(row, recipe, found)
                if images:
                    params |= describe_schedule(recipe, zoo.manifest.config["epochs"], images)
                described[folder] = params
                results = [write_result(line, params) for line in lines.get(row["model"], [row])]
                storage.write(f"{folder}/params.json", json.dumps(params, indent=1).encode())
                storage.write(f"{folder}/result.json", "".join(f"{json.dumps(line)}\n" for line in results).encode())
            state = {name: value[position].clone() for name, value in weights.items()}
            path = f"{folder}/checkpoint_{row['epoch']:06d}/checkpoints"
            storage.write(path, _save(rename_tensors(state, recipe.get("dropout") or 0.0, found)))
            written.add(path)
        sink.progress(len(written), total, "checkpoints")
    return len(written)


def _check_target(storage: Storage, names: set[str], index: pl.DataFrame, folders: Mapping[str, str]) -> None:
    """Refuse a folder with files of other zoos: whoever reads it would take all of them for one."""
    ours = {f"{name}/{file}" for name in names for file in ("params.json", "result.json")}
    for model, epoch in index.select("model", "epoch").iter_rows():
        ours.add(f"{folders[model]}/checkpoint_{epoch:06d}/checkpoints")
    others = [name for name in storage.walk() if name and name not in ours and not is_litter(name)]
    if others:
        raise ConfigError(
            f"{storage.root} has files that are not of this zoo, such as {others[0]}: name a new or an empty "
            "folder to export to"
        )


def _count_images(zoo: Artifact) -> int:
    """Return the number of training images of a zoo that was trained here; 0 of others, whose schedule is not known."""
    config = zoo.manifest.config
    if not {"epochs", "batch_size", "images"} <= config.keys():
        return 0
    images = load_images(TypeAdapter[Any](ImagesConfig).validate_python(config["images"]))
    return len(images.splits["train"].labels_N)


def _group(history: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each model, by epoch."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in history.sort("model", "epoch").iter_rows(named=True):
        lines.setdefault(row["model"], []).append(row)
    return lines


def _save(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
