"""Made-up ablations of realistic sizes, with every frame that the page takes."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

# method, sees, steps, accuracy less the zoo's, novelty, seconds, chosen of so many; as the measures of real runs are.
ZERO_SHOT = (
    ("zoo", "labels", 400, 0.0, 1.0, 12.0, None),
    ("transfer", "none", 0, -0.7, 1.3, 0.0, None),
    ("reconstruction", "none", 0, -0.02, 0.2, 0.02, None),
    ("samples", "none", 0, -0.06, 0.29, 0.02, None),
    ("selected", "labels", 0, -0.02, 0.28, 0.4, 100),
    ("anchors", "none", 0, -0.01, 0.19, 0.02, None),
    ("best_anchor", "labels", 0, 0.01, 0.0, 0.0, 10),
    ("best_model", "labels", 0, 0.02, 0.0, 0.0, 40),
    ("decoded_noise", "none", 0, -0.08, 0.29, 0.03, None),
    ("layer_noise", "none", 0, -0.12, 0.29, 0.01, None),
    ("flat_noise", "none", 0, -0.09, 0.29, 0.9, None),
    ("flat_noise", "images", 0, -0.03, 0.29, 0.9, None),
    ("interpolation", "none", 0, -0.1, 0.4, 0.01, None),
    ("average", "none", 0, -0.5, 0.6, 0.01, None),
    ("statistics", "none", 0, -0.75, 1.4, 0.01, None),
    ("random_init", "none", 0, -0.8, 1.5, 0.0, None),
    *(
        ("distilled_init", sees, steps, worst * (0.35, 0.2, 0.12, 0.05)[place], 1.0 - worst / 10, steps / 80, None)
        for sees, worst in (("none", -2.0), ("statistics", -1.2), ("images", -0.8))
        for place, steps in enumerate((30, 100, 300, 1000))
    ),
)
TUNED = {"samples": -0.01, "selected": 0.0, "random_init": -0.2, "transfer": -0.1, "best_model": 0.02, "zoo": 0.01}
ENSEMBLES = ("samples", "zoo")
OPPONENTS = ("decoded_noise", "layer_noise", "flat_noise", "distilled_init", "interpolation", "average", "statistics")


def make_ablation(
    compositions: Mapping[str, tuple[int, int, int]], targets: Mapping[str, float], seeds: Sequence[int]
) -> dict[str, Any]:
    """Make up an ablation.

    Args:
        compositions: Models, datasets and architectures by name; one whose name holds that of a target is in its
            distribution, and one with `broken` in its name has a failed backbone.
        targets: The zoo's accuracy by name.
        seeds: Of the arms.

    Returns:
        The arguments of `render_report`.
    """
    chance = random.Random(0)
    rows, duels, convergence, curves, shares, provenance = [], [], [], [], [], []
    for name, (models, datasets, architectures) in compositions.items():
        gain = 0.008 * (models / 40) - 0.015 * (datasets - 1) - 0.35 * ("broken" in name)
        for seed in seeds:
            arm = {"arm": f"{name}-s{seed}", "composition": name, "seed": seed}
            size = {"models": models, "datasets": datasets, "architectures": architectures}
            for target, best in targets.items():
                inside = target in name or name == "all"
                place = {**arm, "target": target, "in_distribution": inside, **size}
                rows += make_rows(place, best, gain - 0.1 * (not inside), chance)
                shares += make_shares(place, gain)
            failed = "broken" in name
            convergence.append(
                {
                    **arm,
                    "steps": 900,
                    "passes": 21600 / models / 4,
                    "val_r2": 0.1 if failed else 0.93 + 0.02 * chance.random(),
                    "gain_last_quarter": 0.004 + 0.01 * chance.random(),
                    "reconstruction_loss_of_accuracy": 0.42 if failed else 0.02 + 0.01 * chance.random(),
                    "failed": failed,
                }
            )
            curves += make_curves(arm, chance)
            provenance += make_provenance(arm["arm"], name, list(targets))
        for target in targets:
            duels += make_duels(name, target, target in name or name == "all", gain, len(seeds), chance)
    return {
        "config": {"name": "made-up", "seeds": list(seeds), "questions": [{"text": "What should a zoo be made of?"}]},
        "rows": pl.DataFrame(rows, infer_schema_length=None),
        "duels": pl.DataFrame(duels, infer_schema_length=None),
        "effects": pl.DataFrame(make_effects(chance), infer_schema_length=None),
        "convergence": pl.DataFrame(convergence),
        "curves": pl.DataFrame(curves),
        "shares": pl.DataFrame(shares),
        "latents": make_latents(list(compositions)[-2:], list(targets), chance),
        "probes": make_probes([f"{name}-s{seed}" for name in compositions for seed in seeds], list(targets), chance),
        "provenance": provenance,
    }


def make_rows(place: Mapping[str, Any], best: float, gain: float, chance: random.Random) -> list[dict[str, Any]]:
    """Every measurement of an arm on a target."""

    def measure(method: str, sees: str, steps: int, level: float, novelty: float, seconds: float, chosen: int | None):
        own = gain if method in ("samples", "selected", "decoded_noise", "reconstruction", "anchors") else 0.0
        accuracy = min(0.995, max(0.08, best + level + own + chance.gauss(0, 0.006)))
        return {
            **place,
            "method": method,
            "sees": sees,
            "generator_sees": "none",
            "ensemble": 1,
            "finetune_epochs": 0,
            "learning_rate": None,
            "images_per_class": None,
            "gradient_steps": steps,
            "image_passes": steps * 32,
            "seconds": seconds,
            "n": 10 if chosen else 100,
            "clusters": 10,
            "chosen_of": chosen,
            "accuracy_mean": accuracy,
            "accuracy_std": 0.03,
            "accuracy_interval": 0.008 + 0.01 * chance.random(),
            "loss_mean": 2.4 * (1 - accuracy),
            "calibration_mean": 0.1 * chance.random(),
            "novelty_mean": max(0.0, novelty + chance.gauss(0, 0.02) * (novelty > 0)),
            "sampling_novelty_mean": max(0.0, novelty - 0.15) if method in ("samples", "selected") else None,
            "norm_ratio_mean": 1.0 + 0.1 * chance.random(),
            "outside_norms_share": 0.0 if method != "statistics" else 0.4,
            "error_overlap_mean": 0.4 + 0.3 * chance.random(),
            "disagreement_mean": 0.1 * chance.random(),
            "spread_mean": novelty * 0.8,
            "coverage": 0.6 if method == "samples" else None,
            "copying_z": -3.1 if method == "samples" else None,
        }

    found = [measure(*line) for line in ZERO_SHOT]
    for epochs in (1, 3):
        for method, level in TUNED.items():
            tuned = measure(method, "labels", 0, level / epochs, 0.5, 0.02, None)
            found.append({**tuned, "finetune_epochs": epochs, "learning_rate": 0.003, "n": 3, "clusters": 3})
    for method in ENSEMBLES:
        found.append({**measure(method, "none", 0, 0.01, 0.0, 0.1, None), "ensemble": 5, "n": 20, "novelty_mean": None})
    return found


def make_duels(
    composition: str, target: str, inside: bool, gain: float, seeds: int, chance: random.Random
) -> list[dict[str, Any]]:
    """Duels of samples with every opponent that sees as much, and of fine-tuned ones with random initialisations."""
    fights = [("samples", "none", name, 0, 0) for name in OPPONENTS if name != "distilled_init"]
    fights += [("samples", "none", "distilled_init", steps, 0) for steps in (30, 100, 300, 1000)]
    fights += [("selected", "labels", "best_anchor", 0, 0), ("samples", "labels", "random_init", 0, 3)]
    fights += [("samples", "labels", "best_model", 0, 3)]
    levels = {"decoded_noise": 0.02, "layer_noise": 0.06, "flat_noise": 0.03, "interpolation": 0.04, "average": 0.44}
    found = []
    for method, sees, opponent, steps, epochs in fights:
        level = levels.get(opponent, 0.02) - 0.0002 * steps + gain
        difference, half = level + chance.gauss(0, 0.02), 0.015 + 0.02 * chance.random()
        untested = opponent == "interpolation" and target == "font-digits"
        verdict = "win" if difference > half else "loss" if difference < -half else "tie"
        found.append(
            {
                "composition": composition,
                "target": target,
                "in_distribution": inside,
                "method": method,
                "opponent": opponent,
                "opponent_sees": sees,
                "opponent_steps": steps,
                "finetune_epochs": epochs,
                "sees": sees,
                "difference": difference,
                "low": None if untested else difference - half,
                "high": None if untested else difference + half,
                "units": 2 if untested else seeds if seeds > 2 else 10,
                "unit_kind": "seeds" if seeds > 2 else "anchors",
                "verdict": "untested" if untested else verdict,
                "novelty": 0.3,
                "opponent_novelty": 0.1 if opponent.startswith("best") else 0.3,
            }
        )
    return found


def make_effects(chance: random.Random) -> list[dict[str, Any]]:
    """Total and adjusted effects of models and datasets; one that cannot be estimated."""
    found = []
    names = {"models": "doubling the models", "datasets": "each added dataset", "architectures": "each new network"}
    for factor, name in names.items():
        for epochs in (0, 3):
            for inside in (True, False):
                for kind in ("total", "adjusted"):
                    known = factor != "architectures"
                    middle = {"models": 0.011, "datasets": -0.014}.get(factor, 0.0) + chance.gauss(0, 0.006)
                    middle += 0.01 * (kind == "adjusted")
                    found.append(
                        {
                            "factor": factor,
                            "epochs": epochs,
                            "in_distribution": inside,
                            "kind": kind,
                            "estimate": middle if known else None,
                            "low": middle - 0.012 if known else None,
                            "high": middle + 0.012 if known else None,
                            "units": 21 if known else 0,
                            "over": "compositions" if known else "",
                            "reason": "" if known else "it does not vary among these compositions",
                            "label": f"{name}{', at equal novelty' if kind == 'adjusted' else ''}",
                        }
                    )
    return found


def make_curves(arm: Mapping[str, Any], chance: random.Random) -> list[dict[str, Any]]:
    """Loss, R2 and the learning rate of an arm."""
    rate = 150 + 60 * chance.random()
    values = {
        "loss": lambda step: 0.9 * 2 ** (-step / rate) + 0.05,
        "loss_contrast": lambda step: 3.0 * 2 ** (-step / rate) + 0.4,
        "val_r2/digits": lambda step: 0.95 - 0.9 * 2 ** (-step / rate),
        "val_accuracy/digits": lambda step: 0.9 - 0.8 * 2 ** (-step / rate),
        "learning_rate": lambda step: 0.004,
    }
    return [
        {**arm, "step": step, "metric": metric, "value": value(step)}
        for metric, value in values.items()
        for step in range(0, 901, 15)
    ]


def make_shares(place: Mapping[str, Any], gain: float) -> list[dict[str, Any]]:
    """Shares of novel and accurate models, falling with the threshold."""
    labels = {name: place[name] for name in ("arm", "composition", "seed", "target", "in_distribution")}
    return [
        {**labels, "method": method, "threshold": round(0.05 * step, 2), "share": max(0.0, level + gain - slope * step)}
        for method, level, slope in (("samples", 0.6, 0.04), ("layer_noise", 0.5, 0.05), ("decoded_noise", 0.55, 0.045))
        for step in range(31)
    ]


def make_latents(arms: Sequence[str], zoos: Sequence[str], chance: random.Random) -> pl.DataFrame:
    """Two clouds an arm, a zoo each."""
    return pl.DataFrame(
        [
            {
                "arm": f"{arm}-s0",
                "composition": arm,
                "zoo": zoo,
                "trained_on": zoo in arm,
                "model": f"{zoo}-{number}",
                "epoch": number % 4,
                "accuracy": 0.5 + 0.4 * chance.random(),
                "x": 3.0 * place + chance.gauss(0, 1),
                "y": chance.gauss(0, 1),
            }
            for arm in arms
            for place, zoo in enumerate(zoos[:2])
            for number in range(60)
        ]
    )


def make_probes(arms: Sequence[str], zoos: Sequence[str], chance: random.Random) -> pl.DataFrame:
    """Scores of four kinds of features for two properties of each zoo, and a property that was not probed."""
    found: list[dict[str, Any]] = []
    for arm in arms:
        for zoo in zoos:
            for name in ("test_accuracy", "epoch"):
                for features, level in (("latents", 0.8), ("weights", 0.2), ("statistics", 0.7)):
                    value = level + 0.05 * chance.gauss(0, 1)
                    found.append(
                        {
                            "arm": arm,
                            "zoo": zoo,
                            "in_distribution": zoo in arm,
                            "fitted_on": [zoos[0]],
                            "sees": "labels",
                            "property": name,
                            "features": features,
                            "metric": "r2" if zoo in arm else "tau",
                            "value": value,
                            "low": value - 0.1,
                            "high": value + 0.1,
                            "chance": 0.0,
                            "gain": level - 0.7,
                            "gain_low": level - 0.8,
                            "gain_high": level - 0.6,
                            "models": 12,
                            "note": None,
                        }
                    )
        found.append({"arm": arm, "zoo": zoos[0], "property": "factor_dropout", "note": "it is the same everywhere"})
    return pl.DataFrame(found, infer_schema_length=None)


def make_provenance(arm: str, composition: str, targets: Sequence[str]) -> list[dict[str, Any]]:
    """What an arm was made of: shared zoos and tokens, a backbone, samples and scores."""

    def entry(stage: str, name: str, reads: Sequence[str] = ()) -> dict[str, Any]:
        fingerprint = hash_name(f"{stage}/{name}")
        address = f"s3://bucket/{stage}/{fingerprint}"
        return {
            "arm": arm,
            "stage": stage,
            "name": name,
            "fingerprint": fingerprint,
            "address": address,
            "reads": [hash_name(read) for read in reads],
        }

    found = [entry("zoo", target) for target in targets]
    found += [entry("tokens", target, [f"zoo/{target}"]) for target in targets]
    found.append(entry("backbone", arm, [f"tokens/{target}" for target in targets if target in composition]))
    for target in targets:
        found.append(entry("samples", f"{arm}/{target}", [f"backbone/{arm}", f"tokens/{target}"]))
        found.append(entry("scores", f"{arm}/{target}", [f"samples/{arm}/{target}"]))
    return found


def hash_name(name: str) -> str:
    """Return a made-up fingerprint."""
    return hashlib.sha256(name.encode()).hexdigest()


def make_small() -> dict[str, Any]:
    """An ablation of the demo's size: four compositions, three targets, one seed."""
    sizes = {"digits": (40, 1, 1), "letters": (40, 1, 1), "digits+letters-equal": (40, 2, 1)}
    sizes["digits+letters-double"] = (80, 2, 1)
    return make_ablation(sizes, {"digits": 0.93, "letters": 0.9, "font-digits": 0.88}, [0])


def make_large() -> dict[str, Any]:
    """An ablation of the size of mnist-family: 21 compositions, four targets, three seeds."""
    family = ("mnist", "fashion", "kmnist", "usps")
    sizes = {f"{name}-{models}": (models, 1, 1) for name in family for models in (25, 50, 100)}
    sizes |= {f"mnist+fashion-{models}": (models, 2, 1) for models in (50, 100, 200)}
    sizes |= {f"mnist+fashion+kmnist-{models}": (models, 3, 1) for models in (50, 100, 200)}
    sizes |= {f"mnist+fashion+kmnist+usps-{models}": (models, 4, 1) for models in (50, 100, 200)}
    return make_ablation(sizes, {"mnist": 0.95, "fashion": 0.82, "kmnist": 0.85, "usps": 0.93}, [0, 1, 2])
