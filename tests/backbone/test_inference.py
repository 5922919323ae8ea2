"""Whole models through a backbone in windows with a halo: any length, and what the windows must not change."""

import pytest
import torch
from torch import nn

from mzsane.backbone.autoencoder import build_autoencoder, cap_latents
from mzsane.backbone.inference import count_latents, decode_models, encode_models
from mzsane.layout.token_layout import TokenLayout
from mzsane.randomness import make_generator

TOKEN_DIM = 6


def make_layout(length):
    """A layout of so many tokens: a row each."""
    return TokenLayout.from_network(nn.Linear(TOKEN_DIM - 1, length), TOKEN_DIM)


@pytest.fixture(scope="module")
def model(tiny_backbone_config):
    model = build_autoencoder(tiny_backbone_config, TOKEN_DIM, make_generator(0)).eval()
    for name, parameter in model.named_parameters():  # so that attention and positions count
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.5, generator=make_generator(1, name))
    return model


@torch.no_grad()
def run_whole(model, layout, flat_BP):
    positions = layout.positions_T3.expand(len(flat_BP), -1, -1)
    latents = cap_latents(model.encode(layout.tokenize(flat_BP), positions), layout.mask_TD.sum(dim=1))
    return latents, layout.detokenize(model.decode(latents, positions))


def test_any_length_goes_through_any_window(model):
    for length in (1, 2, 3, 5, 8, 16, 17, 25):
        layout = make_layout(length)
        flat = torch.randn(2, layout.weights, generator=make_generator(length))
        whole, decoded = run_whole(model, layout, flat)
        for window in (1, 2, 3, 4, 7, 16, 24, 25):
            latents = encode_models(model, layout, flat, window)
            again = decode_models(model, layout, whole, window)
            assert latents.shape == whole.shape
            assert again.shape == flat.shape
            same = [torch.allclose(*pair, atol=1e-5) for pair in ((latents, whole), (again, decoded))]
            # Attention sees all of a window: only one that covers the sequence gives what the whole gives.
            assert same == [window >= length] * 2, (length, window)


def test_windows_change_nothing_where_the_halo_covers_what_a_token_sees(model, tiny_backbone_config):
    """Without attention a token sees itself and its position: every window has that."""
    alone = build_autoencoder(tiny_backbone_config, TOKEN_DIM, make_generator(0)).eval()
    alone.load_state_dict(model.state_dict())
    for block in (*alone.encoder, *alone.decoder):
        block.out.weight.data.zero_()
    for length in (1, 5, 23):
        layout = make_layout(length)
        flat = torch.randn(2, layout.weights, generator=make_generator(length))
        whole, decoded = run_whole(alone, layout, flat)
        for window in range(1, 25):
            torch.testing.assert_close(encode_models(alone, layout, flat, window), whole, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(decode_models(alone, layout, whole, window), decoded, atol=1e-5, rtol=1e-4)


def test_tokens_have_no_more_latents_than_weights(model, tiny_backbone_config):
    """Rows of 8 weights are a full token of 6 and one of 2; latents beyond these say nothing to the decoder."""
    layout, width = TokenLayout.from_network(nn.Linear(7, 3), TOKEN_DIM), tiny_backbone_config.latent_dim
    flat = torch.randn(2, layout.weights, generator=make_generator(0))
    latents = encode_models(model, layout, flat, 24)
    weights_T = layout.mask_TD.sum(dim=1)
    assert sorted(set(weights_T.tolist())) == [2, 6]
    assert torch.equal((latents != 0).sum(dim=2), weights_T.expand(2, -1))
    beyond = latents + 5.0 * (torch.arange(width) >= weights_T[:, None])
    assert torch.equal(decode_models(model, layout, beyond, 24), decode_models(model, layout, latents, 24))
    assert [count_latents(layout, width) for width in (1, 2, 4, 6, 8)] == [6, 12, 18, 24, 24]
