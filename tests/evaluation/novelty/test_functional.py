"""Overlap of errors and disagreement among what is right, with values counted by hand."""

import math

import torch

from mzsane.evaluation.novelty.functional import error_overlap, measure_disagreement

LABELS = torch.tensor([0, 1, 2, 3, 4, 5])
RIGHT = LABELS.clone()
WRONG_01 = torch.tensor([9, 9, 2, 3, 4, 5])
WRONG_12 = torch.tensor([0, 8, 8, 3, 4, 5])
WRONG_345 = torch.tensor([0, 1, 2, 8, 8, 8])
ALL_WRONG = LABELS + 1


def test_overlap_is_intersection_over_union_with_the_most_similar_model():
    judged = torch.stack([WRONG_01, WRONG_345, RIGHT, ALL_WRONG])
    overlap, similar = error_overlap(judged, torch.stack([WRONG_12, WRONG_345]), LABELS)
    # Images 0, 1 and 1, 2: one of three. The same three. None of three. Six against three.
    assert overlap.tolist() == [1 / 3, 1.0, 0.0, 0.5]
    assert similar.tolist()[:2] == [0, 1]
    assert int(similar[3]) == 1


def test_errors_overlap_whatever_class_is_predicted_instead():
    other = torch.tensor([7, 7, 2, 3, 4, 5])
    assert error_overlap(other[None], WRONG_01[None], LABELS)[0].tolist() == [1.0]


def test_models_without_errors_are_the_same():
    assert error_overlap(RIGHT[None], RIGHT[None], LABELS)[0].tolist() == [1.0]


def test_disagreement_counts_images_that_one_of_the_two_gets_right():
    judged = torch.stack([WRONG_01, WRONG_01, WRONG_01, RIGHT])
    nearest = torch.stack([WRONG_01, WRONG_12, ALL_WRONG, ALL_WRONG])
    # The same model. Of images 0, 2, 3, 4, 5 the two differ in 0 and 2 (both are wrong in 1). Four, all different.
    assert measure_disagreement(judged, nearest, LABELS).tolist() == [0.0, 2 / 5, 1.0, 1.0]


def test_bad_models_do_not_differ_more_for_being_bad():
    """Half of the errors are shared: plain disagreement would grow with their number."""
    few, more = WRONG_01.clone(), torch.tensor([9, 9, 9, 9, 4, 5])
    assert measure_disagreement(few[None], few[None], LABELS).tolist() == [0.0]
    assert measure_disagreement(more[None], torch.tensor([[7, 7, 7, 7, 4, 5]]), LABELS).tolist() == [0.0]


def test_nothing_right_is_not_a_number():
    assert math.isnan(measure_disagreement(ALL_WRONG[None], ALL_WRONG[None], LABELS).item())
