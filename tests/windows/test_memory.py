"""The bank: the mixture kept, every checkpoint once an epoch, windows shared, and batches a function of the step."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.symmetry.groups import GroupMember, PermutationGroup
from mzsane.windows.memory import MixturePlan, WindowsInMemory
from mzsane.windows.windows import WindowSource

TOKEN_DIM = 5
QUICK = settings(max_examples=30, deadline=None, derandomize=True)
SMALL, MIDDLE, LONG = (2, 2, 2), (3, 6, 4, 2), (4, 9, 9, 3)  # 4, 16 and 30 tokens


def make_layout(widths):
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.Tanh())]
    return TokenLayout.from_network(nn.Sequential(*layers), TOKEN_DIM)


def make_source(widths, models, weight=1.0, dtype=torch.float32):
    """Return models whose every weight is their number, from 1: a window tells whose it is."""
    layout = make_layout(widths)
    flat_NP = torch.arange(1, models + 1)[:, None].expand(-1, layout.weights).to(dtype)
    return WindowSource(flat_NP, layout, (), weight)


def list_pieces(batch):
    """Return (source, row) of every piece of a batch, window by window."""
    pieces = []
    for view_WD, segments_W, source_W in zip(batch.views_VBWD[0], batch.segments_BW, batch.source_BW, strict=True):
        for segment in range(1, int(segments_W.max()) + 1):
            chosen = segments_W == segment
            (source,) = source_W[chosen].unique().tolist()
            pieces.append((source, int(view_WD[chosen].max()) - 1))
    return pieces


def draw_windows(bank, first, last):
    """Return the pieces of each window from `first` to `last` of a bank of one window a step."""
    return [list_pieces(bank.draw(step)) for step in range(first, last)]


sources = st.lists(st.tuples(st.sampled_from([SMALL, MIDDLE, LONG]), st.integers(1, 12)), min_size=1, max_size=4)


@QUICK
@given(chosen=sources, window=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_pass_shows_every_checkpoint_once(chosen, window, seed):
    bank = WindowsInMemory([make_source(*source) for source in chosen], window, 1, seed, views=1)
    everyone = sorted((number, row) for number, (_, count) in enumerate(chosen) for row in range(count))
    orders = []
    for first in (0, bank.plan.windows):
        windows = draw_windows(bank, first, first + bank.plan.windows)
        orders.append([piece for pieces in windows for piece in pieces])
        assert sorted(orders[-1]) == everyone
    assert len(everyone) < 8 or orders[0] != orders[1]


@QUICK
@given(chosen=sources, window=st.integers(1, 40), batch_size=st.integers(1, 7), step=st.integers(0, 30))
def test_batches_cut_one_sequence_of_windows(chosen, window, batch_size, step):
    single = WindowsInMemory([make_source(*source) for source in chosen], window, 1, 3, views=1)
    bank = WindowsInMemory([make_source(*source) for source in chosen], window, batch_size, 3, views=1)
    windows = draw_windows(single, step * batch_size, (step + 1) * batch_size)
    assert list_pieces(bank.draw(step)) == [piece for pieces in windows for piece in pieces]


@QUICK
@given(chosen=sources, window=st.integers(1, 40))
def test_small_models_share_windows_and_others_do_not(chosen, window):
    bank = WindowsInMemory([make_source(*source) for source in chosen], window, 1, 0, views=1)
    lengths = [make_layout(widths).length for widths, _ in chosen]
    pairs = []
    for pieces in draw_windows(bank, 0, bank.plan.windows):
        tokens = [min(lengths[source], window) for source, _ in pieces]
        assert sum(tokens) <= window
        assert len(pieces) == 1 or max(tokens) <= window // 2
        if max(tokens) <= window // 2:
            pairs.append(sum(tokens))
    # Two windows that one could hold are only left over by turns that came too late for the first.
    assert sum(a + b <= window for a, b in pairwise(sorted(pairs))) <= 1


def test_models_of_different_zoos_meet_in_a_window():
    bank = WindowsInMemory([make_source(SMALL, 50), make_source(MIDDLE, 50)], 40, 4, 0, views=1)
    mixed = sum(
        len({source for source, _ in pieces}) > 1 for step in range(9) for pieces in [list_pieces(bank.draw(step))]
    )
    assert mixed == 9
    filled = torch.cat([bank.draw(step).segments_BW for step in range(bank.plan.windows // 4)]) > 0
    assert filled.float().mean() > 0.9


def count_draws(bank, passes):
    windows = draw_windows(bank, 0, passes * bank.plan.windows)
    return Counter(piece for pieces in windows for piece in pieces)


@pytest.mark.parametrize(
    ("mixture", "weights", "shares"),
    [
        ("checkpoints", (1, 1, 1), (0.1, 0.3, 0.6)),
        ("checkpoints", (6, 1, 0.5), (0.5, 0.25, 0.25)),
        ("equal", (1, 1, 1), (1 / 3, 1 / 3, 1 / 3)),
        ("equal", (1, 2, 1), (0.25, 0.5, 0.25)),
    ],
)
def test_draws_follow_the_mixture(mixture, weights, shares):
    chosen = [
        (widths, count, weight)
        for widths, count, weight in zip((SMALL, LONG, MIDDLE), (3, 9, 18), weights, strict=True)
    ]
    bank = WindowsInMemory([make_source(*source) for source in chosen], 12, 1, 0, views=1, mixture=mixture)
    counts = count_draws(bank, 1)
    total = counts.total()
    for source, share in enumerate(shares):
        rows = [counts[source, row] for row in range(chosen[source][1])]
        assert abs(sum(rows) / total - share) < 1e-3
        assert max(rows) - min(rows) <= 1  # without replacement, also across epochs


def test_draws_of_a_source_are_spread_over_a_pass():
    """Each tenth of a pass holds each source's share: windows are shuffled, not sorted by source."""
    bank = WindowsInMemory([make_source(LONG, 300), make_source(LONG, 700)], 12, 1, 0, views=1)
    sources = [pieces[0][0] for pieces in draw_windows(bank, 0, 1000)]
    parts = torch.tensor(sources).view(10, 100).sum(dim=1).float()
    assert ((parts - 70) ** 2 / 21).sum() < 25  # chi-square of 10, 99.5 %


def test_every_order_of_checkpoints_is_equally_likely():
    counts = Counter()
    for seed in range(600):
        bank = WindowsInMemory([make_source(LONG, 3)], 12, 3, seed, views=1)
        counts[tuple(row for _, row in list_pieces(bank.draw(0)))] += 1
    assert len(counts) == 6
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 16.7  # chi-square of 5, 99.5 %


def make_hidden_groups(layout):
    units = layout.tensors[0].shape[0]
    indices = tuple((unit,) for unit in range(units))
    places = [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]
    members = tuple(GroupMember(tensor=name, axis=axis, indices=indices) for name, axis in places)
    return (PermutationGroup(units=units, members=members),)


def test_a_step_is_a_function_of_seed_and_step():
    layout = make_layout(LONG)
    flat_NP = torch.randn(7, layout.weights, generator=torch.Generator().manual_seed(0))
    mixed = [WindowSource(flat_NP, layout, make_hidden_groups(layout)), make_source(SMALL, 9, 2.0)]

    def make_bank(seed):
        return WindowsInMemory(mixed, 12, 4, seed, views=3)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = make_bank(1)
    forward = [one.draw(step) for step in range(12)]
    assert torch.equal(before, torch.get_rng_state())
    for step in (7, 0, 11, 3):
        for again in (one.draw(step), make_bank(1).draw(step)):
            assert all(
                torch.equal(a, b) for a, b in zip(vars(again).values(), vars(forward[step]).values(), strict=True)
            )
        assert not torch.equal(make_bank(2).draw(step).views_VBWD, forward[step].views_VBWD)
    assert not torch.equal(forward[0].views_VBWD, forward[1].views_VBWD)


def test_sources_of_different_dtypes_share_a_batch():
    bank = WindowsInMemory([make_source(SMALL, 3, dtype=torch.bfloat16), make_source(SMALL, 3)], 20, 2, 0, views=2)
    assert bank.draw(0).views_VBWD.dtype == torch.float32
    assert {source for source, _ in list_pieces(bank.draw(0))} == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": []}, "composition is empty"),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"views": 0}, "views must be at least 1, not 0"),
        ({"sources": [make_source(SMALL, 0)]}, "slice 0 .* has no checkpoints"),
        (
            {"sources": [make_source(SMALL, 2), make_source(SMALL, 2, 1e-5)]},
            "weight of slice 1 .*, 1e-05, .* half a draw",
        ),
        (
            {"sources": [WindowSource(torch.zeros(3, 11), make_layout(SMALL))]},
            r"slice 0 .* weights of shape \(3, 11\); its layout has 12 a model",
        ),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    settings = {"sources": [make_source(SMALL, 2)], "window": 4, "batch_size": 2, "seed": 0, **arguments}
    with pytest.raises(ConfigError, match=message):
        WindowsInMemory(**settings)


def test_a_plan_needs_no_weights():
    plan = MixturePlan([100_000], [7], [1.0], 66, 0)
    pieces = plan.place(plan.windows // 2, 64)
    assert plan.windows == -(-100_000 // 9)
    assert len(pieces.draw_K) == 64 * 9
    assert len(pieces.draw_K.unique()) == 64 * 9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("views", [1, 3])
def test_a_gpu_draws_the_same_windows(views):
    layout = make_layout(LONG)
    flat_NP = torch.randn(7, layout.weights, generator=torch.Generator().manual_seed(0))
    mixed = [WindowSource(flat_NP, layout, make_hidden_groups(layout)), make_source(SMALL, 9), make_source(MIDDLE, 9)]
    here, there = (WindowsInMemory(mixed, 20, 8, 0, views, device) for device in ("cpu", "cuda"))
    for step in range(5):
        batch = there.draw(step)
        assert batch.views_VBWD.is_cuda
        pairs = zip(vars(batch.to("cpu")).values(), vars(here.draw(step)).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
