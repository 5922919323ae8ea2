"""Which bandwidth is taken of those that are tried."""

import numpy as np
import pytest

from mzsane.config import SamplingConfig
from mzsane.evaluation.bandwidth import Trial, choose_bandwidth, list_trials

GRID = (0.0, 0.2, 0.5, 1.0)


def choose(accuracies, novelties, **settings):
    """Return the bandwidth that is chosen, and all that were tried; between those of the list all is on a line."""

    def attempt(bandwidth):
        values = [
            None if of_grid[0] is None else float(np.interp(bandwidth, GRID, of_grid))
            for of_grid in (accuracies, novelties)
        ]
        return Trial(bandwidth, *values)

    chosen, trials = choose_bandwidth(SamplingConfig(bandwidth=GRID, **settings), attempt)
    tried = [trial.bandwidth for trial in trials]
    assert tuple(tried[: len(GRID)]) == GRID
    return chosen, tried[len(GRID) :]


def test_one_bandwidth_is_taken_without_a_look():
    def fail(bandwidth):
        raise AssertionError

    assert choose_bandwidth(SamplingConfig(bandwidth=0.3), fail) == (0.3, [])


@pytest.mark.parametrize(
    ("least", "expected", "between"),
    [
        (0.0, 0.0, []),  # none is narrower than the narrowest
        (0.24, 0.125, [0.1, 0.15, 0.125]),
        (0.42, 0.2375, [0.35, 0.275, 0.2375]),
        (0.9, 0.8125, [0.75, 0.875, 0.8125]),
        (3.0, 1.0, []),  # none is new enough: the most novel one
    ],
)
def test_the_most_accurate_is_taken_of_those_that_are_new_enough(least, expected, between):
    assert choose((0.9, 0.8, 0.7, 0.1), (0.0, 0.4, 0.6, 1.1), least_novelty=least) == (expected, between)


@pytest.mark.parametrize("slope", [0.7, 1.0, 1.4])
def test_samples_are_hardly_more_novel_than_asked_for(slope):
    chosen, _ = choose((0.9, 0.8, 0.7, 0.1), [slope * bandwidth for bandwidth in GRID], least_novelty=0.25)
    assert 0.25 <= slope * chosen < 0.25 + slope * 0.3 / 8


def test_accuracy_need_not_fall_with_the_bandwidth():
    chosen, between = choose((0.9, 0.4, 0.5, 0.7), (0.0, 0.6, 0.7, 0.8))
    assert chosen == 1.0
    assert between == [0.1, 0.15, 0.175]  # accuracy does not keep narrow ones from being tried


def test_without_a_measure_of_novelty_accuracy_decides():
    assert choose((0.3, 0.4, 0.6, 0.5), (None,) * 4) == (0.5, [])


def test_without_accuracy_the_least_new_of_the_new_enough_is_taken():
    chosen, between = choose((None,) * 4, (0.0, 0.4, 0.6, 1.1), least_novelty=0.42)
    assert (chosen, between) == (0.2375, [0.35, 0.275, 0.2375])
    chosen, between = choose((None,) * 4, (0.0, 0.9, 0.51, 1.1))  # not the narrowest
    assert (chosen, between) == (0.5, [0.1, 0.15, 0.125])


def test_all_that_was_tried_is_in_the_record():
    frame = list_trials([Trial(0.1, 0.5, 0.2), Trial(0.2, None, None), Trial(0.15, 0.4, 0.3)], 0.1)
    assert frame.rows() == [(0.1, 0.5, 0.2, True), (0.15, 0.4, 0.3, False), (0.2, None, None, False)]
    assert list_trials([], 0.3).columns == frame.columns
