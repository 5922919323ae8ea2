"""The training loop against a plain one, and measuring in evaluation mode."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from mzsane.config import NetworkConfig, RecipeConfig
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.train_loop import fit_epochs, measure, one_cycle, thin_split
from mzsane.problems.images.dataset import ImageSplit


def make_split(images=22, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ImageSplit(torch.randn(images, 1, 28, 28, generator=generator), torch.arange(images) % 4)


def make_network(seed=0):
    network = build_network(NetworkConfig(), 1, 4)
    initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(seed))
    return network


def train_plainly(network, split, learning_rate, batch_size, seed, weight_decay, epochs):
    """Adam written out, epoch by epoch."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(network.parameters())
    first, second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(split.labels_N), generator=generator)
        for start in range(0, len(order), batch_size):
            step += 1
            batch = order[start : start + batch_size]
            loss = functional.cross_entropy(network(split.images_NCHW[batch]), split.labels_N[batch])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for i, (p, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                    gradient = gradient + weight_decay * p
                    first[i] = 0.9 * first[i] + 0.1 * gradient
                    second[i] = 0.999 * second[i] + 0.001 * gradient**2
                    scale = (second[i] / (1 - 0.999**step)).sqrt() + 1e-8
                    p -= learning_rate * first[i] / (1 - 0.9**step) / scale
    return network


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_a_plain_loop_with_the_last_smaller_batch(weight_decay):
    split = make_split()
    start = make_network()
    ours = copy.deepcopy(start)
    recipe = RecipeConfig(learning_rate=1e-3, batch_size=8, weight_decay=weight_decay)
    training = fit_epochs(ours, split, recipe, torch.Generator().manual_seed(4))
    for _ in range(2):
        next(training)
    plain = train_plainly(start, split, 1e-3, 8, 4, weight_decay, epochs=2)
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, msg=name)


def test_trains_only_when_asked_and_goes_on():
    network, split = make_network(), make_split()
    before = copy.deepcopy(network.state_dict())
    training = fit_epochs(
        network, split, RecipeConfig(learning_rate=1e-2, batch_size=8), torch.Generator().manual_seed(0)
    )
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    losses = []
    for _ in range(30):
        next(training)
        losses.append(measure(network, split)[0])
    assert losses[-1] < 0.2 * losses[0]


def test_measure_is_the_mean_over_all_images():
    network, split = make_network(), make_split(images=1100)  # more than two measuring batches, the last one smaller
    loss, accuracy = measure(network, split)
    with torch.no_grad():
        logits = network(split.images_NCHW)
    assert loss == pytest.approx(functional.cross_entropy(logits, split.labels_N).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(dim=1) == split.labels_N).float().mean().item())


def test_measure_is_in_evaluation_mode_and_training_in_training_mode():
    split = make_split(images=200)
    modes = []

    class Watched(nn.Sequential):
        def forward(self, x):
            modes.append(self.training)
            return super().forward(x)

    network = Watched(nn.Flatten(), nn.Linear(784, 4), nn.Dropout(0.9))
    assert measure(network, split) == measure(network, split)
    next(fit_epochs(network, split, RecipeConfig(batch_size=100), torch.Generator()))
    measure(network, split)
    assert modes == [False, False, True, True, False]


def test_a_loss_that_is_no_number_is_infinite():
    network, split = make_network(), make_split()
    with torch.no_grad():
        next(iter(network.parameters())).fill_(math.nan)
    loss, accuracy = measure(network, split)
    assert loss == math.inf
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_optimizers_and_schedules_are_torchs(optimizer, schedule):
    split, start = make_split(), make_network()
    ours, theirs = copy.deepcopy(start), copy.deepcopy(start)
    recipe = RecipeConfig(optimizer=optimizer, schedule=schedule, learning_rate=3e-3, weight_decay=0.01, batch_size=8)
    training = fit_epochs(ours, split, recipe, torch.Generator().manual_seed(1), epochs=2)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
    if optimizer == "sgd":
        reference = torch.optim.SGD(theirs.parameters(), lr=3e-3, momentum=0.9, weight_decay=0.01)
    else:
        reference = kinds[optimizer](theirs.parameters(), lr=3e-3, weight_decay=0.01)
    generator, step = torch.Generator().manual_seed(1), 0
    for _ in range(2):
        next(training)
        for batch in torch.randperm(22, generator=generator).split(8):
            if schedule == "one-cycle":
                reference.param_groups[0]["lr"] = 3e-3 * one_cycle(step, 6)
            reference.zero_grad()
            functional.cross_entropy(theirs(split.images_NCHW[batch]), split.labels_N[batch]).backward()
            reference.step()
            step += 1
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-3)


def test_one_cycle_rises_to_the_peak_and_falls():
    rates = [one_cycle(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == rates[30] == pytest.approx(1.0)
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[-1] < 0.05


def test_dropout_follows_the_generator_and_leaves_the_global_state_alone():
    split = make_split()

    def train(seed):
        network = build_network(NetworkConfig(dropout=0.5), 1, 4)
        initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(0))
        next(fit_epochs(network, split, RecipeConfig(batch_size=8), torch.Generator().manual_seed(seed)))
        return next(network.parameters()).detach().clone()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train(1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(first, train(1))
    assert not torch.equal(first, train(2))


class TestThinSplit:
    def test_whole_split_is_not_copied(self):
        split = make_split()
        assert thin_split(split, RecipeConfig(), 4, torch.Generator()).images_NCHW is split.images_NCHW

    def test_label_noise_gives_wrong_labels_to_that_share(self):
        split = make_split(images=200)
        noisy = thin_split(split, RecipeConfig(label_noise=0.3), 4, torch.Generator().manual_seed(0))
        assert int((noisy.labels_N != split.labels_N).sum()) == 60
        assert set(noisy.labels_N.tolist()) == {0, 1, 2, 3}
        assert torch.equal(split.labels_N, torch.arange(200) % 4)

    def test_fraction_of_the_images(self):
        split = make_split(images=200)
        thin = thin_split(split, RecipeConfig(data_fraction=0.25), 4, torch.Generator().manual_seed(0))
        assert len(thin.labels_N) == len(thin.images_NCHW) == 50
        places = [int((split.images_NCHW == image).all(dim=(1, 2, 3)).nonzero()) for image in thin.images_NCHW]
        assert len(set(places)) == 50
        assert thin.labels_N.tolist() == [place % 4 for place in places]
