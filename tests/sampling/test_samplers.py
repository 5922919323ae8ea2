"""What each sampler takes from the anchors, and what it draws anew."""

import pytest
import torch

from mzsane.errors import ConfigError
from mzsane.randomness import make_generator
from mzsane.sampling.samplers import SAMPLERS, flow
from mzsane.sampling.samplers.protocol import Anchors

LAYERS = torch.tensor([0, 0, 0, 1, 1, 2, 2])
KERNELS = ("joint", "shared", "token", "individual")


@pytest.fixture
def anchors():
    latents = torch.randn(5, 7, 3, generator=make_generator(0)) * torch.tensor([0.1, 1.0, 10.0])
    return Anchors(latents, LAYERS)


@pytest.fixture(autouse=True)
def _short_training(monkeypatch):
    monkeypatch.setattr(flow, "_TRAINING_STEPS", 5)


def draw(sampler, anchors, bandwidth, count, seed):
    return SAMPLERS[sampler](anchors, bandwidth, count, make_generator(seed))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_same_seed_gives_the_same_samples_and_each_call_others(anchors, sampler):
    first, again, other = (draw(sampler, anchors, 0.5, 20, seed) for seed in (4, 4, 5))
    assert first.latents_STL.shape == (20, 7, 3)
    assert first.used_SA.shape == (20, 5)
    assert torch.equal(first.latents_STL, again.latents_STL)
    assert torch.equal(first.used_SA, again.used_SA)
    assert not torch.equal(first.latents_STL, other.latents_STL)
    generator = make_generator(4)
    calls = [SAMPLERS[sampler](anchors, 0.5, 20, generator).latents_STL for _ in range(2)]
    assert not torch.equal(*calls)


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"token", "individual", "gaussian"}))
def test_without_bandwidth_samples_are_anchors(anchors, sampler):
    latents = draw(sampler, anchors, 0.0, 40, 1).latents_STL
    near = torch.cdist(latents.flatten(1), anchors.latents_ATL.flatten(1))
    torch.testing.assert_close(latents, anchors.latents_ATL[near.argmin(dim=1)])
    assert set(near.argmin(dim=1).tolist()) == set(range(5))


@pytest.mark.parametrize(("sampler", "whole"), [("joint", (2, 3)), ("shared", (2, 3)), ("token", (3,))])
def test_an_anchor_is_shared_by_what_the_sampler_says(anchors, sampler, whole):
    drawn = draw(sampler, anchors, 0.0, 200, 1)
    equal_SATL = drawn.latents_STL[:, None] == anchors.latents_ATL[None]
    assert equal_SATL.all(dim=whole).any(dim=1).all()
    assert torch.equal(equal_SATL.any(dim=3).any(dim=2), drawn.used_SA)
    if sampler == "token":
        assert not equal_SATL.all(dim=(2, 3)).any()


def test_individual_mixes_the_numbers_of_a_token(anchors):
    drawn = draw("individual", anchors, 0.0, 200, 1)
    equal_SATL = drawn.latents_STL[:, None] == anchors.latents_ATL[None]
    assert equal_SATL.any(dim=1).all()
    tokens = equal_SATL.all(dim=3).any(dim=1).double().mean()
    assert 0.01 < float(tokens) < 0.1  # three numbers of one of five anchors by chance: 1/25


@pytest.mark.parametrize("sampler", KERNELS)
def test_noise_has_the_bandwidth_in_deviations_of_each_latent(anchors, sampler):
    """Seen from one anchor, so that the choice of anchors adds nothing."""
    deviation = anchors.latents_ATL.std(dim=0, correction=0)
    with_noise = draw(sampler, anchors, 0.3, 4000, 2).latents_STL
    without = draw(sampler, anchors, 0.0, 4000, 2).latents_STL  # the same anchors are chosen
    torch.testing.assert_close((with_noise - without).std(dim=0), 0.3 * deviation, rtol=0.08, atol=0)


@pytest.mark.parametrize(
    ("sampler", "expected"), [("joint", 0.0), ("token", 0.0), ("individual", 0.0), ("shared", 1.0)]
)
def test_noise_is_fresh_for_every_token_but_under_shared(anchors, sampler, expected):
    noise = draw(sampler, anchors, 0.3, 2000, 3).latents_STL - draw(sampler, anchors, 0.0, 2000, 3).latents_STL
    noise = noise / anchors.latents_ATL.std(dim=0, correction=0)
    for latent in range(3):
        correlation = torch.corrcoef(noise[:, :, latent].T)
        away = correlation[~torch.eye(7, dtype=torch.bool)]
        torch.testing.assert_close(away, torch.full_like(away, expected), atol=0.1, rtol=0)
    within = torch.corrcoef(noise[:, 0].T)
    assert (within - torch.eye(3)).abs().max() < 0.1


def test_gaussian_has_the_statistics_of_each_layer_and_no_anchor(anchors):
    drawn = draw("gaussian", anchors, 1.0, 4000, 1)
    assert not drawn.used_SA.any()
    for layer in range(3):
        of_layer = anchors.latents_ATL[:, layer == LAYERS].flatten(0, 1)
        found = drawn.latents_STL[:, layer == LAYERS].flatten(0, 1)
        deviation = of_layer.std(dim=0, correction=0)
        assert ((found.mean(dim=0) - of_layer.mean(dim=0)).abs() < 0.1 * deviation).all()
        torch.testing.assert_close(found.std(dim=0), deviation, rtol=0.1, atol=0)


def test_interpolation_stays_on_lines_between_two_anchors(anchors):
    drawn = draw("interpolation", anchors, 1.0, 300, 1)
    assert (drawn.used_SA.sum(dim=1) == 2).all()
    shares = []
    for latents, used in zip(drawn.latents_STL, drawn.used_SA, strict=True):
        first, second = anchors.latents_ATL[used]
        way = second - first
        share = float(((latents - first) * way).sum() / way.square().sum())
        torch.testing.assert_close(latents, first + share * way, atol=1e-4, rtol=1e-4)
        shares.append(share)
    assert min(shares) >= -1e-5
    assert max(shares) <= 1 + 1e-5
    assert max(shares) - min(shares) > 0.9


def test_neighbourhood_stays_in_what_the_anchors_span(anchors):
    drawn = draw("neighbourhood", anchors, 0.5, 100, 1)
    flat_AX = anchors.latents_ATL.flatten(1)
    spanned = flat_AX[1:] - flat_AX[0]
    steps = drawn.latents_STL.flatten(1) - flat_AX[0]
    solution = torch.linalg.lstsq(spanned.T.double(), steps.T.double()).solution
    torch.testing.assert_close(spanned.T.double() @ solution, steps.T.double(), atol=1e-4, rtol=1e-4)
    assert torch.linalg.matrix_rank(steps, rtol=1e-4) == 4


@pytest.mark.parametrize("sampler", ["interpolation", "neighbourhood"])
def test_what_needs_two_anchors_says_so(anchors, sampler):
    one = Anchors(anchors.latents_ATL[:1], LAYERS)
    with pytest.raises(ConfigError, match=f"{sampler} needs at least 2 anchors, not 1"):
        draw(sampler, one, 0.5, 3, 1)


def test_flow_from_noise_has_no_anchor_and_finds_the_latents(monkeypatch):
    """Latents of two kinds, far apart: what a Gaussian of their mean and deviation would miss."""
    monkeypatch.setattr(flow, "_TRAINING_STEPS", 200)
    kinds = torch.tensor([-1.0, 1.0]).repeat(8)[:, None, None] + 0.1 * torch.randn(
        16, 2, 3, generator=make_generator(1)
    )
    drawn = draw("flow", Anchors(kinds, torch.tensor([0, 1])), 1.0, 100, 1)
    assert not drawn.used_SA.any()
    assert draw("flow", Anchors(kinds, torch.tensor([0, 1])), 0.5, 4, 1).used_SA.sum(dim=1).tolist() == [1] * 4
    near = (drawn.latents_STL.abs() - 1).abs() < 0.4
    assert float(near.double().mean()) > 0.8
    assert 0.2 < float((drawn.latents_STL > 0).double().mean()) < 0.8


def test_flow_learns_once_from_the_same_anchors(anchors, monkeypatch):
    learned = []
    train = flow._train_field
    monkeypatch.setattr(flow, "_train_field", lambda *given: learned.append(given) or train(*given))
    first = draw("flow", anchors, 0.5, 4, 1)
    draw("flow", anchors, 0.7, 4, 2)
    assert len(learned) == 1
    same = Anchors(anchors.latents_ATL.clone(), LAYERS)
    assert torch.equal(draw("flow", same, 0.5, 4, 1).latents_STL, first.latents_STL)
    assert len(learned) == 2


def test_flow_survives_latents_that_do_not_vary(anchors):
    latents = anchors.latents_ATL.clone()
    latents[:, :, 0] = 2.0
    drawn = draw("flow", Anchors(latents, LAYERS), 1.0, 3, 1)
    assert drawn.latents_STL.isfinite().all()
    assert (drawn.latents_STL[:, :, 0] - 2).abs().max() < 1e-3
