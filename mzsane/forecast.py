"""How long the stages of an ablation will take and how much they will write, from what the store has of their kind.

A stage is compared with published artifacts of its kind that are nearest to it in size: models and epochs of a zoo,
steps, windows and width of a backbone, samples, arms. What no artifact tells of is counted, not guessed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

from mzsane.errors import StoreError
from mzsane.plan import Stage
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.store.manifest import Manifest

_READ = 50  # manifests of a kind that are looked at
_NEAREST = 3  # of which the median is taken


@dataclass(frozen=True)
class Forecast:
    """What some stages will take.

    Attributes:
        seconds: of all that are known, one after the other.
        bytes: that they will write.
        known: how many stages these figures are of.
        unknown: how many stages nothing like them was done of in this store.
        hosts: the machines that the figures come from.
    """

    seconds: float
    bytes: int
    known: int
    unknown: int
    hosts: tuple[str, ...]


def forecast(stages: Sequence[Stage], store: ArtifactStore) -> Forecast:
    """Return what the stages, none of which is done yet, will take."""
    measured = {kind: _read_measured(kind, store) for kind in {stage.work.kind for stage in stages}}
    seconds, size, known, hosts = 0.0, 0.0, 0, set[str]()
    for stage in stages:
        wanted = _measure(stage.work.kind, stage.work.config)
        nearest = sorted(measured[stage.work.kind], key=lambda found: abs(math.log(found.work / wanted)))[:_NEAREST]
        if nearest:
            known += 1
            seconds += median(found.seconds * wanted / found.work for found in nearest)
            size += median(found.bytes * wanted / found.work for found in nearest)
            hosts |= {found.host for found in nearest}
    return Forecast(seconds, round(size), known, len(stages) - known, tuple(sorted(hosts)))


@dataclass(frozen=True)
class _Measured:
    work: float
    seconds: float
    bytes: int
    host: str


def _read_measured(kind: str, store: ArtifactStore) -> list[_Measured]:
    found = []
    for fingerprint in islice(sorted(store.files.list_names(kind)), _READ):
        try:
            manifest = store.open(ArtifactRef(kind=kind, fingerprint=fingerprint)).manifest
        except StoreError:  # no artifact, or one of another version
            continue
        if manifest.made is not None and manifest.made.seconds:
            found.append(_describe(manifest, manifest.made.seconds, manifest.made.host))
    return found


def _describe(manifest: Manifest, seconds: float, host: str) -> _Measured:
    size = sum(file.bytes for file in manifest.files.values())
    return _Measured(_measure(manifest.kind, manifest.config), seconds, size, host)


def _measure(kind: str, config: Mapping[str, Any]) -> float:
    """Return how much there is to do, in units of a kind's own."""
    measure = _WORK.get(kind)
    return 1.0 if measure is None else max(1.0, measure(config))


def _measure_zoo(config: Mapping[str, Any]) -> float:
    trained = config.get("zoo", config)
    return float((trained.get("models") or 1) * (trained.get("epochs") if "models" in trained else 1))


def _measure_backbone(config: Mapping[str, Any]) -> float:
    settings = config["backbone"]
    return float(settings["steps"] * settings["batch_size"] * settings["window"] * settings["d_model"])


def _measure_samples(config: Mapping[str, Any]) -> float:
    settings = config["sampling"]
    return float(settings["samples"] * settings["rounds"] * (1 + settings["guidance_steps"]))


def _measure_comparison(config: Mapping[str, Any]) -> float:
    ablation = config["ablation"]
    return float(len(ablation["compositions"]) * len(ablation["seeds"]) * len(ablation["targets"]))


_WORK: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "zoo": _measure_zoo,
    "backbone": _measure_backbone,
    "samples": _measure_samples,
    "comparison": _measure_comparison,
}
