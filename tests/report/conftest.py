"""Small made-up ablations, for which the right report is known."""

import hashlib

import polars as pl
import pytest


def make_row(
    composition,
    target,
    method,
    accuracy,
    seed=0,
    sees="none",
    generator_sees="none",
    epochs=0,
    inside=True,
    spread=0.02,
    novelty=None,
    models=40,
    datasets=1,
    architectures=1,
    ensemble=1,
    chosen_of=None,
    steps=0,
    clusters=10,
):
    """One measurement as a dict."""
    return {
        "arm": f"{composition}-s{seed}",
        "composition": composition,
        "seed": seed,
        "target": target,
        "in_distribution": inside,
        "models": models,
        "datasets": datasets,
        "architectures": architectures,
        "method": method,
        "sees": sees,
        "generator_sees": generator_sees,
        "ensemble": ensemble,
        "finetune_epochs": epochs,
        "learning_rate": 0.001 if epochs else None,
        "images_per_class": None,
        "gradient_steps": steps,
        "image_passes": steps,
        "seconds": None,
        "n": 10,
        "clusters": clusters,
        "chosen_of": chosen_of,
        "accuracy_mean": accuracy,
        "accuracy_std": spread,
        "accuracy_interval": spread,
        "loss_mean": 0.5,
        "calibration_mean": 0.1,
        "novelty_mean": novelty,
        "sampling_novelty_mean": novelty,
        "norm_ratio_mean": 1.0,
        "outside_norms_share": 0.0,
        "error_overlap_mean": 0.5,
        "disagreement_mean": 0.2,
        "spread_mean": novelty,
        "coverage": None,
        "copying_z": None,
    }


def make_artifact(arm, stage, name, reads=()):
    """One provenance entry; the same stage and name is the same artifact. Inputs are given as (stage, name)."""
    fingerprints = [hashlib.sha256(f"{kind}/{label}".encode()).hexdigest() for kind, label in [(stage, name), *reads]]
    return {
        "arm": arm,
        "stage": stage,
        "name": name,
        "fingerprint": fingerprints[0],
        "address": f"s3://bucket/{stage}/{fingerprints[0]}",
        "reads": fingerprints[1:],
    }


@pytest.fixture
def row():
    """The maker of one measurement."""
    return make_row


@pytest.fixture
def artifact():
    """The maker of one provenance entry."""
    return make_artifact


@pytest.fixture(scope="session")
def rows():
    """Three compositions, two seeds, two targets, zero-shot and fine-tuned; no zoo for the fonts.

    Samples beat layer_noise on digits only; fine-tuned samples beat random_init but for letters on fonts.
    """
    found = []
    inside = {"digits": {"digits"}, "letters": set(), "both": {"digits"}}
    for composition, datasets in inside.items():
        for seed in (0, 1):
            shift = {"digits": 0.0, "letters": -0.2, "both": 0.05}[composition] + 0.01 * seed
            for target, base in {"digits": 0.8, "fonts": 0.6}.items():
                measure = {"composition": composition, "target": target, "seed": seed, "inside": target in datasets}
                level = base + shift
                if target == "digits":
                    found.append(make_row(**measure, method="zoo", accuracy=0.99))
                found += [
                    make_row(**measure, method="random_init", accuracy=0.1),
                    make_row(**measure, method="samples", accuracy=level),
                    make_row(**measure, method="selected", accuracy=level + 0.1, sees="labels"),
                    make_row(**measure, method="reconstruction", accuracy=level + 0.05),
                    make_row(**measure, method="anchors", accuracy=level + 0.08),
                    make_row(**measure, method="layer_noise", accuracy=level + (-0.1 if target == "digits" else 0.12)),
                    make_row(**measure, method="average", accuracy=0.3),
                ]
                for epochs in (1, 3):
                    worse = composition == "letters" and target == "fonts"
                    tuned = {**measure, "sees": "labels", "epochs": epochs}
                    found.append(make_row(**tuned, method="samples", accuracy=0.6 if worse else 0.9))
                    found.append(make_row(**tuned, method="random_init", accuracy=0.7))
    return pl.DataFrame(found)


@pytest.fixture(scope="session")
def curves():
    """Loss, R2 and learning rate of two arms, with one value that is not finite."""
    values = {"loss": 0.5, "loss_contrast": 2.0, "val_r2/digits": 0.9, "learning_rate": 1e-3}
    return pl.DataFrame(
        [
            {
                "arm": f"{composition}-s0",
                "composition": composition,
                "seed": 0,
                "step": step,
                "metric": metric,
                "value": float("nan") if (metric, step) == ("loss", 1) else value / (step + 1),
            }
            for composition in ("digits", "both")
            for metric, value in values.items()
            for step in range(4)
        ]
    )


@pytest.fixture(scope="session")
def provenance():
    """Two arms that share a zoo and its tokens; scores read the zoo as well."""
    zoo, tokens = ("zoo", "digits"), ("tokens", "digits canonical")
    found = []
    for arm in ("digits-s0", "both-s0"):
        found += [
            make_artifact(arm, *zoo),
            make_artifact(arm, *tokens, reads=[zoo]),
            make_artifact(arm, "backbone", f"backbone {arm}", reads=[tokens]),
            make_artifact(arm, "samples", f"samples {arm}", reads=[("backbone", f"backbone {arm}"), tokens]),
            make_artifact(arm, "scores", f"scores {arm}", reads=[("samples", f"samples {arm}"), zoo]),
        ]
    return found
