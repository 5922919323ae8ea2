"""Numbers of a very small pipeline, kept in `golden.json`: they may change only if the work gets another fingerprint.

New settings and other inputs give it one by themselves; for other code a stage's `VERSION` has to be raised.
`python tests/pipeline/golden.py` measures them again and rewrites the file.
"""

# ruff: noqa: E402  (a script finds its own folder on the path, not the repository)
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("golden.json")
REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))

import numpy as np
import polars as pl
import torch

from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.metrics import NO_SINK
from mzsane.plan import plan_ablation
from mzsane.store.artifacts import Artifact, ArtifactStore
from mzsane.store.serialisation import load_tensors
from mzsane.tokens.store import read_tokens
from mzsane.zoo.shards import load_weights

# Other instruction sets (AVX2, SSE4.1) and numbers of threads changed less than 0.0001 here.
RELATIVE = 0.005  # what another CPU may change in a mean
ABSOLUTE = 0.005  # and in a projection, which is of the order of 1

MODULES = {
    "zoo": "mzsane/zoo/train.py",
    "tokens": "mzsane/tokens/build.py",
    "backbone": "mzsane/backbone/pretrain.py",
    "probes": "mzsane/probing/stage.py",
    "samples": "mzsane/evaluation/selection.py",
    "baselines": "mzsane/evaluation/score.py",
    "scores": "mzsane/evaluation/score.py",
    "comparison": "mzsane/report/compare.py",
}

# Trained so briefly that the rounding of another CPU has no time to grow, and long enough to use every part.
CONFIG = {
    "name": "golden",
    "zoos": [
        {
            "name": "letters",
            "images": {"source": "glyphs", "characters": "ABCD", "images": 120},
            "models": 8,
            "epochs": 2,
            "keep_epochs": 2,
            "batch_size": 64,
        },
        {
            "name": "digits",
            "images": {"source": "digits"},
            "models": 4,
            "epochs": 1,
            "keep_epochs": 1,
            "batch_size": 512,
        },
    ],
    "tokens": {"train_fraction": 0.5, "validation_fraction": 0.25},
    "compositions": [
        {"name": "both", "slices": [{"zoo": "letters", "models": 3, "last_epochs": 1}, {"zoo": "digits", "models": 2}]}
    ],
    "backbone": {
        "d_model": 16,
        "heads": 1,
        "layers": 1,
        "latent_dim": 8,
        "steps": 20,
        "batch_size": 4,
        "precision": "float32",
    },
    "targets": [
        {"name": "letters", "zoo": "letters"},
        {
            "name": "figures",
            "images": {"source": "glyphs", "characters": "0123", "images": 60},
            "network": {"architecture": "cnn-s", "activation": "tanh"},
        },
    ],
    "sampling": {"anchors": 2, "bandwidth": 0.1, "samples": 4, "keep": 2},
    # One rate: which of several is best can depend on the rounding of a CPU.
    "evaluation": {
        "finetune_epochs": [0, 1],
        "finetune_models": 1,
        "learning_rates": [0.001],
        "batch_size": 64,
        "ensembles": [2],
        "distillation_steps": [10, 30],
        "distilled_models": 2,
    },
}


def measure(folder: str) -> dict[str, dict[str, Any]]:
    """Run the pipeline below a folder; return for each kind what names its work, exact facts, means, projections."""
    store = ArtifactStore(folder)
    artifacts: dict[str, list[Artifact]] = {}
    for stage in plan_ablation(AblationConfig.model_validate(CONFIG)):
        made = stage.make(store, ExecutionConfig(processes=1), NO_SINK)
        artifacts.setdefault(stage.work.kind, []).append(made)
    describe = {
        "zoo": _describe_zoo,
        "tokens": _describe_tokens,
        "backbone": _describe_backbone,
        "probes": _describe_probes,
        "samples": _describe_samples,
        "baselines": _describe_scores,
        "scores": _describe_scores,
        "comparison": _describe_comparison,
    }
    record: dict[str, dict[str, Any]] = {}
    for kind, made in artifacts.items():
        facts: dict[str, Any] = {"files": sorted(made[0].manifest.files)}
        means: dict[str, float] = {}
        projections: dict[str, float] = {}
        for number, artifact in enumerate(made):
            describe[kind](artifact, f"{number}", facts, means, projections)
        record[kind] = {
            "version": made[0].manifest.version,
            "fingerprint": made[0].ref.fingerprint,
            "facts": facts,
            "means": means,
            "projections": projections,
        }
    return record


def find_changes(recorded: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """Return what must be done for `golden.json` to be right, one line each; nothing when it is."""
    rewrite = "then run `python tests/pipeline/golden.py` to rewrite golden.json"
    if sorted(recorded) != sorted(measured):
        return [f"the kinds are {sorted(measured)} and golden.json has {sorted(recorded)}: look why, {rewrite}"]
    named = ("version", "fingerprint")
    renamed = [kind for kind in MODULES if any(recorded[kind][part] != measured[kind][part] for part in named)]
    if renamed:
        # No old artifact can be mistaken for a new one; what comes later in the pipeline is renamed with its inputs.
        return [f"VERSION, settings or inputs of {', '.join(renamed)} have changed: look at the new numbers, {rewrite}"]
    for kind in MODULES:
        if changes := _compare(recorded[kind], measured[kind]):
            # What comes later in the pipeline changes with it, and will be renamed with it.
            text = "; ".join(changes[:5])
            return [f"the output of stage {kind} changed ({text}): raise VERSION in {MODULES[kind]}, {rewrite}"]
    return []


def _compare(recorded: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    changes = [
        f"{name} is {measured['facts'].get(name)}, was {recorded['facts'].get(name)}"
        for name in sorted(recorded["facts"].keys() | measured["facts"].keys())
        if recorded["facts"].get(name) != measured["facts"].get(name)
    ]
    for part, relative, absolute in (("means", RELATIVE, 0.0), ("projections", 0.0, ABSOLUTE)):
        for name in sorted(recorded[part].keys() | measured[part].keys()):
            was, now = recorded[part].get(name, math.nan), measured[part].get(name, math.nan)
            if not math.isclose(was, now, rel_tol=relative, abs_tol=absolute):
                changes.append(f"{name} is {now:.4g}, was {was:.4g}")
    return changes


def _project(values: np.ndarray) -> float:
    """Return a number that stays when values change little, and changes when they are permuted or drawn anew."""
    flat = values.astype(np.float64).reshape(-1)
    direction = np.cos(np.arange(flat.size) * 1.37 + 0.5) * math.sqrt(2)
    return round(float(flat @ direction / max(float(np.linalg.norm(flat)), 1e-12)), 4)


def _mean(values: Any) -> float:
    return float(f"{float(np.abs(np.asarray(values, dtype=np.float64)).mean()):.4g}")


def _list_shapes(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [f"{name} {'x'.join(map(str, value.shape))}" for name, value in tensors.items()]


def _list_rows(frame: pl.DataFrame) -> list[str]:
    return [" ".join(map(str, row)) for row in frame.iter_rows()]


def _describe_zoo(zoo: Artifact, key: str, facts: dict, means: dict, projections: dict) -> None:
    index, weights = load_weights(zoo)
    history = pl.read_parquet(zoo.path("history.parquet"))
    facts[f"{key} shapes"] = _list_shapes(weights)
    facts[f"{key} columns"] = index.columns
    means[f"{key} test loss"] = _mean(history["test_loss"])
    for name, value in weights.items():
        means[f"{key} {name}"] = _mean(value.numpy())
        projections[f"{key} {name}"] = _project(value.numpy())


def _describe_tokens(tokens: Artifact, key: str, facts: dict, means: dict, projections: dict) -> None:
    table = read_tokens(tokens)
    facts[f"{key} splits"] = table.index.select("model", "split").unique().sort("model")["split"].to_list()
    facts[f"{key} layout"] = table.layout.digest
    facts[f"{key} groups"] = len(table.groups)
    means[f"{key} weights"] = _mean(table.load().numpy())
    projections[f"{key} weights"] = _project(table.load().numpy())


def _describe_backbone(backbone: Artifact, key: str, facts: dict, means: dict, projections: dict) -> None:
    weights, _ = load_tensors(backbone.path("weights.safetensors").read_bytes())
    curves = pl.read_parquet(backbone.path("curves.parquet"))
    used = pl.read_parquet(backbone.path("composition.parquet"))
    facts[f"{key} composition"] = _list_rows(used)
    facts[f"{key} parameters"] = backbone.manifest.counts["parameters"]
    facts[f"{key} metrics"] = sorted(set(curves["metric"]))
    for name in ("loss", "loss_contrast"):
        means[f"{key} {name}"] = _mean(curves.filter(pl.col("metric") == name)["value"])
    flat = np.concatenate([value.numpy().reshape(-1) for value in weights.values()])
    means[f"{key} weights"] = _mean(flat)
    projections[f"{key} weights"] = _project(flat)


def _describe_probes(probes: Artifact, key: str, facts: dict, means: dict, projections: dict) -> None:
    rows = pl.read_parquet(probes.path("probes.parquet"))
    labels = ["zoo", "in_distribution", "sees", "property", "features", "metric", "fitted", "scored", "models", "note"]
    facts[f"{key} rows"] = _list_rows(rows.select(labels))
    # Of so few models a score can be any number; how early an epoch is can be told from the statistics of all of them.
    found = rows.filter(property="epoch", features="statistics", metric="r2")
    means[f"{key} unexplained"] = _mean(1 - found["value"].to_numpy())


def _describe_samples(samples: Artifact, key: str, facts: dict, means: dict, projections: dict) -> None:
    populations, _ = load_tensors(samples.path("populations.safetensors").read_bytes())
    records = pl.read_parquet(samples.path("samples.parquet"))
    facts[f"{key} populations"] = _list_shapes(populations)
    facts[f"{key} anchors"] = records["made_of"].to_list()
    steps = populations["samples"] - populations["anchors"][records["nearest_anchor"].to_torch()]
    means[f"{key} distance from anchors"] = _mean(steps.numpy())
    projections[f"{key} distance from anchors"] = _project(steps.numpy())
    for name, value in populations.items():
        means[f"{key} {name}"] = _mean(value.numpy())
        projections[f"{key} {name}"] = _project(value.numpy())


def _describe_scores(scores: Artifact, key: str, facts: dict, means: dict, projections: dict) -> None:
    rows = pl.read_parquet(scores.path("scores.parquet"))
    names = ["method", "sees", "ensemble", "finetune_epochs"]
    facts[f"{key} rows"] = _list_rows(rows.select(*names, "model"))
    for group, part in rows.group_by(names, maintain_order=True):
        means[f"{key} loss of {' '.join(map(str, group))}"] = _mean(part["loss"])


def _describe_comparison(comparison: Artifact, key: str, facts: dict, means: dict, projections: dict) -> None:
    rows = pl.read_parquet(comparison.path("comparison.parquet"))
    labels = [name for name, kind in rows.schema.items() if kind != pl.Float64]
    facts["columns"] = rows.columns
    facts["rows"] = _list_rows(rows.select(labels))
    means["loss"] = _mean(rows["loss_mean"])
    projections["loss"] = _project(rows["loss_mean"].to_numpy())
    projections["accuracy"] = _project(rows["accuracy_mean"].to_numpy())


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(measure(folder), indent=1) + "\n")
    print(f"wrote {FILE.relative_to(REPOSITORY)}: read the diff before you commit it")
