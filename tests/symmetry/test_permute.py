"""Fast permutations agree with index_select, axis by axis; windows and views show what the permuted weights hold."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from mzsane.config import NetworkConfig
from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network
from mzsane.symmetry.apply import permute
from mzsane.symmetry.apply.permute import cut_views, permute_weights, window_index
from mzsane.symmetry.groups import GroupMember, PermutationGroup, draw_permutations

QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def make_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def own(tensor, axis, units, slots=1, first=0, rows=None):
    """Return a member whose units own `slots` indices each, one after another."""
    indices = tuple(tuple(range(first + unit * slots, first + (unit + 1) * slots)) for unit in range(units))
    return GroupMember(tensor=tensor, axis=axis, indices=indices, rows=rows)


def make_cnn_s():
    """Return a CNN-s in float64 and its groups, the flatten's blocks included."""
    network = build_network(NetworkConfig(activation="tanh"), 1, 10).double()
    initialise_network(network, "kaiming_uniform", make_generator())
    shapes = {name: value.shape for name, value in network.named_parameters()}
    layers = [f"module_list.{number}" for number in (0, 3, 6, 9, 11)]
    groups = []
    for maker, user in pairwise(layers):
        units = shapes[f"{maker}.weight"][0]
        made = [own(f"{maker}.{part}", 0, units) for part in ("weight", "bias")]
        used = own(f"{user}.weight", 1, units, slots=shapes[f"{user}.weight"][1] // units)
        groups.append(PermutationGroup(units=units, members=(*made, used)))
    return network, tuple(groups)


def permute_slowly(layout, groups, permutations, flat_P):
    """Permute one model by index_select, one member after another."""
    tensors = {name: value[0].clone() for name, value in layout.unflatten(flat_P[None]).items()}
    for group, permutation in zip(groups, permutations, strict=True):
        for member in group.members:
            if member.tensor not in tensors:
                continue
            value = tensors[member.tensor]
            part = value if member.rows is None else value[slice(*member.rows)]
            index = torch.arange(part.shape[member.axis])
            for unit, indices in enumerate(member.indices):
                index[list(indices)] = torch.tensor(member.indices[int(permutation[unit])])
            part.copy_(part.index_select(member.axis, index))
    return layout.flatten(tensors)


@st.composite
def draw_case(draw):
    """Draw a layout and groups that touch any axes, in any pattern, several times, and rows only in part."""
    count = draw(st.integers(1, 4))
    shapes = [tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=4))) for _ in range(count)]
    names = [f"layer{number}.{draw(st.sampled_from(['weight', 'scale']))}" for number in range(count)]
    entries = {name: torch.empty(shape) for name, shape in zip(names, shapes, strict=True)}
    if draw(st.booleans()) and shapes[0]:
        entries[names[0].replace("weight", "bias").replace("scale", "bias")] = torch.empty(shapes[0][0])
    layout = TokenLayout.from_state_dict(entries, draw(st.integers(1, 9)))
    groups = []
    for _ in range(draw(st.integers(0, 5))):
        units = draw(st.integers(2, 3))
        members = [own("layer0.running_mean", 0, units)]
        free: dict[tuple[str, int], list[int]] = {}  # indices of an axis that no unit owns yet
        for name in draw(st.lists(st.sampled_from(list(entries)), max_size=4)):
            shape = entries[name].shape
            if not shape:
                continue
            axis = draw(st.integers(0, len(shape) - 1))
            left = free.setdefault((name, axis), list(draw(st.permutations(range(shape[axis])))))
            if len(left) < units:
                continue
            slots = draw(st.integers(1, len(left) // units))
            indices = tuple(tuple(left.pop() for _ in range(slots)) for _ in range(units))
            rows = None
            if axis == 1 and draw(st.booleans()):
                first = draw(st.integers(0, shape[0] - 1))
                rows = (first, draw(st.integers(first + 1, shape[0])))
            members.append(GroupMember(tensor=name, axis=axis, indices=indices, rows=rows))
        groups.append(PermutationGroup(units=units, members=tuple(members)))
    return layout, tuple(groups)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@QUICK
@given(case=draw_case(), batch=st.integers(0, 3), seed=st.integers(0, 99))
def test_permuted_weights_are_those_of_index_select(large, dtype, case, batch, seed):
    layout, groups = case
    flat_BP = torch.randn(batch, layout.weights, generator=make_generator(seed)).to(dtype)
    permutations = draw_permutations(groups, batch, make_generator(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permute, "_LARGE", 0 if large else 2**15)
        permuted_BP = permute_weights(layout, groups, permutations, flat_BP)
    for model in range(batch):
        expected_P = permute_slowly(layout, groups, [p[model] for p in permutations], flat_BP[model])
        assert permuted_BP[model].equal(expected_P)


@pytest.mark.parametrize("large", [False, True])
@QUICK
@given(case=draw_case(), data=st.data(), seed=st.integers(0, 99))
def test_window_index_cuts_the_tokens_of_the_permuted_weights(large, case, data, seed):
    layout, groups = case
    starts_B = torch.tensor(data.draw(st.lists(st.integers(0, layout.length - 1), min_size=1, max_size=4)))
    window = data.draw(st.integers(1, layout.length + 2))
    flat_BP = torch.randn(len(starts_B), layout.weights, generator=make_generator(seed))
    permutations = draw_permutations(groups, len(starts_B), make_generator(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permute, "_LARGE", 0 if large else 2**15)
        index_BWD = window_index(layout, groups, permutations, starts_B, window)
    windows_BWD = flat_BP.gather(1, index_BWD.clamp(min=0).flatten(1)).view(index_BWD.shape)
    windows_BWD = windows_BWD.masked_fill(index_BWD < 0, 0)
    tokens_BTD = layout.tokenize(permute_weights(layout, groups, permutations, flat_BP))
    for model, start in enumerate(starts_B.tolist()):
        expected_WD = tokens_BTD[model, start : start + window]
        assert windows_BWD[model, : len(expected_WD)].equal(expected_WD)
        assert (index_BWD[model, len(expected_WD) :] == -1).all()
        assert (index_BWD[model, : len(expected_WD)] >= 0).equal(layout.mask_TD[start : start + window])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("large", [False, True])
@QUICK
@given(case=draw_case(), data=st.data(), seed=st.integers(0, 99))
def test_views_are_the_model_and_permuted_versions_of_it(large, together, case, data, seed):
    layout, groups = case
    places = st.just(data.draw(st.integers(0, layout.length - 1))) if together else st.integers(0, layout.length - 1)
    starts_B = torch.tensor(data.draw(st.lists(places, min_size=1, max_size=4)))
    window = data.draw(st.integers(1, layout.length + 2))
    flat_BP = torch.randn(len(starts_B), layout.weights, generator=make_generator(seed))
    drawn = []  # for each model, the groups that were drawn and the permutations of each view

    def draw_all(chosen, batch, generator):
        permutations = draw_permutations(chosen, batch, generator)
        for first in range(0, batch, 2):
            drawn.append((chosen, [permutation[first : first + 2] for permutation in permutations]))
        return permutations

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permute, "draw_permutations", draw_all)
        if large:
            patch.setattr(permute, "_LARGE", 0)
        if not together:
            patch.setattr(permute, "_CHUNK", 1)  # one call a model, in the order of starts
        views_BVWD = cut_views(layout, groups, flat_BP, starts_B, window, 3, make_generator(seed))
    assert views_BVWD[:, 0].equal(cut(layout.tokenize(flat_BP), starts_B, window))
    order = [m for start in starts_B.unique().tolist() for m in (starts_B == start).nonzero().squeeze(1).tolist()]
    for model, (chosen, permutations) in zip(order, drawn, strict=True):
        for view in (1, 2):
            own = [permutation[view - 1 : view] for permutation in permutations]
            permuted_1P = permute_weights(layout, chosen, own, flat_BP[model : model + 1])
            expected_1WD = cut(layout.tokenize(permuted_1P), starts_B[model : model + 1], window)
            assert views_BVWD[model, view].equal(expected_1WD[0])


def cut(tokens_BTD, starts_B, window):
    """Cut windows, with zeros past the last token."""
    padded = torch.nn.functional.pad(tokens_BTD, (0, 0, 0, window))
    return torch.stack([padded[model, start : start + window] for model, start in enumerate(starts_B.tolist())])


def test_views_of_a_cnn_keep_its_function():
    network, groups = make_cnn_s()
    layout = TokenLayout.from_state_dict(dict(network.named_parameters()), 51)
    flat_P = layout.flatten({name: value.detach() for name, value in network.named_parameters()})
    images = torch.randn(4, 1, 28, 28, generator=make_generator(1), dtype=torch.float64)
    views_BVWD = cut_views(layout, groups, flat_P[None], torch.tensor([0]), layout.length, 4, make_generator(2))
    views = layout.detokenize(views_BVWD[0])
    assert len(views.unique(dim=0)) == 4
    with torch.no_grad():
        for version_P in views:
            outputs = functional_call(network, layout.unflatten(version_P), (images,))
            torch.testing.assert_close(outputs, network(images), atol=1e-10, rtol=0)


def test_views_repeat_with_the_seed():
    network, groups = make_cnn_s()
    layout = TokenLayout.from_state_dict(dict(network.named_parameters()), 51)
    flat_BP = torch.randn(5, layout.weights, generator=make_generator())
    starts_B = torch.tensor([0, 30, 0, 7, 30])
    first, again, other = (
        cut_views(layout, groups, flat_BP, starts_B, 20, 3, make_generator(seed)) for seed in (1, 1, 2)
    )
    assert first.equal(again)
    assert not first.equal(other)


def test_bad_input_is_named_before_any_work():
    network, groups = make_cnn_s()
    layout = TokenLayout.from_state_dict(dict(network.named_parameters()), 51)
    flat_BP = torch.zeros(2, layout.weights)
    permutations = draw_permutations(groups, 2, make_generator())
    starts_B = torch.tensor([0, 1])
    with pytest.raises(ConfigError, match="2463"):
        permute_weights(layout, groups, permutations, flat_BP[:, 1:])
    with pytest.raises(ConfigError, match=r"\(2, 8\)"):
        permute_weights(layout, groups, permutations[1:], flat_BP)
    with pytest.raises(ConfigError, match="at least 1 token, not 0"):
        window_index(layout, groups, permutations, starts_B, 0)
    with pytest.raises(ConfigError, match="66 tokens"):
        cut_views(layout, groups, flat_BP, torch.tensor([0, 66]), 8, 2, make_generator())
    with pytest.raises(ConfigError, match="0 views"):
        cut_views(layout, groups, flat_BP, starts_B, 8, 0, make_generator())
    with pytest.raises(ConfigError, match="2 models"):
        cut_views(layout, groups, flat_BP, starts_B[:1], 8, 2, make_generator())
