"""The published zoos' layout, as Ray Tune writes it: a folder a model.

In a model's folder are `params.json` (the flat config; `config.json` in older zoos), `result.json` (a line of JSON an
epoch, or one array) and `checkpoint_000NNN/checkpoints`, a state dict, for each kept epoch. A line belongs to the epoch
that its `training_iteration` says; the first one is epoch 0, the untrained network.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mzsane.errors import ConfigError
from mzsane.fetch.sources import Source
from mzsane.zoo.formats.listing import Candidate, Listing, find_common_folder, is_litter, pick_metrics, sort_key

_CHECKPOINT = re.compile(r"^(?P<folder>(?:.*/)?)checkpoint_(?P<epoch>\d{1,9})/(?P<file>[^/]+)$")
_WEIGHTS = "checkpoints"
_PARAMETERS = ("params.json", "config.json")
_RESULTS = "result.json"
KNOWN = (*_PARAMETERS, _RESULTS, "optimizer")  # files of the layout that are no checkpoints
_EPOCHS = 10**9

# Published key, our key, and published values where ours differ.
_RECIPE = (
    (("model::nlin",), "activation"),
    (("model::dropout",), "dropout"),
    (("model::init_type",), "initialisation"),
    (("optim::optimizer",), "optimizer"),
    (("optim::lr",), "learning_rate"),
    (("optim::wd",), "weight_decay"),
    (("trainset::batchsize", "training::batchsize"), "batch_size"),
)
_VALUES = {"leakyrelu": "leaky_relu", "rms_prop": "rmsprop"}


@dataclass
class _Model:
    """The files of a model: its checkpoints by epoch, and what else it has."""

    checkpoints: list[tuple[int, str]] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    others: set[str] = field(default_factory=set)


def is_ray_tune(names: list[str]) -> bool:
    """Tell whether a source has the published layout."""
    return any((match := _CHECKPOINT.match(name)) and match["file"] == _WEIGHTS for name in names)


def list_ray_tune(source: Source, names: list[str]) -> Listing:
    """List the checkpoints of a source in the published layout.

    A model without `result.json` keeps its checkpoints, without metrics.
    """
    models = _group(names)
    listing = Listing()
    if not models:
        return listing
    trained = [folder for folder, files in models.items() if files.checkpoints or files.empty]
    common = find_common_folder(f"{folder}{_WEIGHTS}" for folder in trained)
    if len(trained) == 1:
        common = find_common_folder([common.rstrip("/")])
    folders = sorted(models, key=sort_key)
    with ThreadPoolExecutor(source.parallel_reads) as threads:
        told = threads.map(lambda folder: _read_notes(source, folder, models[folder].others), folders)
        for folder, (parameters, results) in zip(folders, told, strict=True):
            name = folder.removeprefix(common).rstrip("/") or "model"
            _add_model(listing, name, models[folder], parameters, results)
    return listing


def _group(names: list[str]) -> dict[str, _Model]:
    """Return the models by their folders."""
    models: dict[str, _Model] = defaultdict(_Model)
    kept: set[tuple[str, int]] = set()
    seen: set[tuple[str, int]] = set()
    for name in names:
        if is_litter(name):
            continue
        if match := _CHECKPOINT.match(name):
            folder, epoch = match["folder"], int(match["epoch"])
            seen.add((folder, epoch))
            if match["file"] == _WEIGHTS:
                kept.add((folder, epoch))
                models[folder].checkpoints.append((epoch, name))
        else:
            folder, slash, file = name.rpartition("/")
            if file in KNOWN:
                models[folder + slash].others.add(file)
    for folder, epoch in sorted(seen - kept):
        models[folder].empty.append(epoch)
    return dict(models)


def _add_model(
    listing: Listing, name: str, files: _Model, parameters: Mapping[str, Any], results: Mapping[int, Mapping[str, Any]]
) -> None:
    if not files.checkpoints and not files.empty:
        # The config of the experiment lies beside the models, a model that has trained has results.
        if results:
            listing.reject("no checkpoints: the model's folder has none", name)
        return
    for epoch in files.empty:
        listing.reject(f"no checkpoints: there is no file {_WEIGHTS} in the epoch's folder", name, epoch)
    metrics = {epoch: pick_metrics(line) for epoch, line in sorted(results.items())}
    listing.without_metrics += not metrics
    listing.history += [{"model": name, "epoch": epoch, **values} for epoch, values in metrics.items()]
    recipe = _translate(parameters or _find_config(results))
    listing.entries += [
        Candidate(name, epoch, file, metrics.get(epoch, {}), recipe) for epoch, file in sorted(files.checkpoints)
    ]


def _translate(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the published config with the same settings under our names beside it."""
    recipe = dict(parameters)
    for theirs, ours in _RECIPE:
        value = next((parameters[key] for key in theirs if key in parameters), None)
        if value is not None:
            recipe[ours] = _VALUES.get(value, value) if isinstance(value, str) else value
    return recipe


def _find_config(results: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    config: Any = next((line["config"] for line in results.values() if "config" in line), None)
    return config if isinstance(config, dict) else {}


def _read_notes(source: Source, folder: str, others: set[str]) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Return a model's config and its results by epoch; of what is missing or damaged, what can be had."""
    parameters: dict[str, Any] = {}
    for file in _PARAMETERS:
        if file in others:
            loaded = next(_parse_lines(_read_text(source, folder + file), whole=True), None)
            parameters = loaded if isinstance(loaded, dict) else {}
            break
    results = {}
    if _RESULTS in others:
        text = _read_text(source, folder + _RESULTS)
        for line in _parse_lines(text, whole=text.lstrip().startswith("[")):
            for item in line if isinstance(line, list) else [line]:
                epoch = item.get("training_iteration") if isinstance(item, dict) else None
                if isinstance(epoch, int) and 0 <= epoch < _EPOCHS:
                    results[epoch] = item  # a trial that was resumed tells its last epochs again
    return parameters, results


def _read_text(source: Source, name: str) -> str:
    try:
        return source.read(name).decode(errors="replace")
    except ConfigError:
        return ""


def _parse_lines(text: str, whole: bool) -> Iterator[Any]:
    for line in [text] if whole else text.splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):  # the last line of a run that was killed
            continue
