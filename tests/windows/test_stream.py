"""The stream: the bank's windows from row groups, each read once an epoch, few in memory, exact from any step."""

import threading
import weakref
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.tokens.store import TokenTable, write_weights
from mzsane.windows.memory import WindowsInMemory
from mzsane.windows.row_groups import StreamSource, stream_table
from mzsane.windows.stream import WindowStream
from mzsane.windows.windows import WindowSource

TOKEN_DIM = 5
QUICK = settings(max_examples=20, deadline=None, derandomize=True)
SMALL, MIDDLE, LONG = (2, 2, 2), (3, 6, 4, 2), (4, 9, 9, 3)  # 4, 16 and 30 tokens


class Groups:
    """Row groups of models whose every weight is their number, from 1; notes what is read and what is alive."""

    def __init__(self, layout, counts):
        self.layout, self.counts = layout, counts
        self.row_bytes = 4 * layout.weights
        self.reads, self.alive, self.most = [], set(), 0
        self.lock = threading.Lock()

    def read(self, number):
        first = 1 + sum(self.counts[:number])
        flat_NP = torch.arange(float(first), first + self.counts[number])[:, None].repeat(1, self.layout.weights)
        with self.lock:
            self.reads.append(number)
            self.alive.add(len(self.reads))
            weakref.finalize(flat_NP, self.alive.discard, len(self.reads))
            self.most = max(self.most, len(self.alive))
        return flat_NP


def make_layout(widths):
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.Tanh())]
    return TokenLayout.from_network(nn.Sequential(*layers), TOKEN_DIM)


def make_source(widths, counts, **settings):
    layout = make_layout(widths)
    return StreamSource(Groups(layout, counts), layout, **settings)


def hold(sources, groups):
    """Return bytes for so many row groups of each source beside the one that is being read."""
    sizes = [source.row_groups.row_bytes * max(source.row_groups.counts) for source in sources]
    return max(sizes) + groups * sum(sizes)


def list_pieces(batch):
    """Return (source, row) of every piece of a batch, window by window."""
    pieces = []
    for view_WD, segments_W, source_W in zip(batch.views_VBWD[0], batch.segments_BW, batch.source_BW, strict=True):
        for segment in range(1, int(segments_W.max()) + 1):
            chosen = segments_W == segment
            pieces.append((int(source_W[chosen][0]), int(view_WD[chosen].max()) - 1))
    return pieces


def open_stream(sources, window=12, batch_size=1, seed=0, held=3, **settings):
    return WindowStream(sources, window, batch_size, seed, hold(sources, held), **{"views": 1, **settings})


counts = st.lists(st.integers(1, 6), min_size=1, max_size=6)
chosen_sources = st.lists(st.tuples(st.sampled_from([SMALL, MIDDLE, LONG]), counts), min_size=1, max_size=3)


@QUICK
@given(chosen=chosen_sources, window=st.integers(1, 40), held=st.integers(2, 5), seed=st.integers(0, 99))
def test_an_epoch_shows_every_checkpoint_once(chosen, window, held, seed):
    sources = [make_source(*source) for source in chosen]
    everyone = sorted((number, row) for number, (_, sizes) in enumerate(chosen) for row in range(sum(sizes)))
    with open_stream(sources, window, seed=seed, held=held) as stream:
        for epoch in range(2):
            steps = range(epoch * stream.plan.windows, (epoch + 1) * stream.plan.windows)
            assert sorted(piece for step in steps for piece in list_pieces(stream.draw(step))) == everyone


@QUICK
@given(chosen=chosen_sources, window=st.integers(1, 40), batch_size=st.integers(1, 5), step=st.integers(0, 9))
def test_the_mixture_is_that_of_the_bank(chosen, window, batch_size, step):
    sources = [make_source(*source, weight=1.0 + number) for number, source in enumerate(chosen)]
    same = [
        WindowSource(torch.zeros(sum(s.row_groups.counts), s.layout.weights), s.layout, (), s.weight) for s in sources
    ]
    there = WindowsInMemory(same, window, batch_size, 5, views=1).draw(step)
    with open_stream(sources, window, batch_size, seed=5) as stream:
        here = stream.draw(step)
    for name in ("mask_BWD", "weights_BW", "positions_BW3", "segments_BW", "source_BW"):
        assert torch.equal(getattr(here, name), getattr(there, name))


@pytest.mark.parametrize("window", [12, 40])
def test_killed_at_any_step_it_goes_on_with_the_same_bits(window):
    def open_anew():
        sources = [make_source(SMALL, [5, 9, 2, 7]), make_source(LONG, [3] * 8, reuse=2)]
        return open_stream(sources, window, batch_size=2, held=2, views=2)

    steps = 60  # several epochs of both
    with open_anew() as stream:
        forward = [stream.draw(step) for step in range(steps)]
    assert len({tuple(list_pieces(batch)) for batch in forward}) > 20
    for step in range(steps):
        with open_anew() as stream:
            for again, before in zip(
                (stream.draw(step), stream.draw(step + 1)), forward[step : step + 2], strict=False
            ):
                pairs = zip(vars(again).values(), vars(before).values(), strict=True)
                assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("reuse", [1, 3])
def test_each_row_group_is_read_once_an_epoch_and_few_are_held(reuse):
    source = make_source(LONG, [4] * 20, reuse=reuse)
    held = 4
    with open_stream([source], batch_size=4, held=held) as stream:
        for step in range(20 * reuse):
            stream.draw(step)
            assert len(source.row_groups.alive) <= held
    reads = Counter(source.row_groups.reads)
    assert set(reads) == set(range(20))
    assert reads.total() <= 20 + held  # the next epoch's first ones were read ahead
    assert source.row_groups.most <= held + 1  # the one being read comes before the one it replaces has gone


def test_reuse_draws_a_checkpoint_several_times_while_it_is_there():
    source = make_source(LONG, [4] * 10, reuse=3)
    with open_stream([source], held=3) as stream:
        rows = [list_pieces(stream.draw(step))[0][1] for step in range(120)]
    assert Counter(rows) == dict.fromkeys(range(40), 3)
    assert len(set(rows[:40])) < 30  # not each of them once


def test_row_groups_are_mixed_as_far_as_the_buffer_reaches():
    """A draw is of the same row group as the one before with probability of about one in those that give."""
    for held, most in ((2, 1.0), (6, 0.35), (40, 0.08)):
        source = make_source(LONG, [20] * 30)
        with open_stream([source], held=held) as stream:
            groups = [list_pieces(stream.draw(step))[0][1] // 20 for step in range(600)]
        same = sum(a == b for a, b in pairwise(groups)) / 599
        assert same < most
        assert held > 2 or same > 0.9


def test_only_the_kept_rows_are_drawn_and_only_their_row_groups_read():
    kept = (torch.tensor([1, 4]), torch.tensor([], dtype=torch.int64), torch.tensor([0]))
    source = make_source(MIDDLE, [5, 6, 3], kept=kept)
    with open_stream([source], window=16) as stream:
        rows = [list_pieces(stream.draw(step))[0][1] for step in range(9)]
    assert Counter(rows) == {1: 3, 4: 3, 11: 3}
    assert 1 not in source.row_groups.reads


class StoredParts:
    """Stands in for a TOKENS artifact: parts of parquet in memory."""

    def __init__(self, files):
        self.files = files
        self.manifest = SimpleNamespace(files=dict.fromkeys(files))

    def read(self, name):
        return self.files[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_stored_table_are_streamed(dtype, tmp_path):
    layout = make_layout(MIDDLE)
    parts = [0, 0, 0, 1, 1, 2, 2, 2]
    index = pl.DataFrame({"model": [f"{row}" for row in range(8)], "part": parts})
    flat_NP = torch.randn(8, layout.weights, generator=torch.Generator().manual_seed(0)).to(dtype)
    files = {}
    for part in range(3):
        inside = torch.tensor(parts) == part
        write_weights(index.filter(pl.col("part") == part).drop("part"), flat_NP[inside], tmp_path / "part")
        files[f"weights-{part:05d}.parquet"] = (tmp_path / "part").read_bytes()
    table = TokenTable(index, layout, (), dtype, StoredParts(files))
    rows_N = torch.tensor([1, 2, 5, 7])
    source = stream_table(table, rows_N)
    with WindowStream([source], layout.length, 4, 0, 10**6, views=1) as stream:
        views_BWD = stream.draw(0).views_VBWD[0]
    expected = layout.tokenize(flat_NP[rows_N].float())
    assert sorted(views_BWD.tolist()) == sorted(expected.tolist())
    for wrong in ([1, 8], [1, 1]):
        with pytest.raises(ConfigError, match="2 rows are asked for, of which 1 are different ones"):
            stream_table(table, torch.tensor(wrong))


def test_an_error_while_reading_ahead_is_raised_by_the_draw_that_needs_it():
    source = make_source(LONG, [4] * 3)
    source.row_groups.read = lambda number: torch.zeros(4, 7)
    with open_stream([source]) as stream, pytest.raises(ConfigError, match="7 weights a model in row group"):
        stream.draw(0)


@pytest.mark.parametrize(
    ("sources", "arguments", "message"),
    [
        ([], {}, "composition is empty"),
        ([make_source(SMALL, [3])], {"window": 0}, "window must be at least 1"),
        ([make_source(SMALL, [3], reuse=0)], {}, "reuse of slice 0 must be at least 1"),
        ([make_source(SMALL, [3])], {"buffer_bytes": 3 * 48 * 3 - 1}, r"431 bytes is too small .* at least 432"),
        ([make_source(SMALL, [3, 3], kept=(torch.tensor([0]),))], {}, "rows of 1 row groups; there are 2"),
        ([make_source(SMALL, [3], kept=(torch.tensor([3]),))], {}, r"rows \[3\] of row group 0: .* 0 to 2"),
        ([make_source(SMALL, [3], kept=(torch.tensor([1, 1]),))], {}, r"rows \[1, 1\] of row group 0"),
        ([make_source(SMALL, [3], kept=(torch.tensor([], dtype=torch.int64),))], {}, "slice 0 .* has no checkpoints"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_read(sources, arguments, message):
    settings = {"window": 4, "batch_size": 2, "seed": 0, "buffer_bytes": 10**6, **arguments}
    with pytest.raises(ConfigError, match=message):
        WindowStream(sources, **settings)
    assert not any(source.row_groups.reads for source in sources)
