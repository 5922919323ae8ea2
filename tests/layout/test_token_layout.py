"""Tokens are a view: every weight has one place, and comes back from it bit for bit."""

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mzsane.config import NetworkConfig
from mzsane.errors import ConfigError
from mzsane.layout.agreement import check_same_layout, choose_token_dim
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network

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
    assert torch.equal(again.gather_TD, layout.gather_TD)
    assert again == layout
    assert (again.digest, hash(again)) == (layout.digest, hash(layout))
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
    with pytest.raises(ConfigError, match="without weights"):
        TokenLayout.from_state_dict({}, 5)
    with pytest.raises(ConfigError, match="extra in one but not in the other"):
        layout.flatten({**parameters, "extra": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"module_list\.0\.bias in one"):
        layout.flatten({name: value for name, value in parameters.items() if name != "module_list.0.bias"})
    with pytest.raises(ConfigError, match=r"module_list\.9\.weight is \(36, 20\), not \(20, 36\)"):
        layout.flatten({**parameters, "module_list.9.weight": parameters["module_list.9.weight"].T})
    for flat in (torch.zeros(2463), torch.zeros(2, 2465)):
        for convert in (layout.tokenize, layout.unflatten):
            with pytest.raises(ConfigError, match=f"{flat.shape[-1]} a model, where it has 2464"):
                convert(flat)
    odd = (torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse(), "text")
    for value in odd:
        with pytest.raises(ConfigError, match=r"x\.weight cannot become tokens"):
            TokenLayout.from_state_dict({"x.weight": value}, 5)
    for shape in ((66, 50), (65, 51), (2, 66 * 51)):
        with pytest.raises(ConfigError, match="do not fit a layout"):
            layout.detokenize(torch.zeros(shape))


MODULES = {
    "conv1d": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
    "transposed, without bias": lambda: nn.ConvTranspose1d(4, 6, 2, bias=False),
    "embedding": lambda: nn.Embedding(7, 3),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "scalar": lambda: nn.ParameterDict({"scale": nn.Parameter(torch.zeros(()))}),
    "attention, fused": lambda: nn.MultiheadAttention(8, 2),
    "attention, separate": lambda: nn.MultiheadAttention(8, 2, kdim=3, vdim=5, add_bias_kv=True),
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 12),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "norms": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm([3, 4]), nn.GroupNorm(2, 4), nn.PReLU(3)),
    "norm without scale": lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Linear(2, 2)),
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("statistics", ["in", "out"])
def test_every_kind_of_layer_has_a_place_for_each_weight(kind, statistics):
    network = MODULES[kind]()
    layout = TokenLayout.from_network(network, 5, statistics)
    expected = dict(network.named_parameters())
    if statistics == "in":
        expected |= {name: value for name, value in network.named_buffers() if "running" in name}
    assert {entry.name for entry in layout.tensors} == set(expected)
    assert layout.weights == sum(value.numel() for value in expected.values())
    flat = torch.randn(3, layout.weights)
    tokens = layout.tokenize(flat)
    gathered = flat[:, layout.gather_TD.clamp(min=0)].masked_fill(~layout.mask_TD, 0)
    assert torch.equal(tokens, gathered)
    assert torch.equal(layout.detokenize(tokens), flat)
    assert torch.equal(tokens.flatten(1)[:, layout.scatter_P], flat)
    assert torch.equal(layout.flatten(layout.unflatten(flat)), flat)
    assert torch.equal(layout.flatten(layout.unflatten(flat[0])), flat[0])


def test_a_transposed_convolution_has_a_row_for_each_output_channel():
    network = nn.ConvTranspose2d(4, 6, 2, groups=2)
    layout = TokenLayout.from_network(network, 20)
    tokens = layout.tokenize(layout.flatten(network.state_dict()))
    for channel in range(6):
        inputs = slice(0, 2) if channel < 3 else slice(2, 4)
        row = [*network.weight[inputs, channel % 3].flatten().tolist(), network.bias[channel].item()]
        assert tokens[channel, :9].tolist() == row
    # Its bias tells so much without the module, too.
    assert TokenLayout.from_state_dict(network.state_dict(), 20).digest == layout.digest


def test_running_statistics_go_with_the_rows_of_their_norm():
    network = nn.BatchNorm1d(3)
    with torch.no_grad():
        for number, name in enumerate(("weight", "bias", "running_mean", "running_var")):
            network.state_dict()[name].copy_(torch.arange(3) + 10.0 * number)
    tokens = {}
    for statistics in ("in", "out", "conditioned"):
        layout = TokenLayout.from_network(network, 5, statistics)
        assert layout.running_statistics == statistics
        tokens[statistics] = layout.tokenize(layout.flatten(network.state_dict())).tolist()
    assert tokens["in"] == [[k, k + 10, k + 20, k + 30, 0] for k in range(3)]
    assert tokens["out"] == tokens["conditioned"] == [[k, k + 10, 0, 0, 0] for k in range(3)]


def test_tied_weights_have_one_place():
    network = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    network[1].weight = network[0].weight
    layout = TokenLayout.from_network(network, 4)
    assert layout.weights == 15
    flat = torch.randn(2, 15)
    parameters = layout.unflatten(flat)
    assert set(parameters) == {"0.weight", "1.weight"}
    assert torch.equal(parameters["0.weight"], parameters["1.weight"])
    assert torch.equal(layout.flatten(parameters), flat)
    with pytest.raises(ConfigError, match=r"1\.weight is tied to 0\.weight but differs"):
        layout.flatten({**parameters, "1.weight": parameters["1.weight"] + 1})
    assert TokenLayout.from_state_dict(network.state_dict(), 4).digest == layout.digest


@pytest.mark.parametrize(
    ("classes", "token_dim", "length", "largest"),
    [(10, 288, 43_924, [43_923, 40, 511]), (100, 288, 44_104, None), (10, 201, 61_982, None), (10, 513, 28_682, None)],
)
def test_resnet18_has_the_published_number_of_tokens(classes, token_dim, length, largest):
    network = build_network(NetworkConfig(architecture="resnet18"), 3, classes, 32)
    layout = TokenLayout.from_network(network, token_dim)
    assert layout.length == length
    if largest:
        assert layout.positions_T3.amax(dim=0).tolist() == largest
        assert 1 - layout.filled == pytest.approx(0.117, abs=5e-4)


def test_layers_say_what_they_are():
    network = build_network(NetworkConfig(architecture="resnet18", width=4), 3, 10, 32)
    layout = TokenLayout.from_network(network, 288)
    layers = [(layer.name, layer.kind, layer.rows, layer.row_length) for layer in layout.layers]
    assert layers[:3] == [("conv1", "conv", 4, 27), ("bn1", "norm", 4, 2), ("layer1.0.conv1", "conv", 4, 36)]
    assert layers[-1] == ("fc", "linear", 10, 33)
    for number, layer in enumerate(layout.layers):
        rows = layout.positions_T3[layout.positions_T3[:, 1] == number]
        assert rows[:, 0].tolist() == list(range(layer.first, layer.first + layer.tokens))


def test_the_chosen_width_has_the_least_padding_over_all_architectures():
    networks = [build_network(NetworkConfig(), 1, 10), build_network(NetworkConfig(architecture="mlp"), 1, 10)]
    layouts = [TokenLayout.from_network(network, 1) for network in networks]

    def count_padding(width):
        filled = [TokenLayout(token_dim=width, tensors=layout.tensors).filled for layout in layouts]
        return sum(1 / share for share in filled)

    chosen = choose_token_dim(layouts)
    best = min(count_padding(width) for width in range(32, 513))
    assert count_padding(chosen) == pytest.approx(best, rel=1e-12)
    assert not any(count_padding(width) <= best for width in range(chosen + 1, 513))
    with pytest.raises(ConfigError, match="without an architecture"):
        choose_token_dim([])


def test_models_of_several_layouts_are_refused_where_one_is_needed(cnn_s):
    layout, parameters = cnn_s
    other = TokenLayout.from_state_dict(parameters, 52)
    assert check_same_layout([layout, layout], "sampling") is layout
    with pytest.raises(
        ConfigError, match="sampling needs models of one layout, not of 2: 2464 weights in tokens of 51"
    ):
        check_same_layout([layout, other], "sampling")
    with pytest.raises(ConfigError, match="not of 0: none"):
        check_same_layout([], "sampling")


def test_index_maps_do_not_go_to_other_processes():
    layout = TokenLayout.from_network(nn.Linear(200, 100), 16)
    fresh = len(pickle.dumps(layout))
    assert layout.tokenize(torch.randn(2, layout.weights)).shape == (2, layout.length, 16)
    assert layout.gather_TD.numel() == layout.length * 16
    assert layout.scatter_P.numel() == layout.weights
    assert layout.mask_TD.any()
    assert layout.positions_T3.shape == (layout.length, 3)
    assert len(pickle.dumps(layout)) == fresh < 1000
    again = pickle.loads(pickle.dumps(layout))
    assert again == layout
    assert torch.equal(again.gather_TD, layout.gather_TD)


def test_tied_tensors_that_are_no_numbers_are_still_tied():
    network = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    network["b"].weight = network["a"].weight
    layout = TokenLayout.from_network(network, 4)
    with torch.no_grad():
        network["a"].weight[0, 0] = float("nan")
    assert layout.flatten(network.state_dict()).isnan().sum() == 1
    with pytest.raises(ConfigError, match=r"b\.weight is tied to a\.weight but differs"):
        layout.flatten(network.state_dict() | {"b.weight": torch.ones(3, 3)})
