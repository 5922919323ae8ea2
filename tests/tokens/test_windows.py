"""Windows: the right slice, padded with nothing, drawn evenly; and halo windows of any sequence length."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from mzsane.errors import ConfigError
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.symmetry import derive_groups
from mzsane.tokens.windows import WindowSource, check_positions, draw_windows, map_windows

TOKEN_DIM = 5


def make_source(widths=(3, 4, 2), models=4, seed=0):
    """Return random models of a chain of linear layers as a source, with their network."""
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.Tanh())]
    network = nn.Sequential(*layers)
    layout = TokenLayout.from_state_dict(network.state_dict(), TOKEN_DIM)
    flat_NP = torch.randn(models, layout.weights, generator=torch.Generator().manual_seed(seed))
    return WindowSource(flat_NP, layout, derive_groups(network)), network


def make_numbered(widths, models, first=0):
    """Return models whose every weight is their number: a window tells whose it is."""
    source, _ = make_source(widths, models)
    numbers_N1 = torch.arange(first, first + models, dtype=torch.float32)[:, None]
    return WindowSource(numbers_N1.expand(-1, source.layout.weights), source.layout, source.groups)


def generate(seed=0):
    return torch.Generator().manual_seed(seed)


def find_row(source, flat_P):
    (row,) = [i for i, other in enumerate(source.flat_NP) if torch.equal(other, flat_P)]
    return row


@pytest.mark.parametrize("extra", [0, 1, 7])
def test_whole_models_are_their_tokens_and_their_permutations(extra):
    source, network = make_source()
    layout, length = source.layout, source.layout.length
    batch = draw_windows([source], length + extra, 4, generate())
    assert batch.canonical_BWD.shape == batch.permuted_BWD.shape == (4, length + extra, TOKEN_DIM)
    inputs = torch.randn(6, 3, generator=generate(1))
    moved, rows = 0, set()
    for b in range(4):
        flat_P = layout.detokenize(batch.canonical_BWD[b, :length])
        rows.add(find_row(source, flat_P))
        assert torch.equal(batch.canonical_BWD[b, :length], layout.tokenize(flat_P))
        permuted_P = layout.detokenize(batch.permuted_BWD[b, :length])
        moved += not torch.equal(permuted_P, flat_P)
        assert torch.equal(permuted_P.sort().values, flat_P.sort().values)
        with torch.no_grad():
            before, after = (functional_call(network, layout.unflatten(f), (inputs,)) for f in (flat_P, permuted_P))
        torch.testing.assert_close(after, before)
        assert torch.equal(batch.mask_BWD[b, :length], layout.mask_TD)
        assert torch.equal(batch.positions_BW3[b, :length], layout.positions_T3)
    assert rows == {0, 1, 2, 3}
    assert moved >= 3


@pytest.mark.parametrize("extra", [1, 7])
def test_padding_is_zero_and_masked(extra):
    source, _ = make_source()
    source = WindowSource(source.flat_NP.abs() + 1, source.layout, source.groups)  # no weight is zero
    length = source.layout.length
    batch = draw_windows([source], length + extra, 3, generate())
    assert not batch.mask_BWD[:, length:].any()
    assert not batch.positions_BW3[:, length:].any()
    for view in (batch.canonical_BWD, batch.permuted_BWD):
        assert torch.equal(view != 0, batch.mask_BWD)
    assert batch.mask_BWD.dtype == torch.bool
    assert batch.positions_BW3.dtype == torch.int64


def test_short_windows_are_the_right_slice():
    source, _ = make_source((3, 6, 4, 2), models=5)
    layout, window = source.layout, 4
    starts = set()
    for seed in range(12):
        batch = draw_windows([source], window, 5, generate(seed))
        rows = set()
        for b in range(5):
            start = int(batch.positions_BW3[b, 0, 0])
            starts.add(start)
            tokens = slice(start, start + window)
            assert torch.equal(batch.positions_BW3[b], layout.positions_T3[tokens])
            assert torch.equal(batch.mask_BWD[b], layout.mask_TD[tokens])
            slices = [layout.tokenize(flat_P)[tokens] for flat_P in source.flat_NP]
            (row,) = [i for i, other in enumerate(slices) if torch.equal(batch.canonical_BWD[b], other)]
            rows.add(row)
        assert rows == set(range(5))
    assert starts == set(range(layout.length - window + 1))


def test_short_windows_show_the_same_places_of_a_permuted_model():
    """Weights that are their own flat index tell where a permuted window took them from."""
    source, _ = make_source((3, 6, 4, 2), models=1)
    layout = source.layout
    numbered = WindowSource(torch.arange(layout.weights).float()[None], layout, source.groups)
    bounds = torch.tensor(list(layout.offsets.values()))
    moved = 0
    for seed in range(20):
        batch = draw_windows([numbered], 4, 2, generate(seed))
        mask = batch.mask_BWD
        places, taken = batch.canonical_BWD[mask].long(), batch.permuted_BWD[mask].long()
        assert torch.equal(torch.bucketize(places, bounds, right=True), torch.bucketize(taken, bounds, right=True))
        for b in range(2):
            assert len(batch.permuted_BWD[b][mask[b]].unique()) == int(mask[b].sum())
        moved += not torch.equal(places, taken)
    assert moved > 10


def test_sources_of_different_layouts_share_a_batch():
    small, large = make_numbered((2, 2, 2), 3), make_numbered((3, 6, 4, 2), 5, first=100)
    lengths = {False: small.layout.length, True: large.layout.length}
    window = 8
    assert lengths[False] < window < lengths[True]
    batch = draw_windows([small, large], window, 8, generate())
    owners = []
    for b in range(8):
        values = batch.canonical_BWD[b][batch.mask_BWD[b]].unique()
        assert len(values) == 1
        owners.append(int(values))
        real = int(batch.mask_BWD[b].any(dim=1).sum())
        assert real == min(lengths[owners[-1] >= 100], window)
        layout = (large if owners[-1] >= 100 else small).layout
        start = int(batch.positions_BW3[b, 0, 0])
        assert torch.equal(batch.positions_BW3[b, :real], layout.positions_T3[start : start + real])
    assert sorted(owners) == [0, 1, 2, 100, 101, 102, 103, 104]


def test_every_checkpoint_is_drawn_equally_often():
    sources = [make_numbered((2, 2, 2), 3), make_numbered((3, 6, 4, 2), 9, first=3)]
    counts = torch.zeros(12)
    generator = generate()
    for _ in range(600):
        batch = draw_windows(sources, 6, 4, generator)
        owners = batch.canonical_BWD.amax(dim=(1, 2)).long()
        assert len(owners.unique()) == 4
        counts[owners] += 1
    # 200 each; the deviation of drawing without repeats is 11.5.
    assert counts.min() > 200 - 5 * 11.5
    assert counts.max() < 200 + 5 * 11.5


def test_checkpoints_repeat_only_when_all_were_drawn():
    source = make_numbered((2, 2, 2), 3)
    owners = draw_windows([source], 6, 8, generate()).canonical_BWD.amax(dim=(1, 2)).long()
    assert sorted(torch.bincount(owners).tolist()) == [2, 3, 3]


def test_windows_follow_their_generator_alone():
    source, _ = make_source((3, 6, 4, 2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (draw_windows([source], 4, 4, generate(seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.permuted_BWD, same.permuted_BWD)
    assert not torch.equal(one.permuted_BWD, other.permuted_BWD)


def test_positions_beyond_the_tables_are_refused():
    source, _ = make_source((3, 6, 4, 2))
    assert source.layout.positions_T3.amax(dim=0).tolist() == [15, 2, 5]
    check_positions([source.layout], (16, 3, 6))
    for sizes in ((15, 3, 6), (16, 2, 6), (16, 3, 5)):
        with pytest.raises(ConfigError, match=r"max_positions \[.*\] is too small: .* \[15, 2, 5\]"):
            check_positions([make_source((2, 2))[0].layout, source.layout], sizes)


@given(data=st.data(), length=st.integers(1, 40), halo=st.integers(0, 4), batch=st.integers(1, 3))
def test_a_local_function_on_halo_windows_equals_it_on_the_whole(data, length, halo, batch):
    window = data.draw(st.integers(2 * halo + 1, 2 * halo + 12))
    sequence_BTX = torch.randn(batch, length, 2, dtype=torch.float64, generator=generate(length))
    positions_T3 = torch.arange(length)[:, None].expand(-1, 3) * torch.tensor([1, 10, 100])
    kernel = torch.randn(3, 2, 2 * halo + 1, dtype=torch.float64, generator=generate(halo))
    sizes = []

    def function(part_BWX, part_BW3):
        assert part_BWX.shape[:2] == part_BW3.shape[:2]
        sizes.append(part_BWX.shape[1])
        mixed = nn.functional.conv1d(part_BWX.transpose(1, 2), kernel, padding=halo).transpose(1, 2)
        return torch.cat([mixed, part_BW3.double()], dim=2)  # positions come with their tokens

    whole = function(sequence_BTX, positions_T3.expand(batch, -1, -1))
    stitched = map_windows(function, sequence_BTX, positions_T3, window, halo)
    torch.testing.assert_close(stitched, whole, atol=1e-12, rtol=0)
    assert max(sizes[1:]) == min(window, length)


@given(length=st.integers(1, 40), window=st.integers(1, 40))
def test_every_window_size_and_the_default_halo_fit_every_length(length, window):
    sequence_BTX = torch.randn(1, length, 1, generator=generate())
    result = map_windows(lambda x, _: x, sequence_BTX, torch.zeros(length, 3, dtype=torch.int64), window, window // 4)
    assert torch.equal(result, sequence_BTX)


@pytest.mark.parametrize(("window", "halo"), [(10, 5), (10, 6), (10, -1), (1, 1), (2, 1)])
def test_a_halo_that_leaves_nothing_is_refused(window, halo):
    with pytest.raises(
        ConfigError, match=rf"halo must be .* less than half of the window of {window} tokens, not {halo}"
    ):
        map_windows(lambda x, _: x, torch.zeros(1, 11, 1), torch.zeros(11, 3, dtype=torch.int64), window, halo)
