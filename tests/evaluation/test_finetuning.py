"""Fine-tuning: what it sees, which learning rate counts, and that both engines agree."""

import dataclasses

import pytest
import torch

from mzsane.config import EvaluationConfig, ExecutionConfig
from mzsane.evaluation import finetuning
from mzsane.evaluation.finetuning import draw_labelled, finetune_models
from mzsane.networks.run import ModelSet
from mzsane.problems.images.dataset import ImageSplit, load_images

SERIAL = ExecutionConfig(processes=1)
CONFIG = EvaluationConfig(finetune_epochs=(0, 1, 3), learning_rates=(1e-6, 0.01), batch_size=8)


@pytest.fixture
def models(tiny_zoo_config, tiny_table):
    return ModelSet(tiny_zoo_config.network, tiny_zoo_config.images, tiny_table.layout, tiny_table.load()[:2])


def test_every_asked_epoch_is_scored_and_models_learn(models):
    config = EvaluationConfig(finetune_epochs=(0, 1, 10), learning_rates=(0.01,), batch_size=8)
    scores = finetune_models(models, config, 0, SERIAL)
    assert [(score.model, score.epochs) for score in scores] == [(m, e) for m in (0, 1) for e in (1, 10)]
    assert all(last.loss < first.loss for first, last in zip(scores[::2], scores[1::2], strict=True))


def test_the_rate_is_chosen_on_validation_images_for_all_models_together(models, monkeypatch):
    images = load_images(models.images)
    test = images.splits["test"]
    # On these test images whoever has learned nothing is better.
    wrong = ImageSplit(test.images_NCHW, (test.labels_N + 1) % images.classes)
    spoilt = dataclasses.replace(images, splits={**images.splits, "test": wrong})
    monkeypatch.setattr(finetuning, "load_images", lambda config: spoilt)
    scores = finetune_models(models, CONFIG, 0, SERIAL)
    assert {score.learning_rate for score in scores if score.epochs == 3} == {0.01}
    still = finetune_models(models, CONFIG.model_copy(update={"learning_rates": (1e-6,)}), 0, SERIAL)
    mean = [sum(s.accuracy for s in group if s.epochs == 3) for group in (scores, still)]
    assert mean[0] < mean[1]  # else this test could not tell validation from test images


def test_a_grid_changes_nothing_but_the_choice(models):
    both = finetune_models(models, CONFIG, 0, SERIAL)
    alone = {
        rate: finetune_models(models, CONFIG.model_copy(update={"learning_rates": (rate,)}), 0, SERIAL)
        for rate in CONFIG.learning_rates
    }
    assert both == [alone[score.learning_rate][place] for place, score in enumerate(both)]


def test_training_images_are_seen_once_an_epoch_and_no_others(models, monkeypatch):
    images = load_images(models.images)
    seen = []
    original = torch.nn.functional.cross_entropy

    def spy(logits, labels, **options):
        if torch.is_grad_enabled():
            seen.append(len(labels))
        return original(logits, labels, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", spy)
    one = models.cut(0, 1)
    config = EvaluationConfig(finetune_epochs=(0, 1), learning_rates=(0.001,), batch_size=16)
    finetune_models(one, config, 0, SERIAL)
    assert sum(seen) == len(images.splits["train"].labels_N)
    seen.clear()
    finetune_models(one, config.model_copy(update={"images_per_class": 3}), 0, SERIAL)
    assert sum(seen) == 3 * images.classes


def test_few_labelled_images_are_of_every_class_and_drawn_by_the_seed(models):
    split = load_images(models.images).splits["train"]
    few = draw_labelled(split, 5, 0)
    assert few.labels_N.bincount().tolist() == [5, 5, 5, 5]
    for image, label in zip(few.images_NCHW, few.labels_N, strict=True):
        same = (split.images_NCHW == image).flatten(1).all(dim=1)
        assert split.labels_N[same].tolist() == [int(label)]
    assert torch.equal(few.images_NCHW, draw_labelled(split, 5, 0).images_NCHW)
    assert not torch.equal(few.images_NCHW, draw_labelled(split, 5, 1).images_NCHW)
    assert draw_labelled(split, None, 0) is split


def test_models_as_one_program_learn_what_they_do_one_by_one(models):
    images = load_images(models.images)
    seen = draw_labelled(images.splits["train"], 10, 0)
    job = finetuning._Job(models, 0, CONFIG.learning_rates, CONFIG, 0, "cpu")
    order = {"key": lambda trial: (trial.score.model, trial.score.learning_rate, trial.score.epochs)}
    looping = sorted(finetuning._finetune_looping(job, images, seen), **order)
    batched = sorted(finetuning._finetune_batched(job, images, seen), **order)
    assert len(looping) == 2 * 2 * 2
    for one, other in zip(looping, batched, strict=True):
        assert (one.score.model, one.score.learning_rate, one.score.epochs) == (
            other.score.model,
            other.score.learning_rate,
            other.score.epochs,
        )
        assert one.score.loss == pytest.approx(other.score.loss, rel=1e-3)
        assert one.validation_accuracy == pytest.approx(other.validation_accuracy, abs=0.05)
