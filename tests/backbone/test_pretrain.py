"""Pre-training: reproducible, resumed bit for bit, able to learn, and loud when it diverges."""

import math
import re
from itertools import pairwise

import polars as pl
import pytest
import torch

from mzsane.backbone.loss import explained_variance
from mzsane.backbone.feeding import open_windows
from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.backbone.optimisation import learning_rate_at
from mzsane.backbone.pretrain import plan_backbone, pretrain
from mzsane.config import BackboneConfig, ExecutionConfig, SliceConfig
from mzsane.errors import ConfigError, DivergedError
from mzsane.files import load_torch
from mzsane.tokens import build
from mzsane.tokens.bank import TokenBank
from mzsane.tokens.composition import TokenSlice, choose_checkpoints
from mzsane.tokens.stream import TokenStream


class Watcher:
    """A sink that remembers what it was told, and raises at a step if asked to."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.done = []
        self.values = {}

    def metrics(self, values, step):
        self.values[step] = dict(values)

    def progress(self, done, total, note=""):
        self.done.append(done)
        if done == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def slices(tiny_tokens):
    return [take(tiny_tokens.ref, 3)]


@pytest.fixture(scope="module")
def config(tiny_backbone_config):
    return tiny_backbone_config.model_copy(update={"steps": 50})


@pytest.fixture(scope="module")
def whole(config, slices, make_store):
    """An uninterrupted training."""
    return pretrain(config, slices, 0, make_store())


def take(tokens, models, **settings):
    return TokenSlice(tokens, SliceConfig(zoo="tiny", models=models, **settings))


def hash_files(artifact):
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}


def read_curve(backbone, metric):
    curves = pl.read_parquet(backbone.path("curves.parquet")).filter(pl.col("metric") == metric).sort("step")
    return dict(curves.select("step", "value").rows())


class TestReproducible:
    def test_same_seed_same_bits(self, whole, config, slices, make_store):
        again = pretrain(config, slices, 0, make_store(), ExecutionConfig(checkpoint_steps=7))
        assert again.ref == whole.ref
        assert hash_files(again) == hash_files(whole)

    def test_other_seed_other_bits(self, whole, config, slices, make_store):
        other = pretrain(config, slices, 1, make_store())
        assert other.ref != whole.ref
        ours, theirs = load_backbone(whole)[0].state_dict(), load_backbone(other)[0].state_dict()
        assert not any(torch.equal(ours[name], theirs[name]) for name in ours if ours[name].ndim == 2)

    def test_global_random_state_is_left_alone(self, config, slices, make_store):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        pretrain(config.model_copy(update={"steps": 2}), slices, 0, make_store())
        assert torch.equal(before, torch.get_rng_state())

    def test_done_before_is_opened(self, whole, config, slices):
        sink = Watcher()
        assert pretrain(config, slices, 0, whole.store, sink=sink).manifest == whole.manifest
        assert sink.done == []

    def test_fingerprint_follows_settings_slices_and_seed(self, config, slices):
        (part,) = slices
        works = [
            plan_backbone(config, slices, 0),
            plan_backbone(config, slices, 1),
            plan_backbone(config.model_copy(update={"noise": 0.2}), slices, 0),
            plan_backbone(config, [take(part.tokens, 2)], 0),
            plan_backbone(config, [take(part.tokens, 3, last_epochs=1)], 0),
            plan_backbone(config, [part, part], 0),
            plan_backbone(config, slices, 0, "equal"),
            plan_backbone(config, [take(part.tokens, 3, weight=2.0)], 0),
        ]
        assert len({work.ref.fingerprint for work in works}) == len(works)


class TestStreamed:
    """A composition that does not fit is streamed; nothing else is different."""

    @pytest.fixture
    def streamed(self, config, make_store, tiny_tokens_config, tiny_zoo_config, tiny_table, monkeypatch):
        model = 4 * tiny_table.layout.weights
        monkeypatch.setattr(build, "ROW_GROUP_BYTES", model)
        tokens_config = tiny_tokens_config.model_copy(update={"barrier_pairs": 0})
        store = make_store()
        store.files.remove(f"{build.plan_tokens(tokens_config, tiny_zoo_config).ref}")
        tokens = build.build_tokens(tokens_config, tiny_zoo_config, store, ExecutionConfig(processes=1))
        return config.model_copy(update={"memory_gib": 4 * model / 2**30}), [take(tokens.ref, 3)], store

    def test_resumed_equals_uninterrupted(self, streamed, trained_store):
        config, slices, store = streamed
        chosen = choose_checkpoints(slices, 0, store)
        assert isinstance(open_windows(config, chosen, 0, "checkpoints"), TokenStream)
        roomy = config.model_copy(update={"memory_gib": 1.0})
        assert isinstance(open_windows(roomy, chosen, 0, "checkpoints"), TokenBank)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, slices, 0, store, ExecutionConfig(checkpoint_steps=15), Watcher(40))
        resumed = pretrain(config, slices, 0, store)
        assert resumed.manifest.counts["resumed_from_step"] == 30
        whole = hash_files(resumed)
        store.files.remove(str(resumed.ref))
        assert hash_files(pretrain(config, slices, 0, store)) == whole

    def test_learns_as_well(self, streamed, config):
        small, slices, store = streamed
        ends = [
            read_curve(pretrain(settings, slices, 0, store), "loss_reconstruction")[50] for settings in (small, config)
        ]
        assert ends[0] == pytest.approx(ends[1], rel=0.3)


class TestResume:
    @pytest.mark.parametrize(("stop_at", "checkpoint"), [(20, 15), (40, 30), (50, 45)])
    def test_interrupted_and_resumed_equals_uninterrupted(self, whole, config, slices, make_store, stop_at, checkpoint):
        store, execution = make_store(), ExecutionConfig(checkpoint_steps=15)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, slices, 0, store, execution, Watcher(stop_at))
        work = plan_backbone(config, slices, 0)
        assert not store.exists(work.ref)
        steps = [name for name in store.partial(work).names() if name.startswith("step")]
        assert len(steps) == min(2, checkpoint // 15)
        sink = Watcher()
        resumed = pretrain(config, slices, 0, store, execution, sink)
        assert sink.done[0] == checkpoint
        assert resumed.manifest.counts["resumed_from_step"] == checkpoint
        assert hash_files(resumed) == hash_files(whole)
        assert store.partial(work).names() == set()

    def test_interrupted_twice(self, whole, config, slices, make_store):
        store = make_store()
        for stop_at in (20, 40):
            with pytest.raises(KeyboardInterrupt):
                pretrain(config, slices, 0, store, ExecutionConfig(checkpoint_steps=9), Watcher(stop_at))
        assert hash_files(pretrain(config, slices, 0, store)) == hash_files(whole)

    @pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "bits"])
    def test_damaged_newest_checkpoint_costs_only_time(self, whole, config, slices, make_store, damage):
        store, execution = make_store(), ExecutionConfig(checkpoint_steps=15)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, slices, 0, store, execution, Watcher(40))
        ref = plan_backbone(config, slices, 0).ref
        newest = f"partial/{ref}/{max(store.files.list_names(f'partial/{ref}'))}"  # step-..., after best.pt
        data = store.files.read(newest)
        middle = len(data) // 2
        damaged = {
            "truncated": data[:middle],
            "empty": b"",
            "garbage": b"\x80\x02garbage" * 100,
            "bits": data[:middle] + bytes(64) + data[middle + 64 :],
        }
        store.files.write(newest, damaged[damage])
        resumed = pretrain(config, slices, 0, store, execution)
        assert hash_files(resumed) == hash_files(whole)
        assert resumed.manifest.counts["resumed_from_step"] == 15


class TestLearning:
    def test_overfits_two_checkpoints(self, config, tiny_tokens, make_store):
        settings = {"steps": 400, "noise": 0.0, "gamma": 0.0, "learning_rate": 3e-3, "batch_size": 2}
        config = BackboneConfig(**{**dict(config), **settings, "d_model": 32, "latent_dim": 16})
        store = make_store()
        backbone = pretrain(config, [take(tiny_tokens.ref, 1)], 0, store)
        losses = read_curve(backbone, "loss")
        assert losses[400] < 0.4 * losses[20]
        assert read_curve(backbone, "r2")[400] > 0.6

    def test_curves_have_every_metric_and_end_at_the_last_step(self, whole):
        for metric in ("loss", "loss_reconstruction", "loss_contrast", "r2", "gradient_norm", "learning_rate"):
            curve = read_curve(whole, metric)
            assert list(curve) == [20, 40, 50]
            assert all(map(math.isfinite, curve.values()))
        assert 50 in read_curve(whole, "val_r2/0")

    def test_loss_is_the_mixture_of_its_parts(self, whole, config):
        for step, loss in read_curve(whole, "loss").items():
            parts = [read_curve(whole, f"loss_{name}")[step] for name in ("reconstruction", "contrast")]
            assert loss == pytest.approx((1 - config.gamma) * parts[0] + config.gamma * parts[1], rel=1e-5)

    def test_validation_is_on_the_validation_model(self, whole, tiny_table):
        model, config = load_backbone(whole)
        flat = tiny_table.load(tiny_table.pick_rows("val", 1))
        assert len(flat) == 1
        decoded = decode_models(
            model, tiny_table.layout, encode_models(model, tiny_table.layout, flat, 66), config.window
        )
        expected = explained_variance(decoded, flat, torch.ones_like(flat, dtype=torch.bool))
        assert read_curve(whole, "val_r2/0")[50] == pytest.approx(expected, abs=1e-5)

    def test_sink_sees_what_the_curves_keep(self, whole, config, slices, make_store):
        sink = Watcher()
        pretrain(config, slices, 0, make_store(), sink=sink)
        assert {step: values["loss"] for step, values in sink.values.items()} == read_curve(whole, "loss")
        assert sink.done == [0, 20, 40, 50]

    @pytest.mark.parametrize(
        "setting", [{"target": "clean"}, {"normalisation": "batch"}, {"gamma": 0.5}, {"noise": 0.0}]
    )
    def test_every_setting_of_the_loss_changes_the_result(self, whole, config, slices, make_store, setting):
        other = pretrain(config.model_copy(update=setting), slices, 0, make_store())
        assert read_curve(other, "loss") != read_curve(whole, "loss")
        assert all(map(math.isfinite, read_curve(other, "loss").values()))


class TestDiverged:
    @pytest.fixture
    def diverging(self, config):
        return config.model_copy(update={"learning_rate": 1e30})  # more than the config allows

    def test_is_told_with_what_to_change(self, diverging, slices, make_store):
        store = make_store()
        with pytest.raises(DivergedError) as caught:
            pretrain(diverging, slices, 0, store)
        text = str(caught.value)
        assert "\n" not in text
        assert re.match(r"the pre-training loss is nan at step \d+: lower backbone.learning_rate or raise", text)
        assert not store.exists(plan_backbone(diverging, slices, 0).ref)

    def test_kept_checkpoints_are_good_ones(self, diverging, slices, make_store):
        store = make_store()
        with pytest.raises(DivergedError):
            pretrain(diverging, slices, 0, store, ExecutionConfig(checkpoint_steps=6))
        partial = store.partial(plan_backbone(diverging, slices, 0))
        for name in partial.names():
            state = load_torch(partial.read(name))
            weights = state.get("model", state).values()
            assert all(value.isfinite().all() for value in weights), name


class TestComposition:
    def test_lists_training_models_only(self, whole, tiny_table):
        used = pl.read_parquet(whole.path("composition.parquet"))
        splits = dict(tiny_table.index.select("model", "split").rows())
        assert {splits[model] for model in used["model"]} == {"train"}
        assert used["model"].n_unique() == 3
        assert used.select("slice", "epoch").unique().sort("epoch").rows() == [(0, 1), (0, 2)]
        assert len(used) == 6 == whole.manifest.counts["training_checkpoints"]

    def test_slices_take_their_models_and_epochs(self, config, tiny_tokens, make_store):
        parts = [take(tiny_tokens.ref, 4, last_epochs=1), take(tiny_tokens.ref, 2)]
        backbone = pretrain(config.model_copy(update={"steps": 2}), parts, 0, make_store())
        used = pl.read_parquet(backbone.path("composition.parquet"))
        assert set(used.filter(pl.col("slice") == 0)["epoch"]) == {2}
        assert len(used.filter(pl.col("slice") == 0)) == 4
        assert used.filter(pl.col("slice") == 1)["model"].n_unique() == 2
        assert len(used.filter(pl.col("slice") == 1)) == 4

    def test_models_are_drawn_by_the_seed(self, config, tiny_tokens, make_store):
        store, drawn = make_store(), set()
        for seed in range(6):
            backbone = pretrain(config.model_copy(update={"steps": 1}), [take(tiny_tokens.ref, 2)], seed, store)
            drawn.add(tuple(pl.read_parquet(backbone.path("composition.parquet"))["model"].unique().sort()))
        assert len(drawn) > 1

    def test_positions_beyond_the_tables_are_refused(self, config, slices, trained_store):
        small = config.model_copy(update={"max_positions": (20, 32, 64)})
        with pytest.raises(ConfigError, match="max_positions"):
            pretrain(small, slices, 0, trained_store)


class TestOpened:
    def test_opens_as_it_was_trained(self, whole, config):
        model, found = load_backbone(whole)
        assert found == config
        assert not model.training
        assert sum(p.numel() for p in model.parameters()) == whole.manifest.counts["parameters"]

    @pytest.mark.parametrize("window", [5, 24, 59, 60, 66, 100])
    def test_models_longer_than_a_window_are_read_in_pieces(self, whole, tiny_table, window):
        model, _ = load_backbone(whole)
        flat = tiny_table.load(torch.arange(2))
        latents = encode_models(model, tiny_table.layout, flat, window)
        assert latents.shape == (2, tiny_table.layout.length, 8)
        decoded = decode_models(model, tiny_table.layout, latents, window)
        assert decoded.shape == flat.shape
        assert decoded.isfinite().all()
        assert not decoded.requires_grad
        if window >= tiny_table.layout.length:
            tokens = tiny_table.layout.tokenize(flat)
            positions = tiny_table.layout.positions_T3.expand(2, -1, -1)
            with torch.no_grad():
                torch.testing.assert_close(latents, model.encode(tokens, positions))

    def test_short_windows_train_too(self, config, slices, make_store):
        short = config.model_copy(update={"window": 20, "steps": 3})
        backbone = pretrain(short, slices, 0, make_store())
        assert math.isfinite(read_curve(backbone, "val_r2/0")[3])


def test_learning_rate_rises_then_falls_to_zero():
    config = BackboneConfig(steps=100, warmup=0.1, learning_rate=0.5)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == 0.5 == rates[9]
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.25)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (2, 0.5), (7, 0.0), (7, 1.0)])
def test_learning_rate_is_defined_for_every_schedule(steps, warmup):
    config = BackboneConfig(steps=steps, warmup=warmup, learning_rate=0.5)
    assert all(0 < learning_rate_at(step, config) <= 0.5 for step in range(steps))
