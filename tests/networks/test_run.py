"""Scoring as the zoo was measured, with either engine and any number of processes."""

import pytest
import torch
from torch.nn import functional

from mzsane.config import EvaluationConfig, ExecutionConfig, NetworkConfig
from mzsane.evaluation.finetuning import finetune_models
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.conditioning import condition_statistics
from mzsane.networks.run import (
    ModelSet,
    load_model,
    prepare_network,
    run_batched,
    run_one,
    score_models,
    stack_models,
)
from mzsane.networks.train_loop import measure
from mzsane.problems.images.dataset import load_images

SERIAL = ExecutionConfig(processes=1)
CONFIG = EvaluationConfig(finetune_epochs=(0, 1, 2), learning_rates=(0.001, 0.003), batch_size=32)


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
    many = ModelSet(models.network, models.images, models.layout, models.flat_NP.repeat(3, 1))  # several chunks
    parallel = score_models(many, "test", ExecutionConfig(processes=2), ensembles=(2,))
    assert parallel == score_models(many, "test", SERIAL, ensembles=(2,))
    assert len(parallel) == len(many.flat_NP) * 3 // 2
    some = ModelSet(models.network, models.images, models.layout, models.flat_NP[:3])
    parallel = finetune_models(some, CONFIG, 0, ExecutionConfig(processes=2))
    assert parallel == finetune_models(some, CONFIG, 0, SERIAL)


def test_models_that_are_not_numbers_score_with_infinite_loss(models):
    broken = ModelSet(models.network, models.images, models.layout, models.flat_NP[:2] * float("nan"))
    assert all(score.loss == float("inf") for score in score_models(broken, "test", SERIAL))


@pytest.mark.parametrize(
    "network", [NetworkConfig(dropout=0.5), NetworkConfig(architecture="resnet18", width=4)], ids=["dropout", "norms"]
)
def test_models_as_one_program_predict_what_they_do_one_by_one(network, tiny_zoo_config):
    images = load_images(tiny_zoo_config.images)
    states = []
    for seed in range(3):
        model = build_network(network, images.channels, images.classes, images.size)
        initialise_network(model, "kaiming_uniform", torch.Generator().manual_seed(seed))
        states.append(model.state_dict())
    layout = TokenLayout.from_network(model, 51)
    flat_NP = torch.stack([layout.flatten(state) for state in states])
    models = ModelSet(network, tiny_zoo_config.images, layout, flat_NP)
    shown = images.splits["test"].images_NCHW
    together = run_batched(stack_models(models, images, torch.device("cpu")), shown)
    reused = prepare_network(models, images)
    for flat_P, found in zip(flat_NP, together, strict=True):
        load_model(models, flat_P, reused, images)
        torch.testing.assert_close(found, run_one(reused, shown), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.01)


def test_ensembles_are_of_models_in_a_row(models):
    scores = score_models(models, "test", SERIAL, ensembles=(2, 5, 100))
    count = len(models.flat_NP)
    assert [(score.ensemble, score.model) for score in scores] == [
        (size, number) for size in (1, 2, 5) for number in range(count // size)
    ]
    images = load_images(models.images)
    split, network = images.splits["test"], prepare_network(models, images)
    probabilities = []
    for flat_P in models.flat_NP[2:4]:
        load_model(models, flat_P, network, images)
        probabilities.append(run_one(network, split.images_NCHW).softmax(dim=1))
    mean = torch.stack(probabilities).mean(dim=0)
    second = next(score for score in scores if (score.ensemble, score.model) == (2, 1))
    assert second.accuracy == float((mean.argmax(dim=1) == split.labels_N).double().mean())
    assert second.loss == pytest.approx(float(functional.nll_loss(mean.log(), split.labels_N)), rel=1e-4)


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
