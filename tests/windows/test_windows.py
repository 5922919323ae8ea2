"""Windows: models packed exactly, seen as if alone, parts of long ones at every place; halo windows of any length."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.groups import GroupMember, PermutationGroup
from mzsane.windows.assembly import Pieces, WindowAssembler, WindowCutter
from mzsane.windows.windows import check_composition, check_positions, map_windows

TOKEN_DIM = 5
QUICK = settings(max_examples=30, deadline=None, derandomize=True)
WIDTHS = st.lists(st.integers(1, 7), min_size=2, max_size=5).map(tuple)


def make_network(widths):
    return nn.Sequential(*[layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.Tanh())])


def make_layout(widths):
    return TokenLayout.from_network(make_network(widths), TOKEN_DIM)


def make_groups(widths):
    """Return the groups of the hidden units of a chain of linear layers."""
    groups = []
    for number, units in enumerate(widths[1:-1]):
        indices = tuple((unit,) for unit in range(units))
        places = [(f"{2 * number}.weight", 0), (f"{2 * number}.bias", 0), (f"{2 * number + 2}.weight", 1)]
        members = tuple(GroupMember(tensor=name, axis=axis, indices=indices) for name, axis in places)
        groups.append(PermutationGroup(units=units, members=members))
    return tuple(groups)


def number_weights(layout, models):
    """Return models whose every weight is another whole number, from 1: a window tells what it was cut from."""
    return torch.arange(1.0, models * layout.weights + 1).view(models, layout.weights)


def generate(seed=0):
    return torch.Generator().manual_seed(seed)


def make_pieces(*pieces):
    """Make pieces of (window, offset, segment, source, draw)."""
    return Pieces(*torch.tensor(pieces).T.contiguous())


def cut(architectures, flats, pieces, batch, window, views=1, seed=0):
    """Assemble a batch; draw `k` of a source is its row `k`."""
    cutters = [WindowCutter(make_layout(widths), make_groups(widths), window) for widths in architectures]
    shape = (views, batch, window)
    assembler = WindowAssembler(cutters, shape)
    return assembler.assemble(pieces, lambda source, rows: flats[source][rows], generate(seed))


@st.composite
def draw_packing(draw):
    """Draw architectures, a window, and pieces that follow one another in windows, with gaps after some of them."""
    architectures = draw(st.lists(WIDTHS, min_size=1, max_size=3))
    lengths = [make_layout(widths).length for widths in architectures]
    window = draw(st.integers(1, 2 * max(lengths)))
    pieces, batch, offset = [], 1, 0
    for row in range(draw(st.integers(1, 8))):
        source = draw(st.integers(0, len(lengths) - 1))
        length = min(lengths[source], window)
        if offset + length > window or draw(st.booleans()):
            batch, offset = batch + 1, 0
        segment = sum(piece[0] == batch - 1 for piece in pieces) + 1
        pieces.append((batch - 1, offset, segment, source, row))
        offset += length
    return architectures, window, pieces, batch


@QUICK
@given(packing=draw_packing(), views=st.integers(1, 3), seed=st.integers(0, 99))
def test_unpacking_the_segments_gives_back_the_models(packing, views, seed):
    architectures, window, pieces, batch = packing
    layouts = [make_layout(widths) for widths in architectures]
    flats = [number_weights(layout, len(pieces)) for layout in layouts]
    result = cut(architectures, flats, make_pieces(*pieces), batch, window, views, seed)
    assert result.views_VBWD.shape == (views, batch, window, TOKEN_DIM)
    filled = torch.zeros(batch, window, dtype=torch.bool)
    for b, offset, segment, source, row in pieces:
        layout = layouts[source]
        places = slice(offset, offset + min(layout.length, window))
        filled[b, places] = True
        assert result.segments_BW[b, places].unique().tolist() == [segment]
        assert result.source_BW[b, places].unique().tolist() == [source]
        start = int(result.positions_BW3[b, offset, 0])
        shown = slice(start, start + places.stop - places.start)
        assert start == 0 or layout.length > window
        assert torch.equal(result.positions_BW3[b, places], layout.positions_T3[shown])
        assert torch.equal(result.mask_BWD[b, places], layout.mask_TD[shown])
        assert torch.equal(result.views_VBWD[0, b, places], layout.tokenize(flats[source][row])[shown])
        assert torch.equal(result.views_VBWD[:, b, places] > 0, layout.mask_TD[shown].expand(views, -1, -1))
        if layout.length <= window:
            for view_WD in result.views_VBWD[1:, b, places]:
                assert torch.equal(layout.detokenize(view_WD).sort().values, flats[source][row])
    assert not result.views_VBWD[:, ~filled].any()
    assert not result.mask_BWD[~filled].any()
    assert not result.positions_BW3[~filled].any()
    assert not result.segments_BW[~filled].any()
    assert (result.source_BW[~filled] == -1).all()
    assert torch.equal(result.weights_BW, result.mask_BWD.sum(dim=2))
    kinds = (result.mask_BWD, result.weights_BW, result.positions_BW3, result.segments_BW, result.source_BW)
    assert [kind.dtype for kind in kinds] == [torch.bool] + 4 * [torch.int64]


def test_permuted_versions_keep_the_function_and_differ():
    widths = (3, 6, 5, 2)
    layout = make_layout(widths)
    flat_NP = torch.randn(2, layout.weights, generator=generate())
    length = layout.length
    pieces = make_pieces((0, 0, 1, 0, 0), (0, length, 2, 0, 1))
    views_VWD = cut([widths], [flat_NP], pieces, 1, 2 * length, views=4).views_VBWD[:, 0]
    inputs = torch.randn(6, 3, generator=generate(1))
    network = make_network(widths)
    for row, part in enumerate((slice(length), slice(length, None))):
        flats = [layout.detokenize(view_WD[part]) for view_WD in views_VWD]
        assert len({tuple(flat_P.tolist()) for flat_P in flats}) == 4
        with torch.no_grad():
            outputs = [functional_call(network, layout.unflatten(flat_P), (inputs,)) for flat_P in flats]
            expected = functional_call(network, layout.unflatten(flat_NP[row]), (inputs,))
        for output in outputs:
            torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_halves_are_delivered_as_float32(dtype, views):
    widths = (3, 4, 2)
    layout = make_layout(widths)
    flat_NP = torch.randn(3, layout.weights, generator=generate()).to(dtype)
    for window in (layout.length, layout.length - 1):
        result = cut([widths], [flat_NP], make_pieces((0, 0, 1, 0, 2)), 1, window, views)
        start = int(result.positions_BW3[0, 0, 0])
        assert result.views_VBWD.dtype == torch.float32
        expected = layout.tokenize(flat_NP[2].float())[start : start + window]
        assert torch.equal(result.views_VBWD[0, 0], expected)


def test_every_place_of_a_long_model_is_seen_as_often_as_the_middle_or_more():
    """A start inside has one place of the unclamped windows, the first and the last have a window's length of them."""
    widths, window, batch = (3, 6, 4, 2), 4, 20_000
    layout = make_layout(widths)
    pieces = make_pieces(*[(b, 0, 1, 0, 0) for b in range(batch)])
    result = cut([widths], [number_weights(layout, 1)], pieces, batch, window)
    counts = torch.bincount(result.positions_BW3[:, 0, 0], minlength=layout.length - window + 1)
    shares = torch.ones(layout.length - window + 1)
    shares[[0, -1]] = window
    expected = batch * shares / shares.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 2.5 * len(counts)  # chi-square; about 1 a place is usual
    seen = torch.bincount(result.positions_BW3[..., 0].flatten(), minlength=layout.length)
    middle = batch * window / (layout.length + window - 1)
    assert seen.min() > 0.95 * middle
    assert seen.max() < 2.0 * middle


@pytest.mark.parametrize(
    ("layouts", "counts", "weights", "message"),
    [
        ([], [], [], "composition is empty"),
        ([(2, 2)], [0], [1.0], "slice 0 .* has no checkpoints"),
        ([(2, 2)] * 2, [1, 1], [1.0, 0.0], "weight of slice 1 .* above 0, not 0.0"),
        ([(2, 2)], [1], [float("nan")], "weight of slice 0 .* not nan"),
    ],
)
def test_compositions_that_cannot_be_drawn_from_are_refused(layouts, counts, weights, message):
    with pytest.raises(ConfigError, match=message):
        check_composition([make_layout(widths) for widths in layouts], counts, weights)


def test_mixed_token_widths_are_refused():
    network = make_network((2, 2))
    layouts = [TokenLayout.from_network(network, width) for width in (4, 6)]
    with pytest.raises(ConfigError, match=r"different widths: \[4, 6\]"):
        check_composition(layouts, [1, 1], [1.0, 1.0])


def test_positions_beyond_the_tables_are_refused():
    layout = make_layout((3, 6, 4, 2))
    assert layout.positions_T3.amax(dim=0).tolist() == [15, 2, 5]
    check_positions([layout], (16, 3, 6))
    for sizes in ((15, 3, 6), (16, 2, 6), (16, 3, 5)):
        with pytest.raises(ConfigError, match=r"max_positions \[.*\] is too small .* \[16, 3, 6\]"):
            check_positions([make_layout((2, 2)), layout], sizes)


@QUICK
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


@QUICK
@given(length=st.integers(1, 40), window=st.integers(1, 40))
def test_every_window_size_and_the_default_halo_fit_every_length(length, window):
    sequence_BTX = torch.randn(1, length, 1, generator=generate())
    result = map_windows(lambda x, _: x, sequence_BTX, torch.zeros(length, 3, dtype=torch.int64), window, window // 4)
    assert torch.equal(result, sequence_BTX)


@pytest.mark.parametrize("length", [7, 40])
def test_windows_of_all_sequences_are_taken_so_many_at_once(length, monkeypatch):
    sequence_BTX = torch.randn(5, length, 2, generator=generate())
    positions_T3 = torch.arange(length)[:, None].expand(-1, 3)
    calls = []

    def function(part_BWX, part_BW3):
        calls.append(part_BWX.shape[0] * part_BWX.shape[1])
        return part_BWX.cumsum(dim=1) * part_BW3[..., :1]

    at_once = map_windows(function, sequence_BTX, positions_T3, 12, 2)
    assert len(calls) == 1
    monkeypatch.setattr("mzsane.windows.windows._TOKENS_AT_ONCE", {"cpu": 30})
    torch.testing.assert_close(map_windows(function, sequence_BTX, positions_T3, 12, 2), at_once)
    assert len(calls) > 2
    assert max(calls[1:]) <= 30


@pytest.mark.parametrize(("window", "halo"), [(10, 5), (10, 6), (10, -1), (1, 1), (2, 1)])
def test_a_halo_that_leaves_nothing_is_refused(window, halo):
    with pytest.raises(
        ConfigError, match=rf"halo must be .* less than half of the window of {window} tokens, not {halo}"
    ):
        map_windows(lambda x, _: x, torch.zeros(1, 11, 1), torch.zeros(11, 3, dtype=torch.int64), window, halo)
