"""The order of checkpoints on a path that is known."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from mzsane.probing.measure import Checkpoints
from mzsane.probing.trajectory import (
    count_paths,
    find_direction,
    order_checkpoints,
    score_order,
    score_trajectories,
)
from mzsane.randomness import make_generator


def make_path(start, steps=6, bend=0.5):
    """A bent way through eight dimensions, along the first."""
    at = np.arange(steps, dtype=float)
    path = np.tile(np.asarray(start, dtype=float), (steps, 1))
    path[:, 0] += at
    path[:, 1] += bend * np.sin(at)
    return path


@pytest.fixture
def starts():
    return np.random.default_rng(1).normal(size=(12, 8)) * 3


def test_a_shuffled_path_is_put_in_order(starts):
    direction = find_direction([make_path(start) for start in starts[:6]])
    shuffle = np.array([3, 0, 5, 1, 4, 2])
    for start in starts[6:]:
        assert order_checkpoints(make_path(start)[shuffle], direction).tolist() == shuffle.tolist()
        backwards = order_checkpoints(make_path(start)[shuffle], -direction)
        assert backwards.tolist() == (5 - shuffle).tolist()


def test_the_path_is_the_shortest_and_not_the_order_along_the_direction():
    # A loop: the end is behind the middle, as seen along the direction of training.
    loop = np.array([[0.0, 0], [2, 0], [3, 1], [2, 2], [1, 2]])
    assert order_checkpoints(loop, np.array([1.0, 0])).tolist() == [0, 1, 2, 3, 4]


def test_order_is_scored_model_by_model(starts):
    paths = [make_path(start) for start in starts]
    direction = find_direction(paths)
    np.testing.assert_array_equal(score_order(paths, direction), np.ones(12))
    np.testing.assert_array_equal(score_order([path[::-1] for path in paths], direction), -np.ones(12))
    np.testing.assert_array_equal(score_order([np.zeros((4, 8))], direction), [0.0])
    noise = np.random.default_rng(0).normal(size=(300, 6, 8))
    assert abs(score_order(list(noise), direction).mean()) < 0.15


def make_checkpoints(prefix, starts):
    """Checkpoints of some models, in a random order of rows."""
    rows = np.random.default_rng(2).permutation(6 * len(starts))
    names = np.repeat([f"{prefix}{number}" for number in range(len(starts))], 6)[rows]
    paths = np.concatenate([make_path(start) for start in starts])
    noise = np.random.default_rng(len(prefix)).normal(size=paths.shape)
    features = {"latents": paths[rows], "weights": noise, "broken": np.full((len(rows), 2), np.nan)}
    return Checkpoints(names, pl.DataFrame({"epoch": np.tile(np.arange(6), len(starts))[rows]}), features)


def test_trajectories_are_found_where_features_have_them(starts):
    fitted, scored = make_checkpoints("a", starts[:6]), make_checkpoints("b", starts[6:])
    found = score_trajectories(fitted, scored, make_generator(0))
    assert found["latents"][0].describe()["value"] == found["latents"][0].describe()["low"] == 1
    assert found["latents"][0].metric == "tau"
    assert abs(found["weights"][0].value_R[0]) < 0.7
    assert found["broken"] == []
    assert count_paths(scored) == 6


def test_a_model_in_both_is_refused_and_one_without_epochs_is_left_out(starts):
    fitted, scored = make_checkpoints("a", starts[:6]), make_checkpoints("b", starts[6:])
    with pytest.raises(AssertionError, match="in both fit and score"):
        score_trajectories(fitted, dataclasses.replace(scored, models_E=fitted.models_E), make_generator(0))
    names = scored.models_E.copy()
    names[np.flatnonzero(names == "b0")[2:]] = "b1"
    short = dataclasses.replace(scored, models_E=names)
    assert count_paths(short) == 5
    few = dataclasses.replace(scored, models_E=np.array([f"c{number}" for number in range(36)]))
    assert count_paths(few) == 0
