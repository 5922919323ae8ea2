"""Matching brings planted copies back exactly, never makes an alignment worse, and does not depend on the batch."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.func import functional_call

from mzsane.config import NetworkConfig
from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network
from mzsane.symmetry.align import descent
from mzsane.symmetry.align.canonical import Matching, apply_matching, match_population
from mzsane.symmetry.align.nesting import relate_groups
from mzsane.symmetry.align.scales import balance_scales, scale_units, scale_weights
from mzsane.symmetry.apply.permute import permute_weights
from mzsane.symmetry.derive.trace import derive_groups
from mzsane.symmetry.groups import GroupMember, PermutationGroup, draw_permutations


def make_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build_cnn_s(activation="gelu"):
    return build_network(NetworkConfig(activation=activation), 1, 10), torch.zeros(1, 1, 28, 28)


def build_resnet18():
    return build_network(NetworkConfig(architecture="resnet18", width=4), 3, 10), torch.zeros(1, 3, 32, 32)


def build_vit():
    network = build_network(NetworkConfig(architecture="vit", width=16), 1, 10, size=8)
    network.blocks = network.blocks[:2]
    return network, torch.zeros(1, 1, 8, 8)


def build_grouped():
    layers = (nn.Conv2d(3, 12, 3), nn.GELU(), nn.Conv2d(12, 12, 3, groups=3), nn.GELU(), nn.Conv2d(12, 4, 1))
    return nn.Sequential(*layers), torch.zeros(1, 3, 8, 8)


def build_attention():
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0), torch.zeros(1, 5, 16)


BUILDERS = {
    "cnn-s": build_cnn_s,
    "resnet18": build_resnet18,
    "vit": build_vit,
    "grouped": build_grouped,
    "attention": build_attention,
}


@pytest.fixture(scope="module")
def architectures():
    """Return for each name (network in float64, example, layout, groups); tracing takes a second each."""
    found = {}
    for name, build in BUILDERS.items():
        network, example = build()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(generator=make_generator(7))
        groups = derive_groups(network, example).groups
        layout = TokenLayout.from_state_dict(dict(network.named_parameters()), 16)
        found[name] = (network.double().eval(), example.double(), layout, groups)
    return found


def draw_models(layout, count, seed=0, dtype=torch.float64):
    return torch.randn(count, layout.weights, generator=make_generator(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_planted_permutations_are_undone_exactly(architectures, name, dtype):
    _, _, layout, groups = architectures[name]
    reference_P = draw_models(layout, 1, dtype=dtype)[0]
    planted = draw_permutations(groups, 3, make_generator(1))
    flat_BP = permute_weights(layout, groups, planted, reference_P.expand(3, -1))
    assert not flat_BP[0].equal(reference_P)
    matching = match_population(layout, groups, flat_BP, reference_P)
    assert apply_matching(layout, groups, flat_BP, matching).equal(reference_P.expand(3, -1))
    norm = reference_P.double().square().sum()
    torch.testing.assert_close(matching.objective_after_B, norm.expand(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", BUILDERS)
def test_matching_keeps_the_function_and_raises_the_objective(architectures, name):
    network, example, layout, groups = architectures[name]
    reference_P, flat_BP = draw_models(layout, 1)[0], draw_models(layout, 3, seed=1)
    matching = match_population(layout, groups, flat_BP, reference_P)
    matched_BP = apply_matching(layout, groups, flat_BP, matching)
    torch.testing.assert_close(matching.objective_before_B, flat_BP @ reference_P)
    torch.testing.assert_close(matching.objective_after_B, matched_BP @ reference_P)
    assert (matching.objective_after_B > matching.objective_before_B).all()
    inputs = torch.randn(2, *example.shape[1:], generator=make_generator(2), dtype=torch.float64)
    with torch.no_grad():
        for before_P, after_P in zip(flat_BP, matched_BP, strict=True):
            before, after = (functional_call(network, layout.unflatten(p), (inputs,)) for p in (before_P, after_P))
            torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["cnn-s", "vit"])
def test_a_model_is_matched_the_same_alone_and_among_others(architectures, name):
    _, _, layout, groups = architectures[name]
    reference_P, flat_BP = draw_models(layout, 1)[0], draw_models(layout, 4, seed=1)
    together = match_population(layout, groups, flat_BP, reference_P)
    for model in range(4):
        alone = match_population(layout, groups, flat_BP[model : model + 1], reference_P)
        for found, single in zip(together.permutations, alone.permutations, strict=True):
            assert found[model].equal(single[0])


def test_no_group_improves_any_more(architectures):
    _, _, layout, groups = architectures["cnn-s"]
    reference_P, flat_BP = draw_models(layout, 1)[0], draw_models(layout, 5, seed=1)
    matched_BP = apply_matching(layout, groups, flat_BP, match_population(layout, groups, flat_BP, reference_P))
    theirs = layout.unflatten(reference_P)
    for matched_P in matched_BP:
        ours = layout.unflatten(matched_P)
        for group in groups:
            gain = torch.zeros(group.units, group.units, dtype=torch.float64)
            for member in group.members:
                a, b = (
                    torch.stack([side[member.tensor].index_select(member.axis, torch.tensor(i)).flatten()
                                 for i in member.indices])
                    for side in (theirs, ours)
                )  # fmt: skip
                gain += a @ b.T
            rows, columns = linear_sum_assignment(gain, maximize=True)
            assert gain[rows, columns].sum() <= gain.trace() + 1e-9


def test_a_group_on_both_axes_of_a_tensor_never_lowers_the_objective():
    """A residual stream x + W x: the assignment is only a guess there, because both axes move."""
    both = tuple(
        GroupMember(tensor="weight", axis=axis, indices=tuple((unit,) for unit in range(6))) for axis in (0, 1)
    )
    groups = (PermutationGroup(units=6, members=both),)
    layout = TokenLayout.from_state_dict({"weight": torch.empty(6, 6)}, 6)
    reference_P, flat_BP = draw_models(layout, 1)[0], draw_models(layout, 200, seed=1)
    matching = match_population(layout, groups, flat_BP, reference_P)
    assert (matching.objective_after_B >= matching.objective_before_B).all()
    assert (matching.objective_after_B > matching.objective_before_B).float().mean() > 0.5
    torch.testing.assert_close(
        apply_matching(layout, groups, flat_BP, matching) @ reference_P, matching.objective_after_B
    )


def test_planted_signs_are_undone_only_when_asked_for(architectures):
    _, _, layout, groups = architectures["cnn-s"]
    groups = [group.model_copy(update={"sign": True}) for group in groups]
    reference_P = draw_models(layout, 1)[0]
    flat_BP = permute_weights(
        layout, groups, draw_permutations(groups, 3, make_generator(1)), reference_P.expand(3, -1)
    )
    for group in groups:
        flips_BG = torch.randint(2, (3, group.units), generator=make_generator(2)) * 2 - 1
        scale_units(layout, group, ("out", "in"), flips_BG, flat_BP)
    matching = match_population(layout, groups, flat_BP, reference_P, signs=True)
    assert apply_matching(layout, groups, flat_BP, matching).equal(reference_P.expand(3, -1))
    plain = match_population(layout, groups, flat_BP, reference_P)
    assert plain.signs == []
    assert (plain.objective_after_B < matching.objective_after_B).all()


def test_signs_of_a_tanh_network_keep_its_function():
    network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    groups = derive_groups(network, torch.zeros(1, 5)).groups
    assert all(group.sign for group in groups)
    network.double()
    layout = TokenLayout.from_state_dict(dict(network.named_parameters()), 8)
    flat_BP = draw_models(layout, 3)
    matching = match_population(layout, groups, flat_BP, draw_models(layout, 1, seed=1)[0], signs=True)
    matched_BP = apply_matching(layout, groups, flat_BP, matching)
    assert not matched_BP.equal(permute_weights(layout, groups, matching.permutations, flat_BP))
    check_function(network, layout, flat_BP, matched_BP)


def test_scales_are_balanced_and_then_matched():
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    groups = derive_groups(network, torch.zeros(1, 5)).groups
    assert all(group.scale for group in groups)
    network.double()
    layout = TokenLayout.from_state_dict(dict(network.named_parameters()), 8)
    reference_P = draw_models(layout, 1)[0]
    flat_BP = permute_weights(
        layout, groups, draw_permutations(groups, 3, make_generator(1)), reference_P.expand(3, -1)
    )
    for group in groups:
        scale_BG = torch.rand(3, group.units, generator=make_generator(2), dtype=torch.float64) * 3 + 0.1
        scale_units(layout, group, ("out",), scale_BG, flat_BP)
        scale_units(layout, group, ("in",), 1 / scale_BG, flat_BP)
    matching = match_population(layout, groups, flat_BP, reference_P, scales=True)
    matched_BP = apply_matching(layout, groups, flat_BP, matching)
    check_function(network, layout, flat_BP, matched_BP)
    first, second = layout.unflatten(matched_BP)["0.weight"], layout.unflatten(matched_BP)["2.weight"]
    made_BG = (first.square().sum(2) + layout.unflatten(matched_BP)["0.bias"].square()).sqrt()
    torch.testing.assert_close(made_BG, second.norm(dim=1), rtol=1e-7, atol=0)
    scales = balance_scales(layout, groups, reference_P[None])
    balanced_1P = scale_weights(layout, groups, scales, reference_P[None])
    torch.testing.assert_close(matched_BP, balanced_1P.expand(3, -1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(matching.objective_after_B, balanced_1P.square().sum(1).expand(3))
    assert match_population(layout, groups, flat_BP, reference_P).scales == []


def check_function(network, layout, before_BP, after_BP):
    inputs = torch.randn(4, 5, generator=make_generator(9), dtype=torch.float64)
    for before_P, after_P in zip(before_BP, after_BP, strict=True):
        before, after = (functional_call(network, layout.unflatten(p), (inputs,)) for p in (before_P, after_P))
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


def test_a_dead_unit_keeps_its_scale():
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    groups = derive_groups(network, torch.zeros(1, 3)).groups
    layout = TokenLayout.from_state_dict(dict(network.named_parameters()), 4)
    flat_BP = draw_models(layout, 1, dtype=torch.float32)
    layout.unflatten(flat_BP)["2.weight"][:, :, 1] = 0
    balanced_BP = scale_weights(layout, groups, balance_scales(layout, groups, flat_BP), flat_BP)
    assert balanced_BP.dtype == torch.float32
    assert layout.unflatten(balanced_BP)["0.weight"][0, 1].equal(layout.unflatten(flat_BP)["0.weight"][0, 1])
    assert balanced_BP.isfinite().all()


def test_heads_hold_the_groups_inside_of_them(architectures):
    _, _, layout, groups = architectures["attention"]
    relations = relate_groups(layout, groups)
    blocks = [number for number, found in enumerate(relations) if found.children]
    assert len(blocks) == 1
    heads = relations[blocks[0]]
    assert len(heads.children) == groups[blocks[0]].units == 4
    inner = [number for head in heads.children for number in head]
    assert len(inner) == len(set(inner)) == 8  # the dimensions of queries with keys, and of values, of each head
    assert all(relations[number].later == (blocks[0],) for number in inner)
    assert heads.later == ()


def test_blocks_are_matched_with_what_is_inside_of_them_in_one_step(architectures, monkeypatch):
    _, _, layout, groups = architectures["attention"]
    monkeypatch.setattr(descent, "_MAX_SWEEPS", 1)
    reference_P = draw_models(layout, 1)[0]
    flat_BP = permute_weights(
        layout, groups, draw_permutations(groups, 5, make_generator(1)), reference_P.expand(5, -1)
    )
    matching = match_population(layout, groups, flat_BP, reference_P)
    assert apply_matching(layout, groups, flat_BP, matching).equal(reference_P.expand(5, -1))


@pytest.mark.parametrize("name", ["attention", "vit", "grouped"])
def test_every_step_keeps_the_weights_and_what_is_found_in_agreement(architectures, name):
    """Steps start from any permutations, those of blocks that have moved before among them."""
    _, _, layout, groups = architectures[name]
    reference_1P, flat_BP = draw_models(layout, 1), draw_models(layout, 3, seed=1)
    drawn = draw_permutations(groups, 3, make_generator(4))
    signs = [torch.ones(3, group.units, dtype=torch.int8) for group in groups]
    state = descent.Descent(permute_weights(layout, groups, drawn, flat_BP), drawn, signs)
    improved = 0
    for step in descent.prepare_steps(layout, groups, reference_1P, signs=False):
        improved += len(descent._take_step(step, groups, state, torch.arange(3)))
        assert permute_weights(layout, groups, state.permutations, flat_BP).equal(state.work_BP)
    assert improved > len(groups)


def test_matchings_are_joined_picked_and_stored(architectures):
    _, _, layout, groups = architectures["cnn-s"]
    groups = [group.model_copy(update={"sign": True, "scale": True}) for group in groups]
    reference_P, flat_BP = draw_models(layout, 1)[0], draw_models(layout, 5, seed=1)
    whole = match_population(layout, groups, flat_BP, reference_P, signs=True, scales=True)
    parts = [match_population(layout, groups, part, reference_P, signs=True, scales=True) for part in flat_BP.split(2)]
    joined = Matching.from_tensors(Matching.join(parts).to_tensors())
    expected_BP = apply_matching(layout, groups, flat_BP, whole)
    torch.testing.assert_close(apply_matching(layout, groups, flat_BP, joined), expected_BP)
    chosen = torch.tensor([3, 0, 3])
    picked_BP = apply_matching(layout, groups, flat_BP[chosen], joined.pick(chosen))
    torch.testing.assert_close(picked_BP, expected_BP[chosen])
    assert joined.pick(chosen).objective_after_B.equal(joined.objective_after_B[chosen])


def test_no_models_and_no_groups_are_fine(architectures):
    _, _, layout, groups = architectures["cnn-s"]
    empty = match_population(layout, groups, draw_models(layout, 0), draw_models(layout, 1)[0])
    assert [tuple(found.shape) for found in empty.permutations] == [(0, group.units) for group in groups]
    assert empty.objective_after_B.shape == (0,)
    flat_BP = draw_models(layout, 2)
    without = match_population(layout, (), flat_BP, flat_BP[0])
    assert apply_matching(layout, (), flat_BP, without).equal(flat_BP)


def test_bad_input_is_named(architectures):
    _, _, layout, groups = architectures["cnn-s"]
    flat_BP = draw_models(layout, 2)
    with pytest.raises(ConfigError, match="2463"):
        match_population(layout, groups, flat_BP[:, 1:], flat_BP[0])
    flat_BP[1, 5] = float("nan")
    with pytest.raises(ConfigError, match="1 of 2 models"):
        match_population(layout, groups, flat_BP, flat_BP[0])
