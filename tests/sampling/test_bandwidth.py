"""Which bandwidth is taken of those that are tried."""

import pytest

from mzsane.config import SamplingConfig
from mzsane.sampling.bandwidth import Trial, choose_bandwidth, list_trials

GRID = (0.0, 0.2, 0.5, 1.0)


def choose(accuracies, novelties, **settings):
    found = {b: Trial(b, a, n) for b, a, n in zip(GRID, accuracies, novelties, strict=True)}
    chosen, trials = choose_bandwidth(SamplingConfig(bandwidth=GRID, **settings), found.__getitem__)
    assert trials == list(found.values())
    return chosen


def test_one_bandwidth_is_taken_without_a_look():
    def fail(bandwidth):
        raise AssertionError

    assert choose_bandwidth(SamplingConfig(bandwidth=0.3), fail) == (0.3, [])


@pytest.mark.parametrize(("least", "expected"), [(0.0, 0.0), (0.3, 0.2), (0.5, 0.5), (0.9, 1.0), (3.0, 1.0)])
def test_the_most_accurate_is_taken_of_those_that_are_new_enough(least, expected):
    assert choose((0.9, 0.8, 0.7, 0.1), (0.0, 0.4, 0.6, 1.1), least_novelty=least) == expected


def test_accuracy_need_not_fall_with_the_bandwidth():
    assert choose((0.9, 0.4, 0.5, 0.7), (0.0, 0.6, 0.7, 0.8)) == 1.0


def test_without_a_measure_of_novelty_accuracy_decides():
    assert choose((0.3, 0.4, 0.6, 0.5), (None,) * 4) == 0.5


def test_without_accuracy_the_least_new_of_the_new_enough_is_taken():
    assert choose((None,) * 4, (0.0, 0.7, 0.6, 1.1)) == 0.5


def test_all_that_was_tried_is_in_the_record():
    frame = list_trials([Trial(0.1, 0.5, 0.2), Trial(0.2, None, None)], 0.1)
    assert frame.rows() == [(0.1, 0.5, 0.2, True), (0.2, None, None, False)]
    assert list_trials([], 0.3).columns == frame.columns
