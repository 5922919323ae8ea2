"""Populations made to be like held-out models, copies, or a corner of them: coverage and Z_U tell."""

import math

import pytest
import torch

from mzsane.evaluation.novelty.distance import KnownModels
from mzsane.evaluation.novelty.two_sample import measure_copying, measure_coverage
from mzsane.randomness import make_generator
from mzsane.symmetry.apply.permute import permute_weights
from mzsane.symmetry.groups import draw_permutations

COUNT = 24


@pytest.fixture(scope="module")
def populations(tiny_table):
    """Three draws from one population: training models, held-out models, and more of the same."""
    generator = make_generator(0, "two samples")
    core = tiny_table.load(tiny_table.pick_rows("train", last_epochs=1)[:1])
    train, held_out, fresh = (core + 0.1 * torch.randn(COUNT, core.shape[1], generator=generator) for _ in range(3))
    names = [f"{number:02d}" for number in range(COUNT)]
    return KnownModels(tiny_table.layout, tiny_table.groups, names, train.__getitem__), train, held_out, fresh


def shuffle(known, flat_SP):
    permutations = draw_permutations(known.groups, len(flat_SP), make_generator(1))
    return permute_weights(known.layout, known.groups, permutations, flat_SP)


def test_samples_like_held_out_models_are_told_from_copies(populations):
    known, train, held_out, fresh = populations
    of_held_out = known.find_nearest(held_out)[0]
    assert abs(measure_copying(known.find_nearest(shuffle(known, fresh))[0], of_held_out)) < 2.5
    near = shuffle(known, train + 0.02 * torch.randn(train.shape, generator=make_generator(3)))
    assert measure_copying(known.find_nearest(near)[0], of_held_out) < -5
    far = fresh + 0.1 * torch.randn(fresh.shape, generator=make_generator(4))
    assert measure_copying(known.find_nearest(far)[0], of_held_out) > 5


def test_samples_of_the_population_cover_it_and_a_corner_does_not(populations):
    known, _, held_out, fresh = populations
    assert measure_coverage(known, held_out, shuffle(known, held_out)) == 1.0
    # 1 - 2^-5 = 0.97 in few dimensions; in many, some models are nobody's neighbour.
    alike = measure_coverage(known, held_out, shuffle(known, fresh))
    corner = fresh[:1] + 0.01 * torch.randn(fresh.shape, generator=make_generator(5))
    assert measure_coverage(known, held_out, corner) < alike - 0.2
    assert measure_coverage(known, held_out, fresh + 1.0) == 0.0


def test_fewer_neighbours_are_covered_less(populations):
    known, _, held_out, fresh = populations
    found = [measure_coverage(known, held_out, fresh, neighbours) for neighbours in (1, 5, 23, 99)]
    assert found == sorted(found)
    assert found[2] == found[3]


def test_what_is_no_number_covers_nothing_and_is_left_out(populations):
    known, _, held_out, fresh = populations
    broken = fresh.clone()
    broken[1:] = float("nan")
    assert measure_coverage(known, held_out, broken) == measure_coverage(known, held_out, fresh[:1])
    assert math.isnan(measure_coverage(known, held_out, broken[1:]))
    assert math.isnan(measure_coverage(known, held_out[:1], fresh))
    assert math.isnan(measure_copying(torch.tensor([float("nan")]), torch.ones(3)))


def test_copying_is_the_normal_score_of_won_pairs():
    # Samples win 2 of 6 pairs: (2 - 3) / sqrt(6 * 6 / 12).
    found = measure_copying(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0, 5.0]))
    assert found == pytest.approx(-1 / math.sqrt(3))
    assert measure_copying(torch.ones(4), torch.ones(5)) == 0.0
