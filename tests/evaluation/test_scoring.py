import pytest
import torch

from mzsane.config import EvaluationConfig, ExecutionConfig, NetworkConfig
from mzsane.evaluation.scoring import ModelSet, finetune_models, score_models
from mzsane.tokens.layout import TokenLayout
from mzsane.zoo.architectures import build_network, initialise_network
from mzsane.zoo.conditioning import condition_statistics
from mzsane.zoo.fit import measure
from mzsane.zoo.images import load_images

SERIAL = ExecutionConfig(processes=1)
CONFIG = EvaluationConfig(finetune_epochs=(0, 1, 2), learning_rate=0.003, batch_size=32)


@pytest.fixture
def models(tiny_zoo_config, tiny_table):
    return ModelSet(tiny_zoo_config.network, tiny_zoo_config.images, tiny_table.layout, tiny_table.load())


def test_scores_reproduce_the_accuracy_the_zoo_was_measured_with(models, tiny_table):
    for split in ("train", "val", "test"):
        scores = score_models(models, split, SERIAL)
        assert [score.model for score in scores] == list(range(len(tiny_table.index)))
        assert [score.accuracy for score in scores] == tiny_table.index[f"{split}_accuracy"].to_list()
        torch.testing.assert_close(
            torch.tensor([score.loss for score in scores]),
            torch.tensor(tiny_table.index[f"{split}_loss"].to_list()),
            rtol=1e-4,
            atol=1e-5,
        )


def test_processes_change_nothing(models):
    assert score_models(models, "test", ExecutionConfig(processes=2)) == score_models(models, "test", SERIAL)
    some = ModelSet(models.network, models.images, models.layout, models.flat_NP[:3])
    parallel = finetune_models(some, CONFIG, 0, ExecutionConfig(processes=2))
    assert parallel == finetune_models(some, CONFIG, 0, SERIAL)


def test_finetuning_scores_every_asked_epoch_and_learns(models):
    some = ModelSet(models.network, models.images, models.layout, models.flat_NP[:2])
    config = EvaluationConfig(finetune_epochs=(0, 2, 12), learning_rate=0.01, batch_size=8)
    scores = finetune_models(some, config, 0, SERIAL)
    assert [(score.model, score.epochs) for score in scores] == [(m, e) for m in (0, 1) for e in (0, 2, 12)]
    assert all(last.loss < first.loss for first, last in zip(scores[::3], scores[2::3], strict=True))


def test_finetuning_never_trains_on_validation_or_test_images(models, monkeypatch):
    images = load_images(models.images)
    seen = []
    original = torch.nn.functional.cross_entropy

    def spy(logits, labels, **options):
        if torch.is_grad_enabled():
            seen.append(len(labels))
        return original(logits, labels, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", spy)
    one = ModelSet(models.network, models.images, models.layout, models.flat_NP[:1])
    finetune_models(one, EvaluationConfig(finetune_epochs=(0, 1), batch_size=16), 0, SERIAL)
    assert sum(seen) == len(images.splits["train"].labels_N)


def test_models_that_are_not_numbers_score_with_infinite_loss(models):
    broken = ModelSet(models.network, models.images, models.layout, models.flat_NP[:2] * float("nan"))
    assert all(score.loss == float("inf") for score in score_models(broken, "test", SERIAL))


def test_running_statistics_are_those_that_the_layout_says(tiny_zoo_config):
    config = NetworkConfig(architecture="resnet18", width=4)
    images = load_images(tiny_zoo_config.images)
    network = build_network(config, images.channels, images.classes, images.size)
    initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(0))
    condition_statistics(network, images.splits["train"].images_NCHW)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean += 0.3
    losses = {}
    for statistics in ("in", "out", "conditioned"):
        layout = TokenLayout.from_network(network, 51, statistics)
        flat_1P = layout.flatten(network.state_dict())[None]
        (score,) = score_models(ModelSet(config, tiny_zoo_config.images, layout, flat_1P), "test", SERIAL)
        losses[statistics] = score.loss
    assert losses["in"] == pytest.approx(measure(network.eval(), images.splits["test"])[0], rel=1e-5)
    condition_statistics(network, images.splits["train"].images_NCHW)
    assert losses["conditioned"] == pytest.approx(measure(network, images.splits["test"])[0], rel=1e-5)
    assert len({round(loss, 4) for loss in losses.values()}) == 3
