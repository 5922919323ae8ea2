"""Loss, accuracy and calibration against plain loops; ensembles against the mean of probabilities."""

import math

import pytest
import torch
from torch.nn import functional

from mzsane.networks.measures import BINS, join_predictions, measure_predictions


@pytest.fixture
def logits():
    return 3 * torch.randn(4, 200, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return torch.randint(5, (200,), generator=torch.Generator().manual_seed(1))


def count_calibration(probabilities, labels):
    """The definition, image by image."""
    bins = [[] for _ in range(BINS)]
    for row, label in zip(probabilities.double(), labels, strict=True):
        confidence = float(row.max())
        bins[min(math.ceil(confidence * BINS) - 1, BINS - 1)].append((confidence, int(row.argmax()) == int(label)))
    total = 0.0
    for found in filter(None, bins):
        confidence, correct = (sum(values) / len(found) for values in zip(*found, strict=True))
        total += len(found) / len(labels) * abs(confidence - correct)
    return total


def test_measures_are_those_of_plain_loops(logits, labels):
    measured = measure_predictions(logits.log_softmax(dim=2), labels)
    for own, (loss, accuracy, calibration) in zip(logits, measured, strict=True):
        assert loss == pytest.approx(float(functional.cross_entropy(own, labels)), rel=1e-5)
        assert accuracy == int((own.argmax(dim=1) == labels).sum()) / len(labels)
        assert calibration == pytest.approx(count_calibration(own.softmax(dim=1), labels), abs=1e-6)
        assert calibration > 0.1  # random labels, sure predictions


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not(labels):
    sure = 50 * functional.one_hot(labels, 5).float()
    both = torch.stack([sure, sure.roll(1, dims=1)]).log_softmax(dim=2)
    (_, right, calibrated), (_, wrong, uncalibrated) = measure_predictions(both, labels)
    assert (right, wrong) == (1.0, 0.0)
    assert calibrated == pytest.approx(0.0, abs=1e-6)
    assert uncalibrated == pytest.approx(1.0, abs=1e-6)


def test_a_model_that_is_not_a_number_leaves_the_others_alone(logits, labels):
    alone = measure_predictions(logits[1:].log_softmax(dim=2), labels)
    logits[0] = float("nan")
    first, *others = measure_predictions(logits.log_softmax(dim=2), labels)
    assert first[0] == math.inf
    assert math.isnan(first[2])
    assert others == alone


def test_ensembles_average_the_probabilities_of_models_in_a_row(logits):
    joined = join_predictions(logits.log_softmax(dim=2), 3)
    torch.testing.assert_close(joined.exp(), logits[:3].softmax(dim=2).mean(dim=0)[None])
    assert len(join_predictions(logits, 5)) == 0
