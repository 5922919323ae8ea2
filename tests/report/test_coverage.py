"""Intervals hold the truth as often as they say, in ablations that are simulated from single models upwards.

Suffixes: W worlds, C compositions, S seeds, T targets, A anchors, D draws of an anchor.
"""

import math
from itertools import combinations, product

import numpy as np
import polars as pl
import pytest
from scipy import stats

from mzsane.report.cells import ROW_SCHEMA
from mzsane.report.statistics.duels import match_duels
from mzsane.report.statistics.effects import estimate_effects
from mzsane.report.statistics.intervals import measure_interval

WORLDS, ANCHORS, DRAWS = 300, 10, 10
OF_ANCHOR, OF_DRAW = 0.03, 0.02  # deviations of accuracy: what an anchor's samples share, and what they do not


def covers(estimate, half, truth):
    return abs(estimate - truth) <= half


def test_samples_of_ten_anchors_are_ten_units():
    random = np.random.default_rng(0)
    anchors_WAD = random.normal(0, OF_ANCHOR, (WORLDS, ANCHORS, 1)) + random.normal(
        0, OF_DRAW, (WORLDS, ANCHORS, DRAWS)
    )
    clusters = np.repeat(np.arange(ANCHORS), DRAWS).tolist()
    held, naive = [], []
    for values_AD in anchors_WAD:
        values = values_AD.ravel()
        found = measure_interval(values.tolist(), clusters)
        held.append(covers(found.estimate, found.half, 0))
        naive.append(covers(values.mean(), 1.984 * stats.sem(values), 0))
    assert 0.90 <= np.mean(held) <= 0.99
    assert np.mean(naive) < 0.75  # a hundred independent numbers, as it was once


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("opponent", ["layer_noise", "random_init"])
def test_duels(opponent, seeds):
    """Of samples with noise around the same anchors, and with networks that have none. A world is a composition."""
    random = np.random.default_rng(1)
    paired = opponent == "layer_noise"
    shape = (WORLDS, seeds, ANCHORS, DRAWS)
    anchors_WSA1 = random.normal(0, OF_ANCHOR, (WORLDS, seeds, ANCHORS, 1))
    luck_WS11 = random.normal(0, 0.02 * (seeds > 1), (WORLDS, seeds, 1, 1))  # of the backbone of a seed
    own = 0.7 + luck_WS11 + anchors_WSA1 + random.normal(0, OF_DRAW, shape)
    others = 0.65 + anchors_WSA1 * paired + random.normal(0, OF_DRAW, shape)
    world, seed, anchor, _ = np.indices(shape).reshape(4, -1)
    labels = pl.DataFrame(
        {
            "composition": [f"w{number}" for number in world],
            "seed": seed,
            "target": "t",
            "in_distribution": True,
            "sees": "none",
            "generator_sees": "none",
            "model": np.arange(len(world)),
            "ensemble": 1,
            "finetune_epochs": 0,
            "gradient_steps": 0,
            "novelty": 0.5,
        }
    )
    named = [f"zoo/{number}" for number in anchor]
    models = pl.concat(
        [
            labels.with_columns(method=pl.lit("samples"), cluster=pl.Series(named), accuracy=own.ravel()),
            labels.with_columns(
                method=pl.lit(opponent),
                cluster=pl.Series(named if paired else [None] * len(named), dtype=pl.String),
                accuracy=others.ravel(),
            ),
        ]
    )
    duels = match_duels(models)
    assert len(duels) == WORLDS
    assert set(duels["unit_kind"]) == {"seeds" if seeds == 3 else "anchors"}
    assert 0.90 <= duels.select((pl.col("low") <= 0.05) & (pl.col("high") >= 0.05)).to_series().mean() <= 0.99


def test_effects_over_compositions():
    """Compositions with luck of their own, backbones and anchors: what a factor does is held as often as is said."""
    random = np.random.default_rng(2)
    choices = [chosen for count in (1, 2, 3) for chosen in combinations("abc", count)]
    compositions = list(product((25, 50, 100), choices))
    targets, seeds, truth = ("a", "b", "c", "new"), 2, {"models": 0.01, "datasets": 0.0}
    shape = (WORLDS, len(compositions), seeds, len(targets), ANCHORS, DRAWS)
    luck = random.normal(0, 0.02, (*shape[:2], 1, 1)) + random.normal(0, 0.01, (*shape[:3], 1))
    anchors = random.normal(0, OF_ANCHOR, shape[:5]).mean(axis=-1)
    draws = random.normal(0, OF_DRAW / math.sqrt(ANCHORS * DRAWS), shape[:4])  # their mean over anchors and draws
    means_WCST = luck + anchors + draws
    rows = [
        {
            "arm": f"{number}-s{seed}",
            "composition": str(number),
            "seed": seed,
            "target": target,
            "in_distribution": target in chosen,
            "models": models,
            "datasets": len(chosen),
            "architectures": 1,
            "method": "samples",
            "sees": "none",
            "ensemble": 1,
            "finetune_epochs": 0,
            "n": ANCHORS * DRAWS,
        }
        for (number, (models, chosen)), seed, target in product(enumerate(compositions), range(seeds), targets)
    ]
    frame = pl.DataFrame(rows).with_columns(
        pl.lit(None, kind).alias(name) for name, kind in ROW_SCHEMA.items() if name not in rows[0]
    )
    level = 0.5 + truth["models"] * frame["models"].log(2).to_numpy()
    held = {}
    for values_CST in means_WCST:
        for effect in estimate_effects(frame.with_columns(accuracy_mean=level + values_CST.ravel())):
            if effect.kind == "total":
                covered = effect.low <= truth[effect.factor] <= effect.high
                held.setdefault((effect.factor, effect.in_distribution), []).append(covered)
    assert len(held) == 4
    for covered in held.values():
        assert 0.90 <= np.mean(covered) <= 0.99
