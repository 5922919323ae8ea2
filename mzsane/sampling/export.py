"""Write samples as state dicts that the target's network loads as they are, batch-norm buffers included."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import TypeAdapter
from torch import nn

from mzsane.config import ImagesConfig, NetworkConfig
from mzsane.errors import ConfigError, StoreError
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import build_network
from mzsane.networks.run import ModelSet, load_model
from mzsane.problems.images.dataset import load_images
from mzsane.sampling.populations import read_populations
from mzsane.store.artifacts import Artifact
from mzsane.store.serialisation import save_tensors

_INDEX = "index.json"
_FACTS = (
    *("sample", "rank", "validation_accuracy", "novelty", "sampling_novelty", "outside_norms"),
    *("nearest_model", "error_overlap", "disagreement"),
)


def export_samples(samples: Artifact, folder: str, everything: bool = False, sink: MetricSink = NO_SINK) -> int:
    """Write each selected sample as a safetensors file, and `index.json`: what they are and what they saw.

    The folder appears when all is written, or not at all. Running statistics are those that the samples are scored
    with. The index has the network, the images, and for each file its sample, its rank and accuracy on validation
    images, its novelty with the nearest training model, and what it `sees` of the target: `labels`, if selected.

    Args:
        samples: the SAMPLES artifact.
        folder: a folder that does not exist, or is empty.
        everything: write all samples, not only the selected ones.
        sink: told of every sample.

    Returns:
        Number of samples written.

    Raises:
        ConfigError: the folder is not empty, or is a file.
        StoreError: it cannot be written.
    """
    target = Path(folder).absolute()
    _check_free(target)
    settings = samples.manifest.config
    populations, records, layout = read_populations(samples)
    chosen = records.sort("rank").filter(everything | (pl.col("rank") <= settings["sampling"]["keep"]))
    images = TypeAdapter[Any](ImagesConfig).validate_python(settings["images"])
    dataset = load_images(images)
    config = NetworkConfig.model_validate(settings["network"])
    network = build_network(config, dataset.channels, dataset.classes, dataset.size)
    models = ModelSet(config, images, layout, populations["samples"])
    facts = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for row in chosen.iter_rows(named=True):
                load_model(models, models.flat_NP[row["sample"]], network, dataset)
                name = f"sample-{row['sample']:06d}.safetensors"
                (hidden / name).write_bytes(_save(network))
                facts.append({"file": name, **{fact: row[fact] for fact in _FACTS}})
                facts[-1]["sees"] = row["sees"] if everything else "labels"
                sink.progress(len(facts), len(chosen), "samples")
            index = {key: settings[key] for key in ("network", "images")} | {
                "channels": dataset.channels,
                "classes": dataset.classes,
                "size": dataset.size,
                "artifact": str(samples.ref),
                "models": facts,
            }
            (hidden / _INDEX).write_text(json.dumps(index, indent=1) + "\n")
            hidden.chmod(0o755)
            hidden.rename(target)  # onto an empty folder too, and onto no other
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"the samples cannot be written to {target}: {error.strerror or error}") from None
    return len(facts)


def _check_free(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file: name a folder to write the samples to")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{target} has files in it: name a new or an empty folder to write the samples to")


def _save(network: nn.Module) -> bytes:
    """Return a state dict as the bytes of a safetensors file, which has no room for shared memory (tied weights)."""
    with torch.no_grad():
        return save_tensors({name: value.clone() for name, value in network.state_dict().items()})
