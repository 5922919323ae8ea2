"""Permutations keep the function, mistakes in the groups are noticed, and alignment finds what was planted."""

from itertools import permutations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from mzsane.config import NetworkConfig
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.symmetry import (
    GroupMember,
    PermutationGroup,
    build_permutation_map,
    derive_groups,
    draw_permutations,
    match_weights,
)
from mzsane.zoo.architectures import build_network, initialise_network

EXACT = 1e-10  # float64


def make_cnn_s(seed=0, activation="tanh"):
    network = build_network(NetworkConfig(activation=activation), 1, 10)
    initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(seed))
    return network.double()


def randomise(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network.double()


def permute(network, groups, batch=3, seed=0):
    """Return the layout, the flat weights, and `batch` randomly permuted versions of them."""
    layout = TokenLayout.from_state_dict(dict(network.named_parameters()), 7)
    flat_P = layout.flatten({name: value.detach() for name, value in network.named_parameters()})
    permutations = draw_permutations(groups, batch, torch.Generator().manual_seed(seed))
    map_BP = build_permutation_map(layout, groups, permutations)
    return layout, flat_P, flat_P.expand(batch, -1).gather(1, map_BP)


def measure_change(network, groups, images) -> float:
    """Return the largest change that random permutations of the groups make to the network's outputs."""
    layout, _, permuted_BP = permute(network, groups)
    with torch.no_grad():
        before = network(images)
        after = [functional_call(network, layout.unflatten(flat_P), (images,)) for flat_P in permuted_BP]
    return max((before - outputs).abs().max().item() for outputs in after)


@given(data=st.data())
def test_random_permutations_keep_the_function(draw_chain, data):
    network, images = draw_chain(data)
    groups = derive_groups(network)
    layers = [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert [group.units for group in groups] == [len(layer.weight) for layer in layers[:-1]]
    if groups:
        assert measure_change(network, groups, images) < EXACT


@given(data=st.data())
def test_map_permutes_rows_biases_and_columns(draw_chain, data):
    """Against indexing each tensor on its own."""
    network, _ = draw_chain(data)
    groups = derive_groups(network)
    assume(groups)
    layout = TokenLayout.from_state_dict(network.state_dict(), 7)
    permutations = draw_permutations(groups, 2, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    map_BP = build_permutation_map(layout, groups, permutations)
    assert torch.equal(map_BP.sort(dim=1).values, torch.arange(layout.weights).expand(2, -1))
    for b in range(2):
        flat_P = layout.flatten(network.state_dict())
        permuted = layout.unflatten(flat_P[map_BP[b]])
        layers = [(n, layer) for n, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        for place, (name, layer) in enumerate(layers):
            weight = layer.weight.detach()
            if place:  # each unit of the layer before feeds a run of columns
                units = permutations[place - 1][b].tolist()
                block = weight.shape[1] // len(units)
                weight = torch.cat([weight[:, unit * block : (unit + 1) * block] for unit in units], dim=1)
            rows = permutations[place][b] if place < len(groups) else slice(None)
            assert torch.equal(permuted[f"{name}.weight"], weight[rows])
            if layer.bias is not None:
                assert torch.equal(permuted[f"{name}.bias"], layer.bias.detach()[rows])


@given(data=st.data(), token_dim=st.integers(1, 20))
def test_permuting_flat_weights_and_tokens_agree(draw_chain, data, token_dim):
    network, _ = draw_chain(data)
    groups = derive_groups(network)
    assume(groups)
    layout = TokenLayout.from_state_dict(network.state_dict(), token_dim)
    flat_BP = layout.flatten(network.state_dict()).expand(2, -1)
    permutations = draw_permutations(groups, 2, torch.Generator().manual_seed(0))
    map_BP = build_permutation_map(layout, groups, permutations)
    index_BTD = map_BP[:, layout.gather_TD.clamp(min=0)]
    tokens_BTD = flat_BP.gather(1, index_BTD.flatten(1)).view(index_BTD.shape) * layout.mask_TD
    assert torch.equal(tokens_BTD, layout.tokenize(flat_BP.gather(1, map_BP)))


class TestCnnS:
    def test_has_the_four_groups(self):
        groups = derive_groups(make_cnn_s())

        def members(first, consumer, block):
            return (
                GroupMember(tensor=f"module_list.{first}.weight", axis=0),
                GroupMember(tensor=f"module_list.{first}.bias", axis=0),
                GroupMember(tensor=f"module_list.{consumer}.weight", axis=1, block=block),
            )

        assert groups == (
            PermutationGroup(units=8, members=members(0, 3, 1)),
            PermutationGroup(units=6, members=members(3, 6, 1)),
            PermutationGroup(units=4, members=members(6, 9, 9)),
            PermutationGroup(units=20, members=members(9, 11, 1)),
        )

    @pytest.mark.parametrize("activation", NetworkConfig.model_fields["activation"].annotation.__args__)
    def test_keeps_its_function(self, activation):
        network = make_cnn_s(activation=activation)
        images = torch.randn(4, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert measure_change(network, derive_groups(network), images) < EXACT

    @pytest.mark.parametrize(
        "mistake", ["block", "no bias", "no consumer", "other consumer", "swapped axes", "rows only"]
    )
    def test_a_mistake_in_any_group_is_noticed(self, mistake):
        """The check of the tests above can fail: one wrong group among right ones is enough."""
        network = randomise(make_cnn_s())
        images = torch.randn(4, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        right = derive_groups(network)
        for place, group in enumerate(right):
            weight, bias, consumer = group.members
            members = {
                "block": (weight, bias, consumer.model_copy(update={"block": consumer.block + 1})),
                "no bias": (weight, consumer),
                "no consumer": (weight, bias),
                "other consumer": (weight, bias, right[(place + 1) % 4].members[2].model_copy(update={"block": 1})),
                "swapped axes": (weight.model_copy(update={"axis": 1}), bias, consumer.model_copy(update={"axis": 0})),
                "rows only": (weight,),
            }[mistake]
            wrong = (*right[:place], PermutationGroup(units=group.units, members=members), *right[place + 1 :])
            try:
                change = measure_change(network, wrong, images)
            except (RuntimeError, IndexError):
                continue  # indices out of range: noticed as well
            assert change > 1e-3, place

    def test_a_planted_interleaving_at_the_flatten_is_noticed(self):
        """Columns by place instead of by channel: right sizes, wrong units, as in the `rebasin` package."""
        network = randomise(make_cnn_s())
        images = torch.randn(4, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        groups = derive_groups(network)
        layout, flat_P, _ = permute(network, groups)
        permutations = [torch.arange(group.units)[None] for group in groups]
        permutations[2] = torch.tensor([[1, 0, 2, 3]])
        right = layout.unflatten(flat_P[build_permutation_map(layout, groups, permutations)[0]])
        name = "module_list.9.weight"
        wrong = {**right, name: network.state_dict()[name].view(20, 9, 4)[:, :, [1, 0, 2, 3]].reshape(20, 36)}
        with torch.no_grad():
            outputs = network(images)
            assert (functional_call(network, right, (images,)) - outputs).abs().max() < EXACT
            assert (functional_call(network, wrong, (images,)) - outputs).abs().max() > 1e-3


def test_permutations_are_uniform_and_follow_their_generator():
    groups = [PermutationGroup(units=3, members=()), PermutationGroup(units=5, members=())]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    three, five = draw_permutations(groups, 3000, torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(three.sort(dim=1).values, torch.arange(3).expand(3000, 3))
    assert torch.equal(five.sort(dim=1).values, torch.arange(5).expand(3000, 5))
    kinds, counts = three.unique(dim=0, return_counts=True)
    assert len(kinds) == 6
    assert counts.min() > 400
    assert counts.max() < 600
    assert torch.equal(draw_permutations(groups, 3000, torch.Generator().manual_seed(1))[1], five)


class TestMatching:
    @pytest.mark.parametrize("seed", range(6))
    def test_recovers_a_planted_permutation(self, seed):
        network = make_cnn_s(seed)
        groups = derive_groups(network)
        layout, flat_P, permuted_BP = permute(network, groups, batch=1, seed=seed)
        assert not torch.equal(permuted_BP[0], flat_P)
        noise = 1 + 0.05 * torch.randn(flat_P.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for scale in (torch.ones_like(noise), noise):
            shuffled = permuted_BP[0] * scale
            found = match_weights(layout.unflatten(shuffled), layout.unflatten(flat_P), groups)
            map_1P = build_permutation_map(layout, groups, [permutation[None] for permutation in found])
            assert torch.equal(permuted_BP[0][map_1P[0]], flat_P)

    def test_a_model_matches_itself_as_it_is(self):
        network = make_cnn_s()
        found = match_weights(network.state_dict(), network.state_dict(), derive_groups(network))
        assert [permutation.tolist() for permutation in found] == [list(range(n)) for n in (8, 6, 4, 20)]

    @given(data=st.data())
    def test_never_moves_away_from_the_reference(self, draw_chain, data):
        network, images = draw_chain(data)
        groups = derive_groups(network)
        assume(groups)
        layout = TokenLayout.from_state_dict(network.state_dict(), 7)
        ours = layout.flatten(network.state_dict())
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        reference = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
        found = match_weights(layout.unflatten(ours), layout.unflatten(reference), groups)
        aligned = ours[build_permutation_map(layout, groups, [permutation[None] for permutation in found])[0]]
        assert (aligned - reference).norm() <= (ours - reference).norm() + 1e-9
        with torch.no_grad():
            change = functional_call(network, layout.unflatten(aligned), (images,)) - network(images)
        assert change.abs().max() < EXACT

    def test_is_the_best_of_all_permutations_when_there_is_one_group(self):
        network = randomise(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)))
        other = randomise(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), seed=1)
        groups = derive_groups(network)
        layout = TokenLayout.from_state_dict(network.state_dict(), 7)
        ours, reference = layout.flatten(network.state_dict()), layout.flatten(other.state_dict())
        every = torch.tensor(list(permutations(range(4))))
        distances = (ours[build_permutation_map(layout, groups, [every])] - reference).norm(dim=1)
        (found,) = match_weights(network.state_dict(), other.state_dict(), groups)
        assert found.tolist() == every[distances.argmin()].tolist()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x):
        return self.second(torch.tanh(x + self.first(x)))


class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x)) + self.head(x)


REFUSED = {
    "residual": Residual(),
    "two children": Beside(),
    "attention": nn.TransformerEncoderLayer(4, 1),
    "grouped convolution": nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 2)),
    "batch norm": nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)),
    "a slope per unit": nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 2)),
    "softmax": nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)),
    "transposed": nn.Sequential(nn.ConvTranspose2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)),
    "sizes that do not fit": nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_groups_of_what_is_no_plain_chain_are_refused(name):
    with pytest.raises(ValueError, match=r"no permutation groups|do not divide"):
        derive_groups(REFUSED[name])


ODD = {
    "one layer": (nn.Sequential(nn.Linear(4, 2)), (4,)),
    "bare layer": (nn.Linear(4, 2), (4,)),
    "nested": (nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Sequential(nn.Linear(3, 2))), (4,)),
    "one activation used twice": (nn.Sequential(nn.Linear(4, 3), act := nn.Tanh(), nn.Linear(3, 3), act), (4,)),
    "one layer used twice": (nn.Sequential(layer := nn.Linear(4, 4), nn.Tanh(), layer, nn.Linear(4, 2)), (4,)),
    "one layer used in two parts": (
        nn.Sequential(nn.Sequential(twice := nn.Linear(4, 4), nn.Tanh()), nn.Sequential(twice, nn.Linear(4, 2))),
        (4,),
    ),
    "average pooling": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)), (1, 6, 6)),
    "linear over places, then flatten": (
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)),
        (2, 4),
    ),
    "convolution, then linear without flatten": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 5)), (1, 6, 6)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_chains_are_refused_or_keep_their_function(name):
    network, shape = ODD[name]
    randomise(network)
    try:
        groups = derive_groups(network)
    except ValueError:
        return
    if groups:
        images = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert measure_change(network, groups, images) < EXACT
