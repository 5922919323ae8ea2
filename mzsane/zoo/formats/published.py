"""The published model zoos' layout as their own code reads it: names of folders, settings, networks and tensors.

That code builds a network from `params.json` by the keys that are written here and no others, and loads a state dict
into it by the names of its tensors ("Model Zoos", arXiv 2209.14764).
"""

import hashlib
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.networks.recognise import CNN_S_DROPOUT, Recognised

_PREFIX = "NN_tune_trainable_"
_UNSAFE = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
_LONGEST = 120  # characters of a folder's name
_SHORT = {"accuracy": "acc", "loss": "loss"}
_SPLITS = ("train", "val", "test")

_TYPES = {"cnn-s": "CNN", "cnn-l": "CNN3", "mlp": "MLP", "resnet18": "Resnet18"}
_MLP_WIDTH = 32
_RESNET_WIDTH = 64  # the only one that the published ResNet has
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
_VALUES: dict[str, dict[Any, Any]] = {  # by our key, ours: theirs
    "activation": {"leaky_relu": "leakyrelu"},
    "optimizer": {"rmsprop": "rms_prop"},
    "schedule": {"constant": None, "one-cycle": "OneCycleLR"},
}
_MOMENTUM = {"sgd": 0.9, "rms_prop": 0.0}


def name_folders(models: Iterable[str]) -> dict[str, str]:
    """Return the folder of each model: distinct ones, also where case or the form of letters does not count.

    Raises:
        ConfigError: two models would share one all the same.
    """
    plain = {model: _UNSAFE.sub("_", model) for model in models}
    groups: dict[str, list[str]] = defaultdict(list)
    for model, name in plain.items():
        groups[_fold(name)].append(model)
    for group in groups.values():
        for model in group:
            if len(group) > 1 or len(plain[model]) > _LONGEST or plain[model] != plain[model].strip(" ."):
                digest = hashlib.sha256(model.encode()).hexdigest()[:12]
                plain[model] = f"{plain[model][:_LONGEST]}-{digest}"
    if len({_fold(name) for name in plain.values()}) < len(plain):
        raise ConfigError("the names of two models lead to one folder: rename one of them")
    return {model: f"{_PREFIX}{name}" for model, name in plain.items()}


def describe_model(row: Mapping[str, Any], recipe: Mapping[str, Any], found: Recognised | None) -> dict[str, Any]:
    """Return a model's settings under the published keys, with all that a network of theirs is built from.

    Args:
        row: of the index.
        recipe: how the model was trained, under our keys.
        found: its architecture, if it is one of ours.
    """
    params = {}
    for key, value in recipe.items():
        if key in ("architecture", "width") or value is None:
            continue
        translated = _VALUES.get(key, {})
        params[_KEYS.get(key, key)] = translated.get(value, value) if isinstance(value, str) else value
    if (optimizer := params.get("optim::optimizer")) in _MOMENTUM:
        params.setdefault("optim::momentum", _MOMENTUM[optimizer])
    return {
        "model::type": _name_type(row["architecture"], found),
        "dataset::name": row["dataset"],
        **(_describe_network(found) if found else {}),
        **params,
    }


def describe_schedule(recipe: Mapping[str, Any], epochs: int, images: int) -> dict[str, int]:
    """Return what the published code makes a schedule from: epochs, and steps an epoch on so many training images."""
    seen = max(1, round(recipe.get("data_fraction", 1.0) * images))
    return {
        "training::epochs_train": epochs,
        "scheduler::steps_per_epoch": math.ceil(seen / recipe["batch_size"]),
    }


def rename_tensors(state: Mapping[str, Tensor], dropout: float, found: Recognised | None) -> dict[str, Tensor]:
    """Return a state dict under the names that the published network of its settings gives its tensors."""
    numbers: dict[str, str] = {}
    if found is not None and found.network.architecture == "cnn-s" and dropout > 0:
        numbers = {ours: theirs for theirs, ours in CNN_S_DROPOUT.items()}
    elif found is not None and found.network.architecture == "mlp":
        numbers = {"1": "0", "3": "3" if dropout > 0 else "2", "5": "6" if dropout > 0 else "4"}
    if not numbers:
        return dict(state)
    parts = {name: name.split(".") for name in state}
    return {f"module_list.{numbers[part[1]]}.{part[2]}": state[name] for name, part in parts.items()}


def write_result(row: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of `result.json`: the epoch, its metrics under the published names, and the settings."""
    result: dict[str, Any] = {"training_iteration": row["epoch"]}
    for split in _SPLITS:
        for kind, short in _SHORT.items():
            if row.get(f"{split}_{kind}") is not None:
                result[f"{split}_{short}"] = row[f"{split}_{kind}"]
    return {**result, "config": dict(params)}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _name_type(architecture: str | None, found: Recognised | None) -> str | None:
    if architecture == "resnet18" and found is not None and (found.network.width or _RESNET_WIDTH) != _RESNET_WIDTH:
        return f"Resnet18-width-{found.network.width}"  # the published code has no such network, and says so
    return _TYPES.get(architecture or "", architecture)


def _describe_network(found: Recognised) -> dict[str, Any]:
    """Return what the weights tell; activation, dropout and initialisation leave no trace, the recipe tells them."""
    network = found.network
    described: dict[str, Any] = {
        "model::channels_in": found.channels,
        "model::o_dim": found.classes,
        "model::use_bias": True,
    }
    if network.architecture == "mlp":
        width = network.width or _MLP_WIDTH
        described |= {"model::i_dim": found.channels * found.size**2, "model::h_dim": [width, width]}
    elif network.width is not None:
        described["model::width"] = network.width
    return described
