"""Refined latents: nearer to their models in what the loss measures, each model for itself."""

import pytest
import torch

from mzsane.backbone import refinement
from mzsane.backbone.autoencoder import build_autoencoder
from mzsane.backbone.inference import decode_models, encode_models
from mzsane.backbone.refinement import descend, refine_latents
from mzsane.config import NetworkConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.behaviour import NetworkBehaviour, compare_outputs
from mzsane.networks.build import build_network, initialise_network
from mzsane.problems.images.noise import draw_noise_images
from mzsane.randomness import make_generator

MODELS, TOKEN_DIM = 3, 16
NETWORK = build_network(NetworkConfig(architecture="mlp", width=4), 1, 3, 8)
LAYOUT = TokenLayout.from_network(NETWORK, TOKEN_DIM)


@pytest.fixture(scope="module")
def config(tiny_backbone_config):
    changes = {"latent_dim": 16, "shortcut": True, "behaviour": 1.0, "behaviour_images": 40}
    return tiny_backbone_config.model_copy(update=changes)


@pytest.fixture(scope="module")
def model(config):
    """A backbone that was never trained, with weights that are large enough to say something."""
    model = build_autoencoder(config, TOKEN_DIM, make_generator(0)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, 0.2, generator=make_generator(1, name))
    return model


@pytest.fixture(scope="module")
def flat_BP():
    models = []
    for number in range(MODELS):
        initialise_network(NETWORK, "kaiming_uniform", make_generator(number))
        models.append(2 * LAYOUT.flatten(NETWORK.state_dict()))
    return torch.stack(models)


@pytest.fixture
def behaviour(config):
    """The networks, and images of which a step sees some."""
    images_NCHW = torch.randn(100, 1, 8, 8, generator=make_generator(5))
    return NetworkBehaviour(NETWORK, LAYOUT, images_NCHW, config.behaviour_images, "logits")


def measure_weights(decoded_BP, flat_BP):
    return (decoded_BP - flat_BP).square().mean(dim=1)


def test_refined_latents_decode_to_nearer_weights(model, config, flat_BP):
    start_BTL = encode_models(model, LAYOUT, flat_BP, config.window)
    refined_BTL = refine_latents(model, config, LAYOUT, flat_BP, start_BTL, rate=0.1)
    before, after = (decode_models(model, LAYOUT, latents, config.window) for latents in (start_BTL, refined_BTL))
    assert (measure_weights(after, flat_BP) < 0.8 * measure_weights(before, flat_BP)).all()


def test_with_behaviour_they_do_what_their_models_do_on_images_never_seen(model, config, flat_BP, behaviour):
    start_BTL = encode_models(model, LAYOUT, flat_BP, config.window)
    unseen_SCHR = torch.randn(200, 1, 8, 8, generator=make_generator(6))
    outputs_BSK = behaviour.run_models(flat_BP, unseen_SCHR)
    losses = []
    for refined_BTL in (
        start_BTL,
        refine_latents(model, config, LAYOUT, flat_BP, start_BTL, rate=0.1),
        refine_latents(model, config, LAYOUT, flat_BP, start_BTL, behaviour, rate=0.1),
    ):
        decoded_BP = decode_models(model, LAYOUT, refined_BTL, config.window)
        losses.append(compare_outputs(outputs_BSK, behaviour.run_models(decoded_BP, unseen_SCHR), "logits"))
    assert (losses[2] < 0.7 * losses[0]).all()
    assert (losses[2] < losses[1]).all()


def test_on_noise_models_do_more_of_what_they_did_and_no_image_of_the_zoo_is_seen(model, config, flat_BP, behaviour):
    behaviour._images_NCHR.fill_(float("nan"))
    seen_NCHR, unseen_SCHR = (draw_noise_images(100, behaviour.image_shape, make_generator(seed)) for seed in (0, 1))
    start_BTL = encode_models(model, LAYOUT, flat_BP, config.window)
    refined_BTL = refine_latents(model, config, LAYOUT, flat_BP, start_BTL, behaviour.look_at(seen_NCHR), rate=0.1)
    outputs_BSK = behaviour.run_models(flat_BP, unseen_SCHR)
    before_B, after_B = (
        compare_outputs(
            outputs_BSK,
            behaviour.run_models(decode_models(model, LAYOUT, latents, config.window), unseen_SCHR),
            "logits",
        )
        for latents in (start_BTL, refined_BTL)
    )
    assert (after_B < 0.9 * before_B).all()


@pytest.mark.parametrize("normalisation", ["token", "batch"])
def test_a_model_gets_the_same_latents_alone(model, config, flat_BP, behaviour, normalisation, monkeypatch):
    config = config.model_copy(update={"normalisation": normalisation})
    start_BTL = encode_models(model, LAYOUT, flat_BP, config.window)

    def refine(some):
        return refine_latents(model, config, LAYOUT, flat_BP[some], start_BTL[some], behaviour, steps=5, seed=3)

    together = refine(slice(None))
    alone = torch.cat([refine(slice(number, number + 1)) for number in range(MODELS)])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-3)
    monkeypatch.setattr(refinement, "_CHUNK", 2)
    torch.testing.assert_close(refine(slice(None)), together, atol=1e-4, rtol=1e-3)


def test_no_step_changes_nothing_and_a_broken_model_breaks_no_other(model, config, flat_BP):
    start_BTL = encode_models(model, LAYOUT, flat_BP, config.window)
    assert torch.equal(refine_latents(model, config, LAYOUT, flat_BP, start_BTL, steps=0), start_BTL)
    broken_BP = flat_BP.clone()
    broken_BP[1, 7] = float("nan")
    refined_BTL = refine_latents(model, config, LAYOUT, broken_BP, start_BTL, steps=3)
    expected_BTL = refine_latents(model, config, LAYOUT, flat_BP, start_BTL, steps=3)
    assert torch.equal(refined_BTL[1], start_BTL[1])
    assert torch.equal(refined_BTL[[0, 2]], expected_BTL[[0, 2]])


def test_descent_finds_the_minimum_and_leaves_what_has_no_scale():
    goal_BX = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    scale_BX = torch.tensor([1.0, 0.0])
    moved_BX = descend(torch.zeros(2, 2), scale_BX, 400, 0.1, lambda x_BX: (x_BX - goal_BX).square().sum(dim=1))
    torch.testing.assert_close(moved_BX[:, 0], goal_BX[:, 0], atol=1e-2, rtol=0)
    assert torch.equal(moved_BX[:, 1], torch.zeros(2))
