"""Probe a backbone: what its latents tell of models that it was not trained on, beside weights and their statistics.

The PROBES artifact holds `probes.png` and `probes.parquet`, a row a zoo, property, kind of features and metric (see
`PROBE_SCHEMA`). Probes are fitted on the composition's training models and scored on test models: of the composition's
own zoos (in distribution, each by a probe of its own), and of the ablation's other zoos (out of distribution), of which
neither backbone nor probe has seen anything. Only which zoo a model is of is fitted on training models of all zoos.

Suffixes: E checkpoints, P weights of a model, N rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mzsane.appearance import plot_png
from mzsane.backbone.inference import load_backbone
from mzsane.composition import TokenSlice
from mzsane.config import ExecutionConfig
from mzsane.device import find_device
from mzsane.errors import ConfigError
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.probing.features import BASELINE, POOLED, extract_features
from mzsane.probing.measure import (
    Checkpoints,
    Measure,
    Property,
    explain_unprobeable,
    list_properties,
    score_property,
)
from mzsane.probing.picture import ALL, plot_probes
from mzsane.probing.trajectory import LEAST_EPOCHS, MOST_EPOCHS, count_paths, score_trajectories
from mzsane.randomness import make_generator
from mzsane.steady import steady
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore, Work
from mzsane.store.serialisation import to_parquet
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.subject import find_subject
from mzsane.windows.windows import check_positions

VERSION = 1
ORDER, ZOO = "order_of_epochs", "zoo"  # properties besides those of the index
_FITTED, _SCORED = 100, 50  # models of a zoo, of as many as 8 epochs each, and
_MOST_WEIGHTS = 2**30  # of all their checkpoints together
_CHUNK = 2**23  # weights of checkpoints that are in memory together
PROBE_SCHEMA: dict[str, Any] = {
    "zoo": pl.String,  # whose test models are scored; `all` where the property is the zoo
    "tokens": pl.String,  # fingerprint of its tokens
    "in_distribution": pl.Boolean,  # the backbone was trained on it
    "fitted_on": pl.List(pl.String),  # the zoos whose training models the probe was fitted on
    "sees": pl.String,  # of the scored zoo: `labels`, the property of training models, or `none`
    "property": pl.String,
    "features": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,  # 95 % interval over the scored models
    "high": pl.Float64,
    "chance": pl.Float64,  # without features: the share of the most frequent class, or 0
    "gain": pl.Float64,  # value less that of the statistics, on the same resamples
    "gain_low": pl.Float64,
    "gain_high": pl.Float64,
    "fitted": pl.Int64,  # checkpoints
    "scored": pl.Int64,
    "models": pl.Int64,  # scored
    "note": pl.String,  # why there is no value
}


@dataclass(frozen=True)
class _Zoo:
    """A zoo's checkpoints: training models, those of the composition if it is in that, and test models."""

    label: str
    fingerprint: str
    inside: bool
    layout: str
    images: str
    fitted: Checkpoints
    scored: Checkpoints


def plan_probes(backbone: ArtifactRef, slices: Sequence[TokenSlice], others: Sequence[ArtifactRef], seed: int) -> Work:
    """Name the work of probing a backbone.

    Args:
        backbone: the backbone.
        slices: what it was trained on.
        others: tokens of more zoos, in any order.
        seed: which models are drawn where there are more than are used, and of the resamples.
    """
    own = [part.tokens for part in slices]
    inputs = {"backbone": backbone} | {f"tokens/{number}": ref for number, ref in enumerate(own)}
    outside = sorted({str(ref) for ref in others} - {str(ref) for ref in own})
    inputs |= {f"others/{number}": ArtifactRef.parse(text) for number, text in enumerate(outside)}
    return Work("probes", VERSION, {"seed": seed}, inputs, seed=seed)


@steady
def probe_backbone(
    backbone: ArtifactRef,
    slices: Sequence[TokenSlice],
    others: Sequence[ArtifactRef],
    seed: int,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Artifact:
    """Probe a backbone, or open its probes when that was done before (see `plan_probes`)."""
    work = plan_probes(backbone, slices, others, seed)
    if found := store.find(work.ref):
        return found
    zoos, rows = _read_zoos(work, store, find_device(execution), sink)
    for zoo in zoos:
        rows += _probe_zoo(zoo, zoos, seed)
        sink.progress(len(zoos) + zoos.index(zoo) + 1, 2 * len(zoos), "zoos read and probed")
    rows += _probe_origin(zoos, seed)
    table = pl.DataFrame(rows, schema=PROBE_SCHEMA)
    files = {"probes.parquet": to_parquet(table), "probes.png": plot_png(lambda: plot_probes(table))}
    counts = {"zoos": len(zoos), "scores": table["value"].count(), "left_out": table["features"].null_count()}
    return store.publish(work, files, counts)


def _read_zoos(
    work: Work, store: ArtifactStore, device: torch.device, sink: MetricSink
) -> tuple[list[_Zoo], list[dict[str, Any]]]:
    """Return the zoos that can be probed, and rows that say why others cannot."""
    trained = store.open(work.inputs["backbone"])
    model, config = load_backbone(trained, device)
    used = pl.read_parquet(trained.path("composition.parquet"))
    models: dict[ArtifactRef, set[str]] = {ref: set() for role, ref in work.inputs.items() if role != "backbone"}
    for role, ref in work.inputs.items():
        if role.startswith("tokens/"):
            models[ref] |= set(used.filter(slice=int(role.removeprefix("tokens/")))["model"])
    zoos: list[_Zoo] = []
    rows: list[dict[str, Any]] = []
    for number, (ref, own) in enumerate(models.items()):
        table = read_tokens(store.open(ref))
        label = _name_zoo(table, ref, [zoo.label for zoo in zoos])
        try:
            check_positions([table.layout], config.position_limits)
        except ConfigError as error:
            rows.append(_leave_out(label, ref.fingerprint, bool(own), "all properties", str(error)))
            continue

        def extract(flat_EP: Tensor, table: TokenTable = table) -> Mapping[str, np.ndarray]:
            return extract_features(model, table.layout, flat_EP, config.window)

        train = own or set(table.index.filter(split="train")["model"])
        test = set(table.index.filter(split="test")["model"])
        origin = find_subject(table.artifact)
        fitted, scored = (
            _read_checkpoints(table, chosen, most, extract, (work.seed, "probes", ref.fingerprint, split))
            for chosen, most, split in ((train, _FITTED, "train"), (test, _SCORED, "test"))
        )
        images = label if origin is None else origin.images.model_dump_json()
        zoos.append(_Zoo(label, ref.fingerprint, bool(own), table.layout.digest, images, fitted, scored))
        sink.progress(number + 1, 2 * len(models), "zoos read and probed")
    return zoos, rows


def _name_zoo(table: TokenTable, ref: ArtifactRef, taken: Sequence[str]) -> str:
    """Return what a zoo is called after what is in it: names that people give are part of no artifact but the last."""
    words = [str(table.index[name][0]) for name in ("dataset", "architecture") if name in table.index.columns]
    label = " ".join(words) or "zoo"
    return f"{label} {ref.fingerprint[:6]}" if label in taken else label


def _read_checkpoints(
    table: TokenTable,
    models: set[str],
    most: int,
    extract: Callable[[Tensor], Mapping[str, np.ndarray]],
    seed: tuple[int | str, ...],
) -> Checkpoints:
    """Read checkpoints of some models, epochs evenly spread, and their features; those that diverged are left out."""
    rows = table.index.with_row_index("row").filter(pl.col("model").is_in(models)).sort("model", "epoch")
    epochs = rows["epoch"].unique().sort()
    kept = {epochs[round(place)] for place in np.linspace(0, len(epochs) - 1, min(MOST_EPOCHS, len(epochs)))}
    names = rows["model"].unique().sort()
    count = min(
        most, max(4, int(most / (_FITTED + _SCORED) * _MOST_WEIGHTS / table.layout.weights / max(1, len(kept))))
    )
    order = torch.randperm(len(names), generator=make_generator(*seed))
    drawn = [names[number] for number in order[:count].tolist()]
    rows = rows.filter(pl.col("epoch").is_in(kept), pl.col("model").is_in(drawn))
    pieces, finite = [], []
    for part_N in torch.tensor(rows["row"].to_list(), dtype=torch.int64).split(max(1, _CHUNK // table.layout.weights)):
        flat_EP = table.load(part_N)
        finite_E = flat_EP.isfinite().all(dim=1)
        finite += finite_E.tolist()
        pieces.append(extract(flat_EP[finite_E]))
    index = rows.filter(pl.Series(finite, dtype=pl.Boolean))
    names_E = np.array([f"{table.artifact.ref.fingerprint}/{model}" for model in index["model"]], dtype=str)
    features = {name: np.concatenate([piece[name] for piece in pieces]) for name in (pieces[0] if pieces else ())}
    return Checkpoints(names_E, index.drop("row"), features)


def _probe_zoo(zoo: _Zoo, zoos: Sequence[_Zoo], seed: int) -> list[dict[str, Any]]:
    """Return the rows of all properties of a zoo's test models."""
    sources = [zoo] if zoo.inside else [other for other in zoos if other.inside and other.layout == zoo.layout]
    # To another architecture only what every architecture has can be carried over.
    pooled = not sources
    sources = sources or [other for other in zoos if other.inside]
    fitted, scored = _join([other.fitted for other in sources], pooled), _join([zoo.scored], pooled)
    common = {
        "zoo": zoo.label,
        "tokens": zoo.fingerprint,
        "in_distribution": zoo.inside,
        "fitted_on": [other.label for other in sources],
        "sees": "labels" if zoo.inside else "none",
    }
    rows: list[dict[str, Any]] = []
    for asked in list_properties(fitted.index, scored.index):
        if reason := explain_unprobeable(asked, fitted, scored):
            rows.append(_leave_out(zoo.label, zoo.fingerprint, zoo.inside, asked.name, reason))
            continue
        generator = make_generator(seed, "probes", zoo.fingerprint, asked.name)
        measures = score_property(asked, fitted, scored, generator)
        rows += _list_rows(common | {"property": asked.name}, measures, fitted, scored)
    if not (count_paths(fitted) and count_paths(scored)):
        reason = f"no model has {LEAST_EPOCHS} checkpoints, which an order needs"
        return [*rows, _leave_out(zoo.label, zoo.fingerprint, zoo.inside, ORDER, reason)]
    measures = score_trajectories(fitted, scored, make_generator(seed, "probes", zoo.fingerprint, ORDER))
    return rows + _list_rows(common | {"property": ORDER}, measures, fitted, scored)


def _probe_origin(zoos: Sequence[_Zoo], seed: int) -> list[dict[str, Any]]:
    """Return the rows of telling apart which images a model was trained on, by architecture."""
    rows: list[dict[str, Any]] = []
    for layout in dict.fromkeys(zoo.layout for zoo in zoos):
        own = [zoo for zoo in zoos if zoo.layout == layout]
        if len({zoo.images for zoo in own}) < 2:
            continue
        fitted, scored = _join([zoo.fitted for zoo in own]), _join([zoo.scored for zoo in own])
        values = [
            np.concatenate([np.full(len(part.models_E), zoo.images, dtype=object) for zoo, part in parts])
            for parts in ([(zoo, zoo.fitted) for zoo in own], [(zoo, zoo.scored) for zoo in own])
        ]
        asked = Property(ZOO, *values)
        common = {
            "zoo": ALL,
            "tokens": "",
            "in_distribution": all(zoo.inside for zoo in own),
            "fitted_on": [zoo.label for zoo in own],
            "sees": "labels",
            "property": ZOO,
        }
        if explain_unprobeable(asked, fitted, scored) is None:
            measures = score_property(asked, fitted, scored, make_generator(seed, "probes", layout, ZOO))
            rows += _list_rows(common, measures, fitted, scored)
    return rows


def _join(parts: Sequence[Checkpoints], pooled: bool = False) -> Checkpoints:
    """Join checkpoints; of several architectures only the features that all have."""
    names = [name for name in parts[0].features if not pooled or name == POOLED]
    return Checkpoints(
        np.concatenate([part.models_E for part in parts]),
        pl.concat([part.index for part in parts], how="diagonal_relaxed"),
        {name: np.concatenate([part.features[name] for part in parts]) for name in names},
    )


def _list_rows(
    common: Mapping[str, Any], measures: Mapping[str, list[Measure]], fitted: Checkpoints, scored: Checkpoints
) -> list[dict[str, Any]]:
    counts = {
        "fitted": len(fitted.models_E),
        "scored": len(scored.models_E),
        "models": len(np.unique(scored.models_E)),
    }
    baseline = {measure.metric: measure for measure in measures.get(BASELINE, [])}
    rows: list[dict[str, Any]] = []
    for features, found in measures.items():
        row = {**common, **counts, "features": features}
        rows += [row | measure.describe(baseline.get(measure.metric)) for measure in found]
        if not found:
            rows.append(row | {"note": "the features of some checkpoints are not numbers"})
    return rows


def _leave_out(label: str, fingerprint: str, inside: bool, name: str, reason: str) -> dict[str, Any]:
    return {"zoo": label, "tokens": fingerprint, "in_distribution": inside, "property": name, "note": reason}
