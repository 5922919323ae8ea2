"""Tokens are a view: every weight has one place, and comes back from it bit for bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mzsane.config import NetworkConfig
from mzsane.errors import ConfigError
from mzsane.tokens.layout import TokenLayout
from mzsane.zoo.architectures import build_network, initialise_network

BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float64: torch.int64}


@pytest.fixture(scope="module")
def cnn_s():
    network = build_network(NetworkConfig(), 1, 10)
    initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(0))
    return TokenLayout.from_state_dict(network.state_dict(), 51), dict(network.state_dict())


def tokenize_plainly(parameters, token_dim):
    """Return (token as a list without its padding, layer, row) for each token of weights with their biases."""
    tokens, layer = [], -1
    for name, weight in parameters.items():
        if not name.endswith("weight"):
            continue
        layer += 1
        bias = parameters.get(name.removesuffix("weight") + "bias")
        for row in range(len(weight)):
            values = weight[row].flatten().tolist() + ([] if bias is None else [bias[row].item()])
            for start in range(0, len(values), token_dim):
                tokens.append((values[start : start + token_dim], layer, row))
    return tokens


@given(data=st.data(), token_dim=st.integers(1, 30))
def test_tokens_are_rows_with_their_bias_cut_and_padded(draw_chain, data, token_dim):
    network, _ = draw_chain(data)
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    layout = TokenLayout.from_state_dict(parameters, token_dim)
    tokens = layout.tokenize(layout.flatten(parameters))
    expected = tokenize_plainly(parameters, token_dim)
    assert len(expected) == layout.length == len(tokens)
    for number, (values, layer, row) in enumerate(expected):
        padding = token_dim - len(values)
        assert tokens[number].tolist() == values + [0.0] * padding
        assert layout.mask_TD[number].tolist() == [True] * len(values) + [False] * padding
        assert layout.positions_T3[number].tolist() == [number, layer, row]
    assert int(layout.mask_TD.sum()) == layout.weights == sum(value.numel() for value in parameters.values())


@given(data=st.data(), token_dim=st.integers(1, 30), dtype=st.sampled_from(list(BITS)), batch=st.integers(0, 3))
def test_detokenize_is_the_exact_inverse(draw_chain, data, token_dim, dtype, batch):
    network, _ = draw_chain(data)
    layout = TokenLayout.from_state_dict(network.state_dict(), token_dim)
    # Any bits at all, NaN and negative zero among them.
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    bits = torch.randint(-(2**15), 2**15, (batch, layout.weights), generator=generator).to(BITS[dtype])
    flat = (bits * (2 ** (8 * bits.itemsize - 16))).view(dtype)
    tokens = layout.tokenize(flat)
    assert tokens.shape == (batch, layout.length, token_dim)
    assert tokens.dtype == dtype
    assert torch.equal(layout.detokenize(tokens).view(BITS[dtype]), flat.view(BITS[dtype]))
    # What stands in the padding does not matter, and tokenizing puts zeros there.
    dirty = torch.where(layout.mask_TD, tokens, torch.tensor(7.0, dtype=dtype))
    assert torch.equal(layout.detokenize(dirty).view(BITS[dtype]), flat.view(BITS[dtype]))
    assert (tokens.view(BITS[dtype])[:, ~layout.mask_TD] == 0).all()


@given(data=st.data(), token_dim=st.integers(1, 30))
def test_scatter_is_the_inverse_of_gather(draw_chain, data, token_dim):
    network, _ = draw_chain(data)
    layout = TokenLayout.from_state_dict(network.state_dict(), token_dim)
    assert torch.equal(layout.gather_TD.flatten()[layout.scatter_P], torch.arange(layout.weights))
    assert sorted(layout.gather_TD[layout.mask_TD].tolist()) == list(range(layout.weights))


@given(data=st.data())
def test_flatten_and_unflatten_are_inverse(draw_chain, data):
    network, _ = draw_chain(data)
    parameters = network.state_dict()
    layout = TokenLayout.from_state_dict(parameters, 7)
    flat = layout.flatten(parameters)
    assert flat.shape == (layout.weights,)
    for name, value in layout.unflatten(flat).items():
        assert torch.equal(value, parameters[name])
    stacked = {name: torch.stack([value, value + 1, value * 2]) for name, value in parameters.items()}
    flat = layout.flatten(stacked)
    assert flat.shape == (3, layout.weights)
    assert list(layout.unflatten(flat)) == list(parameters)
    for name, value in layout.unflatten(flat).items():
        assert torch.equal(value, stacked[name])
        first = layout.offsets[name]
        assert torch.equal(flat[:, first : first + value[0].numel()], stacked[name].flatten(1))


def test_cnn_s_fills_66_tokens_of_51_by_73_percent(cnn_s):
    layout, _ = cnn_s
    assert (layout.weights, layout.length) == (2464, 66)
    assert layout.mask_TD.float().mean().item() == pytest.approx(0.732, abs=5e-4)
    # 8 rows of 26, 6 of 201, 4 of 25, 20 of 37, 10 of 21.
    per_layer = torch.bincount(layout.positions_T3[:, 1]).tolist()
    assert per_layer == [8, 6 * math.ceil(201 / 51), 4, 20, 10]
    assert layout.mask_TD.sum(dim=1).tolist() == [26] * 8 + [51, 51, 51, 48] * 6 + [25] * 4 + [37] * 20 + [21] * 10


def test_norms_lone_biases_and_scalars_have_tokens():
    layout = TokenLayout.from_state_dict(
        {
            "norm.weight": torch.zeros(3),
            "norm.bias": torch.zeros(3),
            "head.bias": torch.zeros(2),
            "scale": torch.zeros(()),
            "in_proj_weight": torch.zeros(2, 4),
            "in_proj_bias": torch.zeros(2),
            "odd.weight": torch.zeros(2, 2),
            "odd.bias": torch.zeros(3),
        },
        4,
    )
    assert layout.gather_TD.tolist() == [
        [0, 3, -1, -1],
        [1, 4, -1, -1],
        [2, 5, -1, -1],
        [6, 7, -1, -1],
        [8, -1, -1, -1],
        [9, 10, 11, 12],
        [17, -1, -1, -1],
        [13, 14, 15, 16],
        [18, -1, -1, -1],
        [19, 20, -1, -1],
        [21, 22, -1, -1],
        [23, 24, 25, -1],
    ]
    assert layout.positions_T3.tolist() == [
        [0, 0, 0],
        [1, 0, 1],
        [2, 0, 2],
        [3, 1, 0],
        [4, 2, 0],
        [5, 3, 0],
        [6, 3, 0],
        [7, 3, 1],
        [8, 3, 1],
        [9, 4, 0],
        [10, 4, 1],
        [11, 5, 0],
    ]


def test_layout_survives_json_and_its_digest_follows_it(cnn_s):
    layout, parameters = cnn_s
    again = TokenLayout.model_validate_json(layout.model_dump_json())
    assert again.digest == layout.digest
    assert torch.equal(again.gather_TD, layout.gather_TD)
    others = [
        TokenLayout.from_state_dict(parameters, 52),
        TokenLayout.from_state_dict(dict(reversed(parameters.items())), 51),
        TokenLayout.from_state_dict({**parameters, "x": torch.zeros(1)}, 51),
    ]
    assert len({layout.digest} | {other.digest for other in others}) == 4


def test_what_does_not_fit_is_refused(cnn_s):
    layout, parameters = cnn_s
    with pytest.raises(ConfigError, match="token_dim must be at least 1, not 0"):
        TokenLayout.from_state_dict(parameters, 0)
    with pytest.raises(ConfigError, match="without parameters"):
        TokenLayout.from_state_dict({}, 5)
    with pytest.raises(ConfigError, match="extra in one but not in the other"):
        layout.flatten({**parameters, "extra": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"module_list\.0\.bias in one"):
        layout.flatten({name: value for name, value in parameters.items() if name != "module_list.0.bias"})
    with pytest.raises(ConfigError, match=r"module_list\.9\.weight is \(36, 20\), not \(20, 36\)"):
        layout.flatten({**parameters, "module_list.9.weight": parameters["module_list.9.weight"].T})
    for shape in ((66, 50), (65, 51), (2, 66 * 51)):
        with pytest.raises(ConfigError, match="do not fit a layout"):
            layout.detokenize(torch.zeros(shape))
