"""The batches of pre-training: a function of the step alone, shared evenly, made while the training computes.

Suffixes: as in `mzsane.backbone.loader`.
"""

import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import mzsane.backbone.loader
from mzsane.backbone.attention import AttentionPlan
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.loader import BatchLoader, TrainingBatch, augment, open_windows
from mzsane.composition import ChosenSlice, TokenSlice, choose_checkpoints
from mzsane.config import BackboneConfig, SliceConfig
from mzsane.randomness import make_generator
from mzsane.store.artifacts import Artifact, ArtifactStore
from mzsane.windows.memory import WindowsInMemory
from mzsane.windows.windows import WindowBatch

PART = 2 * 4 * 130 * 51  # numbers of a part of both views
AUGMENTED = {"noise": 0.2, "additive_noise": 0.01, "erasing": 0.2, "mix_up": 0.3, "cut_mix": 0.2}


@pytest.fixture(scope="module")
def config() -> BackboneConfig:
    # Two models of 60 tokens share a window, and ten tokens of padding follow.
    return BackboneConfig.model_validate(
        {"window": 130, "d_model": 16, "batch_size": 8, "accumulation": 2, "steps": 6, "latent_noise": 0.5, **AUGMENTED}
    )


@pytest.fixture(autouse=True)
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many parts are made at once: one if the test does not ask for more."""
    count: int = getattr(request, "param", 1)
    monkeypatch.setattr(mzsane.backbone.loader, "_BLOCK", count * PART)
    return count


@pytest.fixture(scope="module")
def chosen(tiny_tokens: Artifact, trained_store: ArtifactStore) -> list[ChosenSlice]:
    slices = [TokenSlice(tiny_tokens.ref, SliceConfig(zoo="tiny", models=models)) for models in (3, 4)]
    return choose_checkpoints(slices, 0, trained_store)


class Slow:
    """Windows that take a while, or fail at a part."""

    def __init__(self, windows: Any, seconds: float = 0.0, fail_at: int | None = None) -> None:
        self.windows, self.seconds, self.fail_at = windows, seconds, fail_at
        self.drawn: list[int] = []
        self.batch_size = windows.batch_size

    def draw(self, number: int) -> WindowBatch:
        self.drawn.append(number)
        time.sleep(self.seconds)
        if number == self.fail_at:
            raise OSError("the disk is gone")
        batch: WindowBatch = self.windows.draw(number)
        return batch


@pytest.fixture
def open_feeder(config: BackboneConfig, chosen: list[ChosenSlice]) -> Iterator[Any]:
    """The maker of feeders, which are closed at the end."""
    opened = []

    def make(
        ranks: Ranks | None = None, seed: int = 0, config: BackboneConfig = config, wrap: Any = None, **given: Any
    ) -> BatchLoader:
        windows = open_windows(config, chosen, seed, "checkpoints")
        feeder = BatchLoader(config, wrap(windows, **given) if wrap else windows, seed, ranks or Ranks())
        opened.append(feeder)
        return feeder

    yield make
    for feeder in opened:
        feeder.close()


def list_tensors(feed: TrainingBatch) -> dict[str, Tensor]:
    """Return all that a feed holds."""
    values = {field.name: getattr(feed, field.name) for field in dataclasses.fields(feed)}
    plan: AttentionPlan | None = values.pop("plan")
    if plan is not None:
        values |= {f"plan.{field.name}": getattr(plan, field.name) for field in dataclasses.fields(plan)}
    return {name: torch.as_tensor(value) for name, value in values.items() if value is not None}


def are_equal(one: TrainingBatch, other: TrainingBatch) -> bool:
    ours, theirs = list_tensors(one), list_tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


class TestFunctionOfTheStep:
    @pytest.mark.parametrize("parts", [1, 5, 100], indirect=True)
    def test_in_any_order_and_twice(self, open_feeder: Any) -> None:
        feeder, places = open_feeder(), list(itertools.product(range(6), range(2)))
        forward = {place: feeder.take(*place) for place in places}
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).tolist()
        for place in [places[i] for i in order] + [(3, 1), (3, 1), (0, 0)]:
            assert are_equal(feeder.take(*place), forward[place]), place
        late = open_feeder()
        assert are_equal(late.take(5, 0), forward[5, 0])
        for one, other in itertools.combinations(forward.values(), 2):
            assert not torch.equal(one.input_BWD, other.input_BWD)

    def test_and_of_the_seed(self, open_feeder: Any) -> None:
        assert not torch.equal(open_feeder().take(0, 0).clean_BWD, open_feeder(seed=1).take(0, 0).clean_BWD)

    @pytest.mark.parametrize("parts", [1, 5], indirect=True)
    def test_parts_without_accumulation_are_the_steps(self, open_feeder: Any, config: BackboneConfig) -> None:
        whole = config.model_copy(update={"accumulation": 1, "batch_size": 4, "steps": 12})
        for number in range(4):
            step, part = divmod(number, 2)
            assert are_equal(open_feeder().take(step, part), open_feeder(config=whole).take(number, 0))

    @pytest.mark.parametrize("parts", [1, 4, 5, 100], indirect=True)
    def test_nothing_is_made_past_the_end(self, open_feeder: Any, parts: int) -> None:
        feeder = open_feeder(wrap=Slow)
        for step, part in itertools.product(range(6), range(2)):
            feeder.take(step, part)
        time.sleep(0.2)
        assert feeder.windows.drawn == list(range(math.ceil(12 / parts)))

    @pytest.mark.parametrize("parts", [5], indirect=True)
    def test_no_checkpoint_is_seen_again_before_all_were(
        self, open_feeder: Any, chosen: list[ChosenSlice], config: BackboneConfig
    ) -> None:
        plain = config.model_copy(update=dict.fromkeys(AUGMENTED, 0.0))
        feeder, one = open_feeder(config=plain), chosen[1:]
        feeder.windows = open_windows(plain, one, 0, "checkpoints")
        seen = [
            tuple(window_WD[segments_W == number].flatten().tolist())
            for step, part in itertools.product(range(4), range(2))
            for feed in [feeder.take(step, part)]
            for window_WD, segments_W in zip(feed.clean_BWD[:4], feed.segments_BW[:4], strict=True)
            for number in (1, 2)
        ]
        models = len(one[0].rows_N)
        assert len(seen) > models
        assert len(set(seen[:models])) == models


class TestShared:
    @pytest.mark.parametrize("parts", [1, 3], indirect=True)
    @pytest.mark.parametrize("count", [2, 4])
    def test_ranks_together_have_what_one_has(self, open_feeder: Any, count: int) -> None:
        alone = open_feeder().take(2, 1)
        feeds = [open_feeder(Ranks(rank, count)).take(2, 1) for rank in range(count)]
        names = [name for name in list_tensors(alone) if name.endswith(("BWD", "BW", "BW3", "BWL"))]
        for name in names:
            views = [getattr(feed, name).unflatten(0, (2, 4 // count)) for feed in feeds]
            assert torch.equal(torch.cat(views, dim=1).flatten(0, 1), getattr(alone, name)), name
        assert {feed.weights for feed in feeds} == {alone.weights}
        assert [sum(numbers) for numbers in zip(*(feed.tokens for feed in feeds), strict=True)] == list(alone.tokens)


class TestContents:
    def test_both_versions_follow_one_another(self, open_feeder: Any) -> None:
        feed = open_feeder().take(0, 0)
        assert feed.input_BWD.shape == feed.clean_BWD.shape == feed.mask_BWD.shape == (8, 130, 51)
        for shared in (feed.mask_BWD, feed.weights_BW, feed.positions_BW3, feed.segments_BW, feed.source_BW):
            assert torch.equal(shared[:4], shared[4:])
        assert not torch.equal(feed.clean_BWD[:4], feed.clean_BWD[4:])  # a permutation of the same networks
        assert not torch.equal(feed.input_BWD, feed.clean_BWD)

    def test_positions_are_expanded_where_all_windows_are_packed_alike(
        self, open_feeder: Any, chosen: list[ChosenSlice], config: BackboneConfig
    ) -> None:
        layout = chosen[0].table.layout
        alike = open_feeder().take(0, 0).positions_BW3
        assert alike.stride(0) == 0
        assert torch.equal(alike[5, : 2 * layout.length], layout.positions_T3.repeat(2, 1))
        # Parts of models begin anywhere.
        parts = open_feeder(config=config.model_copy(update={"window": 40})).take(0, 0).positions_BW3
        assert parts.stride(0) > 0
        assert len(parts.unique(dim=0)) > 1

    def test_counts(self, open_feeder: Any, chosen: list[ChosenSlice]) -> None:
        feed, layout = open_feeder().take(0, 0), chosen[0].table.layout
        assert feed.weights == int(feed.mask_BWD.sum())
        assert torch.equal(feed.weights_BW, feed.mask_BWD.sum(dim=2))
        models = int(feed.segments_BW.amax(dim=1).sum())
        assert models == 16
        assert feed.weights == models * layout.weights
        assert feed.tokens == (models * layout.length, models * layout.length**2)
        assert feed.plan is not None
        assert feed.plan.shape == (models, layout.length)

    def test_without_augmentation_the_input_is_clean(self, chosen: list[ChosenSlice], config: BackboneConfig) -> None:
        plain = config.model_copy(update=dict.fromkeys(AUGMENTED, 0.0))
        batch = open_windows(plain, chosen, 0, "checkpoints").draw(0)
        clean, views = augment(batch, plain, make_generator(0))
        assert torch.equal(clean, batch.views_VBWD)
        assert torch.equal(views, batch.views_VBWD)

    @pytest.mark.parametrize("name", list(AUGMENTED))
    def test_augmentations_leave_the_padding_zero(
        self, chosen: list[ChosenSlice], config: BackboneConfig, name: str
    ) -> None:
        one = config.model_copy(update=dict.fromkeys(AUGMENTED, 0.0) | {name: AUGMENTED[name]})
        batch = open_windows(one, chosen, 0, "checkpoints").draw(0)
        before = batch.views_VBWD.clone()
        clean, views = augment(batch, one, make_generator(0))
        assert torch.equal(batch.views_VBWD, before)  # nothing is written to
        padding = ~batch.mask_BWD.expand_as(views)
        assert padding.any()
        assert not clean[padding].any()
        assert not views[padding].any()
        mixing = name in ("mix_up", "cut_mix")
        assert torch.equal(clean, before) != mixing  # mixed samples are what is to be reconstructed
        assert torch.equal(views, clean) == mixing

    @pytest.mark.parametrize("parts", [1, 2], indirect=True)
    def test_each_part_has_noise_of_its_own(self, open_feeder: Any, config: BackboneConfig) -> None:
        noisy = config.model_copy(update=dict.fromkeys(AUGMENTED, 0.0) | {"noise": 0.2})
        feeder = open_feeder(config=noisy)
        first, second, later = (feeder.take(*place) for place in ((0, 0), (0, 1), (1, 0)))
        factors = [feed.input_BWD[:, :60, 0] / feed.clean_BWD[:, :60, 0] for feed in (first, second, later)]
        for one, other in itertools.combinations(factors, 2):
            assert (one - other).abs().mean() > 0.1
        assert (factors[0][:4] - factors[0][4:]).abs().mean() > 0.1  # and each view
        assert factors[0].std().item() == pytest.approx(0.2, rel=0.15)

    def test_augmentations_draw_from_the_step_alone(self, open_feeder: Any) -> None:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        open_feeder().take(0, 0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_composition_that_just_fits_is_held(self, chosen: list[ChosenSlice], config: BackboneConfig) -> None:
        weights = sum(4 * part.table.layout.weights * len(part.rows_N) for part in chosen)
        fitting = config.model_copy(update={"memory_gib": weights / 2**30})
        assert isinstance(open_windows(fitting, chosen, 0, "checkpoints"), WindowsInMemory)

    @pytest.mark.parametrize("parts", [1, 2], indirect=True)
    def test_latent_noise_has_its_deviation_and_differs_by_part(self, open_feeder: Any, config: BackboneConfig) -> None:
        feeder = open_feeder()
        first, second = (feeder.take(0, part).noise_BWL for part in (0, 1))
        assert first.shape == (8, 130, config.latent_dim)
        assert first.std().item() == pytest.approx(0.5, rel=0.05)
        assert not (first == second).any()

    def test_without_latent_noise_there_is_none(self, open_feeder: Any, config: BackboneConfig) -> None:
        assert open_feeder(config=config.model_copy(update={"latent_noise": 0.0})).take(0, 0).noise_BWL is None


class TestAhead:
    def test_waited_grows_only_when_waiting(self, open_feeder: Any) -> None:
        feeder = open_feeder(wrap=Slow, seconds=0.2)
        assert feeder.waited == 0
        feeder.take(0, 0)
        first = feeder.waited
        assert first >= 0.2
        while not feeder._next[1].done():  # the training computes, and the next part is made meanwhile
            time.sleep(0.05)
        feeder.take(0, 1)
        second = feeder.waited
        assert second - first < 0.1
        feeder.take(1, 0)  # asked for at once
        assert feeder.waited - second > 0.1

    @pytest.mark.parametrize("parts", [1, 3], indirect=True)
    def test_one_block_is_made_ahead(self, open_feeder: Any, parts: int) -> None:
        feeder = open_feeder(wrap=Slow)
        for number in range(parts):
            feeder.take(*divmod(number, 2))
        time.sleep(0.3)
        assert feeder.windows.drawn == [0, 1]

    def test_no_thread_is_left_after_close(self, open_feeder: Any) -> None:
        before = set(threading.enumerate())
        feeder = open_feeder()
        feeder.take(0, 0)
        assert len(set(threading.enumerate()) - before) == 1
        feeder.close()
        feeder.close()
        assert set(threading.enumerate()) <= before

    def test_an_error_in_the_thread_reaches_the_training(self, open_feeder: Any) -> None:
        before = set(threading.enumerate())
        feeder = open_feeder(wrap=Slow, fail_at=1)
        feeder.take(0, 0)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                feeder.take(0, 1)
        feeder.close()
        assert set(threading.enumerate()) <= before

    def test_the_training_keeps_its_threads(self, open_feeder: Any) -> None:
        """The feeder computes with one thread, so that the training's products have the others."""
        threads, seen = torch.get_num_threads(), list[int]()
        torch.set_num_threads(2)
        try:
            feeder = open_feeder()
            make = feeder._make

            def note_threads(number: int) -> list[TrainingBatch]:
                seen.append(torch.get_num_threads())
                made: list[TrainingBatch] = make(number)
                return made

            feeder._make = note_threads
            feeder.take(0, 0)
            assert torch.get_num_threads() == 2
            with ThreadPoolExecutor(1) as others:  # threads that start later are not the feeder's
                assert others.submit(torch.get_num_threads).result() == 2
        finally:
            torch.set_num_threads(threads)
        assert seen[0] == 1
