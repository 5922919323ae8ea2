import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mzsane.symmetry.derive.proof import FunctionCheck, permute_parameters
from mzsane.symmetry.derive.trace import Symmetry, derive_groups
from mzsane.symmetry.groups import PermutationGroup
from tests.symmetry.table import OURS, VISION, build_ours, build_vision, count_blocks, prove

VECTOR = torch.zeros(1, 6)
IMAGE = torch.zeros(1, 3, 8, 8)
SEQUENCE = torch.zeros(1, 5, 8)


class Network(nn.Module):
    """A network from a function of itself and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def derive(network: nn.Module, example: Tensor) -> Symmetry:
    """Derive groups, and check all of them by function once more with other random numbers."""
    symmetry = derive_groups(network, example)
    if symmetry.groups:
        assert check(network, example).measure_groups(symmetry.groups) < 1e-9
    return symmetry


def check(network: nn.Module, example: Tensor) -> FunctionCheck:
    return FunctionCheck(copy.deepcopy(network).double().eval(), example, torch.Generator().manual_seed(7))


def sizes(symmetry: Symmetry) -> list[int]:
    return sorted(group.units for group in symmetry.groups)


def owned(group: PermutationGroup) -> dict[tuple[str, int], int]:
    return {(member.tensor, member.axis): len(member.indices[0]) for member in group.members}


OTHERS = [(name, activation) for name in OURS for activation in ("tanh", "leaky_relu", "gelu", "silu", "sigmoid")]


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [*((name, "relu") for name in OURS), *(pytest.param(*names, marks=pytest.mark.slow) for names in OTHERS)],
)
def test_our_architectures_have_all_their_groups(architecture: str, activation: str) -> None:
    proof = prove(architecture, *build_ours(architecture, activation))
    expected = {
        "cnn-s": [4, 6, 8, 20],
        "cnn-l": [15, 16, 20, 32],
        "mlp": [32, 32],
        "resnet18": [8] * 3 + [16] * 3 + [32] * 3 + [64] * 3,
        # four blocks of four heads with 16 query-key and 16 value dimensions each; the residual stream has 64
        "vit": [4] * 4 + [16] * 32 + [64] + [128] * 4,
    }
    assert sizes(proof.symmetry) == expected[architecture]
    assert proof.symmetry.notes == ()
    assert proof.change_float64 < 1e-10
    assert proof.change_float32 < 1e-4


def test_sign_and_scale_are_told_by_the_activation() -> None:
    flags = {}
    for activation in ("tanh", "relu", "leaky_relu", "gelu"):
        symmetry = derive_groups(*build_ours("mlp", activation))
        flags[activation] = {(group.sign, group.scale) for group in symmetry.groups}
    assert flags == {
        "tanh": {(True, False)},
        "relu": {(False, True)},
        "leaky_relu": {(False, True)},
        "gelu": {(False, False)},
    }
    # max-pooling before tanh is not odd
    assert [group.sign for group in derive_groups(*build_ours("cnn-s", "tanh")).groups] == [False, False, True, True]


QUICK = {"resnet18": 12, "mobilenet_v3_small": 27, "shufflenet_v2_x1_0": 86}


@pytest.mark.parametrize("name", QUICK)
def test_torchvision_models_keep_their_function(name: str) -> None:
    proof = prove(name, *build_vision(name, pixels=64))
    assert len(proof.symmetry.groups) == QUICK[name]
    assert proof.symmetry.notes == ()
    assert proof.change_float64 < 1e-10
    assert proof.change_float32 < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_all_torchvision_models_keep_their_function(name: str) -> None:
    proof = prove(name, *build_vision(name))
    assert len(proof.symmetry.groups) >= 7
    assert proof.change_float64 < 1e-10
    assert proof.change_float32 < 1e-4


@pytest.mark.slow
def test_vit_b_16_has_all_its_groups() -> None:
    symmetry = derive_groups(*build_vision("vit_b_16"))
    # twelve blocks of twelve heads of 64 query-key and 64 value dimensions; the residual stream has 768
    assert sizes(symmetry) == [12] * 12 + [64] * 288 + [768] + [3072] * 12
    assert count_blocks(symmetry.groups) == 12


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, list[int]]] = {
    "gated halves": (
        lambda: Network(lambda m, x: m.b(F.glu(m.a(x))), a=nn.Linear(6, 16), b=nn.Linear(8, 3)),
        VECTOR,
        [8],
    ),
    "a value beside its activation": (
        lambda: Network(
            lambda m, x: m.b(torch.cat([m.a(x), F.relu(m.a(x))], 1)), a=nn.Linear(6, 8), b=nn.Linear(16, 3)
        ),
        VECTOR,
        [8],
    ),
    "a module used twice": (
        lambda: Network(
            lambda m, x: m.b(m.h(m.h(m.a(x)).relu()).relu()), a=nn.Linear(6, 8), h=nn.Linear(8, 8), b=nn.Linear(8, 3)
        ),
        VECTOR,
        [8],
    ),
    "tied transpose": (
        lambda: Network(lambda m, x: F.linear(m.a(x).tanh(), m.a.weight.t()), a=nn.Linear(6, 8)),
        VECTOR,
        [8],
    ),
    "pixel shuffle": (
        lambda: Network(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(4, 3, 3)),
        IMAGE,
        [4],
    ),
    "transposed convolution": (
        lambda: Network(lambda m, x: m.b(m.a(x).relu()), a=nn.ConvTranspose2d(3, 8, 2, 2), b=nn.Conv2d(8, 3, 3)),
        IMAGE,
        [8],
    ),
    "transposed grouped convolution": (
        lambda: Network(
            lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
            a=nn.Conv2d(3, 8, 3),
            b=nn.ConvTranspose2d(8, 12, 2, 2, groups=2),
            c=nn.Conv2d(12, 3, 3),
        ),
        IMAGE,
        [2, 4, 4, 6, 6],
    ),
    "grouped convolution": (
        lambda: Network(
            lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
            a=nn.Conv2d(3, 8, 3),
            b=nn.Conv2d(8, 12, 3, groups=2),
            c=nn.Conv2d(12, 3, 3),
        ),
        IMAGE,
        [2, 4, 4, 6, 6],
    ),
    "depthwise convolution, two outputs a channel": (
        lambda: Network(
            lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Conv2d(4, 8, 3, groups=4),
            c=nn.Conv2d(8, 3, 3),
        ),
        IMAGE,
        [2, 2, 2, 2, 4],
    ),
    "group norm": (
        lambda: Network(
            lambda m, x: m.b(m.n(m.a(x)).relu()), a=nn.Conv2d(3, 8, 3), n=nn.GroupNorm(2, 8), b=nn.Conv2d(8, 3, 3)
        ),
        IMAGE,
        [2, 4, 4],
    ),
    "slopes": (
        lambda: Network(lambda m, x: m.b(m.n(m.a(x))), a=nn.Conv2d(3, 8, 3), n=nn.PReLU(8), b=nn.Conv2d(8, 3, 3)),
        IMAGE,
        [8],
    ),
    "attention that returns its weights": (
        lambda: Network(
            lambda m, x: m.b(m.m(*[m.a(x)] * 3, need_weights=True)[0]),
            a=nn.Linear(8, 8),
            m=nn.MultiheadAttention(8, 2, batch_first=True),
            b=nn.Linear(8, 3),
        ),
        SEQUENCE,
        [2, 4, 4, 4, 4, 8, 8],
    ),
    "attention": (
        lambda: Network(
            lambda m, x: m.b(m.m(*[m.a(x)] * 3, need_weights=False)[0]),
            a=nn.Linear(8, 8),
            m=nn.MultiheadAttention(8, 2, batch_first=True),
            b=nn.Linear(8, 3),
        ),
        SEQUENCE,
        [2, 4, 4, 4, 4, 8, 8],
    ),
    "attention between two streams": (
        lambda: Network(
            lambda m, x: m.b(m.m(m.a(x), m.c(x), m.c(x), need_weights=False)[0]),
            a=nn.Linear(8, 8),
            c=nn.Linear(8, 8),
            m=nn.MultiheadAttention(8, 2, batch_first=True),
            b=nn.Linear(8, 3),
        ),
        SEQUENCE,
        [2, 4, 4, 4, 4, 8, 8, 8],
    ),
    "queries that share keys": (
        lambda: Network(
            _share_keys, a=nn.Linear(8, 8), q=nn.Linear(8, 8), k=nn.Linear(8, 4), v=nn.Linear(8, 4), b=nn.Linear(8, 3)
        ),
        SEQUENCE,
        [2, 2, 2, 8],
    ),
    "queries with a norm": (
        lambda: Network(
            _norm_queries,
            a=nn.Linear(8, 8),
            m=nn.Linear(8, 24),
            n=nn.LayerNorm(4),
            o=nn.Linear(8, 8),
            b=nn.Linear(8, 3),
        ),
        SEQUENCE,
        [4, 4, 8],
    ),
    "heads that are an output": (
        lambda: Network(
            lambda m, x: m.m(*[m.a(x)] * 3, average_attn_weights=False),
            a=nn.Linear(8, 8),
            m=nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        SEQUENCE,
        [4, 4, 4, 4, 8],
    ),
    "transformer": (
        lambda: Network(
            lambda m, x: m.b(m.e(m.a(x))),
            a=nn.Linear(8, 8),
            e=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            b=nn.Linear(8, 3),
        ),
        SEQUENCE,
        [2, 4, 4, 4, 4, 8, 16],
    ),
    "embedding": (
        lambda: Network(lambda m, x: m.b(m.t(x).mean(1)), t=nn.Embedding(10, 8), b=nn.Linear(8, 3)),
        torch.tensor([[1, 2, 3, 9]]),
        [8],
    ),
    "class token and positions": (
        lambda: Network(
            lambda m, x: m.b(m.n(torch.cat([m.c, m.a(x)], 1) + m.p)[:, 0]),
            a=nn.Linear(8, 8),
            c=nn.Parameter(torch.zeros(1, 1, 8)),
            p=nn.Parameter(torch.zeros(1, 6, 8)),
            n=nn.LayerNorm(8),
            b=nn.Linear(8, 3),
        ),
        SEQUENCE,
        [8],
    ),
    "positions that all channels share": (
        lambda: Network(
            lambda m, x: m.b((m.a(x) + m.p).relu()),
            a=nn.Conv2d(3, 8, 3),
            p=nn.Parameter(torch.zeros(1, 1, 6, 6)),
            b=nn.Conv2d(8, 3, 3),
        ),
        IMAGE,
        [8],
    ),
    "unit length": (
        lambda: Network(lambda m, x: m.b(F.normalize(m.a(x), dim=1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        VECTOR,
        [8],
    ),
    "half of a map rolled": (
        lambda: Network(
            lambda m, x: m.b(torch.cat([m.a(x)[:, :4], m.a(x)[:, 4:].roll(1, 2)], 1).flatten(1)),
            a=nn.Conv2d(3, 8, 3),
            b=nn.Linear(288, 3),
        ),
        IMAGE,
        [4, 4],
    ),
    "one unit overwritten": (
        lambda: Network(_overwrite, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        VECTOR,
        [7],
    ),
}


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _share_keys(m: Any, x: Tensor) -> Any:
    hidden = m.a(x)
    key, value = (_split_heads(part(hidden), 2).repeat_interleave(2, dim=1) for part in (m.k, m.v))
    mixed = F.scaled_dot_product_attention(_split_heads(m.q(hidden), 4), key, value)
    return m.b(mixed.transpose(1, 2).flatten(2))


def _norm_queries(m: Any, x: Tensor) -> Any:
    hidden = m.a(x)
    query, key, value = (_split_heads(part, 2) for part in m.m(hidden).chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(m.n(query), m.n(key), value)
    return m.b(hidden + m.o(mixed.transpose(1, 2).flatten(2)))


def _overwrite(m: Any, x: Tensor) -> Any:
    hidden = m.a(x)
    hidden[:, 0] = 0
    return m.b(hidden.relu())


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_of_small_networks(name: str) -> None:
    build, example, expected = NETWORKS[name]
    symmetry = derive(build(), example)
    assert symmetry.notes == ()
    assert sizes(symmetry) == expected


def test_units_behind_a_flatten_own_their_block() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4), nn.ReLU(), nn.Linear(4, 2))
    first, second = derive(network, IMAGE).groups
    assert owned(first) == {("0.weight", 0): 1, ("0.bias", 0): 1, ("3.weight", 1): 36}
    assert owned(second) == {("3.weight", 0): 1, ("3.bias", 0): 1, ("5.weight", 1): 1}
    assert first.members[2].indices[1] == tuple(range(36, 72))
    assert [member.role for member in first.members] == ["out", "out", "in"]


def test_batch_norm_statistics_belong_to_their_channel() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 3))
    (group,) = derive(network, IMAGE).groups
    statistics = {("1.running_mean", 0): 1, ("1.running_var", 0): 1}
    assert owned(group) == {("0.weight", 0): 1, ("1.weight", 0): 1, ("1.bias", 0): 1, **statistics, ("3.weight", 1): 1}


def test_tied_weights_are_named_once() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    network = Network(lambda m, x: m.c(m.b(m.a(x))), a=first, b=second, c=nn.Linear(6, 3))
    symmetry = derive(network, VECTOR)
    # the rows of `a` are columns of `b`, whose columns are the columns of `a`: inputs, which stay in place
    assert symmetry.groups == ()


def test_unknown_operators_keep_what_they_touch() -> None:
    network = Network(
        lambda m, x: m.b(m.r(m.c(m.a(x)).relu())[0]),
        a=nn.Linear(8, 16),
        c=nn.Linear(16, 8),
        r=nn.LSTM(8, 8, batch_first=True),
        b=nn.Linear(8, 3),
    )
    symmetry = derive(network, SEQUENCE)
    assert symmetry.notes == ("r (aten.lstm): not known; its 8 units and 4 parameters stay in place",)
    assert [owned(group) for group in symmetry.groups] == [{("a.weight", 0): 1, ("a.bias", 0): 1, ("c.weight", 1): 1}]


def test_what_cannot_be_exported_has_no_groups() -> None:
    network = Network(lambda m, x: m.b(m.a(x)) if x.sum() > 0 else x, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    symmetry = derive_groups(network, VECTOR)
    assert symmetry.groups == ()
    assert len(symmetry.notes) == 1
    assert symmetry.notes[0].startswith("Network cannot be exported, so no unit moves: ")


@pytest.mark.parametrize("shape", [(8,), (1, 8)])
def test_a_constant_for_each_unit_keeps_their_order(shape: tuple[int, ...]) -> None:
    network = Network(
        lambda m, x: m.b((m.a(x) * m.k).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 3), k=torch.ones(shape)
    )
    symmetry = derive(network, VECTOR)
    assert symmetry.groups == ()
    assert symmetry.notes == (
        "the network (aten.mul): meets values that tell its units apart; its 8 units stay in place",
    )


@pytest.mark.parametrize(
    ("function", "note"),
    [
        (lambda m, x: m.b(m.a(x).cumsum(1)), "aten.cumsum"),
        (lambda m, x: m.b(m.a(x) + x), "aten.add"),
        (lambda m, x: m.b(m.a(x)[:, m.order.long() + 0 * x[0].long()]), "aten.index"),
    ],
)
def test_operators_that_tell_units_apart_keep_them(function: Callable[[Any, Tensor], Any], note: str) -> None:
    network = Network(function, a=nn.Linear(6, 6), b=nn.Linear(6, 3), order=torch.arange(6))
    symmetry = derive(network, VECTOR)
    assert symmetry.groups == ()
    assert len(symmetry.notes) == 1
    assert note in symmetry.notes[0]


def test_weights_that_mix_positions_stay_and_units_go_through() -> None:
    network = Network(
        lambda m, x: m.b(m.t(m.a(x).transpose(1, 2)).relu().transpose(1, 2)),
        a=nn.Linear(8, 8),
        t=nn.Linear(5, 7),
        b=nn.Linear(8, 3),
    )
    symmetry = derive(network, SEQUENCE)
    assert sizes(symmetry) == [8]
    assert symmetry.notes == ("t (aten.linear): mixes positions; its own 7 units stay in place",)


def test_a_weight_that_is_computed_stays_in_place() -> None:
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    symmetry = derive(network, VECTOR)
    assert symmetry.groups == ()
    assert "_weight_norm" in symmetry.notes[0]


def test_the_network_and_the_random_state_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    assert len(derive_groups(network, VECTOR).groups) == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_the_check_catches_planted_errors() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = derive_groups(network, IMAGE).groups
    function = check(network, IMAGE)
    assert function.measure_groups(groups) < 1e-9

    def plant(indices: tuple[tuple[int, ...], ...]) -> list[PermutationGroup]:
        *others, columns = groups[0].members
        wrong = columns.model_copy(update={"indices": indices})
        return [groups[0].model_copy(update={"members": (*others, wrong)}), groups[1]]

    size, units = 36, range(5)
    off_by_one = tuple(tuple((unit * size + place + 1) % 180 for place in range(size)) for unit in units)
    too_small = tuple(tuple(range(unit * 6, unit * 6 + 6)) for unit in units)
    interleaved = tuple(tuple(range(unit, 180, 5)) for unit in units)
    for indices in (off_by_one, too_small, interleaved):
        wrong = plant(indices)
        assert function.measure_groups(wrong) > 1e-3
        assert function.select(wrong, lambda some: function.measure_groups(some) < 1e-9) == [groups[1]]
    missing = groups[0].model_copy(update={"members": groups[0].members[:2]})
    assert function.measure_groups([missing]) > 1e-3


def test_permutations_are_composed_in_order() -> None:
    weight = torch.arange(12.0).reshape(6, 2)
    inner = PermutationGroup.model_validate(
        {"units": 2, "members": [{"tensor": "w", "axis": 0, "indices": [[0], [1]]}]},
    )
    columns = PermutationGroup.model_validate(
        {"units": 2, "members": [{"tensor": "w", "axis": 1, "indices": [[0], [1]], "rows": (0, 2), "role": "in"}]},
    )
    blocks = PermutationGroup.model_validate(
        {"units": 3, "members": [{"tensor": "w", "axis": 0, "indices": [[0, 1], [2, 3], [4, 5]]}]},
    )
    swap, cycle = torch.tensor([1, 0]), torch.tensor([2, 0, 1])
    permuted = permute_parameters({"w": weight}, [inner, columns, blocks], [swap, swap, cycle])["w"]
    assert permuted.tolist() == [[8, 9], [10, 11], [3, 2], [1, 0], [4, 5], [6, 7]]
    assert weight[0, 0] == 0


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Module, int]:
    """Draw a plain chain of layers and how many groups it has."""
    torch.manual_seed(0)
    channels = 3
    layers: list[nn.Module] = []
    depth = draw(st.integers(1, 3))
    for _ in range(depth):
        width = draw(st.integers(2, 6))
        layers.append(nn.Conv2d(channels, width, draw(st.sampled_from([1, 3])), bias=draw(st.booleans()), padding=1))
        norm = draw(st.sampled_from(["none", "batch", "layer", "instance"]))
        if norm == "batch":
            layers.append(nn.BatchNorm2d(width))
        if norm == "layer":
            layers.append(nn.GroupNorm(1, width))
        if norm == "instance":
            layers.append(nn.InstanceNorm2d(width, affine=draw(st.booleans())))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.MaxPool2d(2, 1), nn.Dropout(0.3)])))
        channels = width
    groups = depth
    layers += [nn.AdaptiveAvgPool2d(draw(st.sampled_from([1, 2]))), nn.Flatten()]
    layers.append(nn.LazyLinear(draw(st.integers(2, 5))))
    if draw(st.booleans()):
        layers += [nn.GELU(), nn.LazyLinear(3)]
        groups += 1
    network = nn.Sequential(*layers)
    network(torch.zeros(2, 3, 8, 8))
    return network, groups


@settings(max_examples=12, deadline=None, derandomize=True)
@given(chains())
def test_every_hidden_layer_of_a_plain_chain_is_a_group(drawn: tuple[nn.Module, int]) -> None:
    network, groups = drawn
    symmetry = derive(network, IMAGE)
    assert len(symmetry.groups) == groups
    assert symmetry.notes == ()


class Mixture(nn.Module):
    """Convolutions joined by what a list of words says."""

    def __init__(self, words: list[str], width: int) -> None:
        super().__init__()
        self.words = words
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        layers: list[nn.Module] = []
        channels = width
        for word in words:
            groups = {"depthwise": channels, "grouped": 2}.get(word, 1)
            layer = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=word != "residual")
            layers.append(nn.Sequential(layer, nn.GroupNorm(2, channels)) if word == "norm" else layer)
            channels *= 2 if word == "concat" else 1
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(channels * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for word, layer in zip(self.words, self.layers, strict=True):
            y = layer(x).tanh()
            if word == "residual":
                x = x + y
            elif word == "concat":
                x = torch.cat([y, x], 1)
            elif word == "gate":
                x = x * y.mean((2, 3), keepdim=True).sigmoid()
            else:
                x = y
        out: Tensor = self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))
        return out


WORDS = ["plain", "depthwise", "grouped", "norm", "residual", "concat", "gate"]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(WORDS), max_size=4), st.sampled_from([4, 6]))
def test_random_networks_keep_their_function(words: list[str], width: int) -> None:
    torch.manual_seed(0)
    symmetry = derive(Mixture(words, width), IMAGE)
    assert symmetry.notes == ()
    assert symmetry.groups
