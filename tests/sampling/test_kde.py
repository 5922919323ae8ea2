import pytest
import torch

from mzsane.randomness import make_generator
from mzsane.sampling.kde import sample_joint


@pytest.fixture
def anchors():
    return torch.randn(5, 7, 3, generator=make_generator(0)) * torch.tensor([0.1, 1.0, 10.0])


def test_without_bandwidth_samples_are_anchors(anchors):
    latents, chosen = sample_joint(anchors, 0.0, 40, make_generator(1))
    assert torch.equal(latents, anchors[chosen])
    assert set(chosen.tolist()) == set(range(5))


def test_noise_has_the_bandwidth_in_deviations_of_each_latent(anchors):
    latents, chosen = sample_joint(anchors, 0.3, 4000, make_generator(2))
    noise = (latents - anchors[chosen]).std(dim=0)
    torch.testing.assert_close(noise, 0.3 * anchors.std(dim=0, correction=0), rtol=0.08, atol=0)


def test_noise_is_fresh_for_every_token_and_every_call(anchors):
    generator = make_generator(3)
    first, chosen = sample_joint(anchors, 0.3, 2000, generator)
    second, _ = sample_joint(anchors, 0.3, 2000, generator)
    assert not torch.equal(first, second)
    noise = (first - anchors[chosen]) / anchors.std(dim=0, correction=0)
    correlation = torch.corrcoef(noise.flatten(1).T)
    assert (correlation - torch.eye(21)).abs().max() < 0.1


def test_same_seed_gives_the_same_samples(anchors):
    first, _ = sample_joint(anchors, 0.3, 20, make_generator(4))
    again, _ = sample_joint(anchors, 0.3, 20, make_generator(4))
    other, _ = sample_joint(anchors, 0.3, 20, make_generator(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
