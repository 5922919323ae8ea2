"""Pre-training: reproducible, resumed bit for bit, able to learn, and loud when it diverges."""

import dataclasses
import io
import math
import re
import shutil
import threading
from itertools import pairwise

import polars as pl
import pytest
import torch
from PIL import Image

from mzsane.backbone import profile as clock
from mzsane.backbone import training
from mzsane.backbone.autoencoder import build_autoencoder
from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.backbone.loader import open_windows
from mzsane.backbone.loss import explained_variance
from mzsane.backbone.optimisation import learning_rate_at
from mzsane.backbone.pretrain import plan_backbone, pretrain
from mzsane.composition import TokenSlice, choose_checkpoints
from mzsane.config import BackboneConfig, ExecutionConfig, SliceConfig
from mzsane.errors import ConfigError, DivergedError, OutOfMemoryError
from mzsane.randomness import make_generator
from mzsane.store.artifacts import ArtifactStore
from mzsane.store.serialisation import load_tensors, load_torch
from mzsane.tokens import build
from mzsane.windows.memory import WindowsInMemory
from mzsane.windows.stream import WindowStream


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


@pytest.fixture(autouse=True, scope="module")
def known_peak():
    """The matrix peak as if it had been measured, which takes longer than many a training here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "measure_matrix_peak", lambda device, precision: 1e9)
        yield


@pytest.fixture
def quick(monkeypatch):
    """Trainings without the pictures at their end, which take longer than a few steps."""
    for name in ("plot_curves", "plot_scales"):
        monkeypatch.setattr(training, name, lambda *given: b"")
    monkeypatch.setattr(training.Validator, "draw", lambda self, model: b"")


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


def hash_data(artifact):
    """Return the hashes of all files but the pictures, which are drawn from the others."""
    return {name: digest for name, digest in hash_files(artifact).items() if not name.endswith(".png")}


def read_weights(backbone):
    return load_tensors(backbone.read("weights.safetensors"))[0]


def read_curve(backbone, metric):
    curves = pl.read_parquet(backbone.path("curves.parquet")).filter(pl.col("metric") == metric).sort("step")
    return dict(curves.select("step", "value").rows())


class TestReproducible:
    def test_same_seed_same_bits(self, whole, config, slices, make_store):
        again = pretrain(config, slices, 0, make_store(), ExecutionConfig(checkpoint_steps=7))
        assert again.ref == whole.ref
        assert hash_files(again) == hash_files(whole)

    @pytest.mark.usefixtures("quick")
    def test_other_seed_other_bits(self, whole, config, slices, make_store):
        other = pretrain(config, slices, 1, make_store())
        assert other.ref != whole.ref
        ours, theirs = load_backbone(whole)[0].state_dict(), load_backbone(other)[0].state_dict()
        assert not any(torch.equal(ours[name], theirs[name]) for name in ours if ours[name].ndim == 2)

    @pytest.mark.usefixtures("quick")
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

    @pytest.mark.usefixtures("quick")
    def test_resumed_equals_uninterrupted(self, streamed, trained_store):
        config, slices, store = streamed
        chosen = choose_checkpoints(slices, 0, store)
        assert isinstance(open_windows(config, chosen, 0, "checkpoints"), WindowStream)
        roomy = config.model_copy(update={"memory_gib": 1.0})
        assert isinstance(open_windows(roomy, chosen, 0, "checkpoints"), WindowsInMemory)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, slices, 0, store, ExecutionConfig(checkpoint_steps=15), Watcher(40))
        resumed = pretrain(config, slices, 0, store)
        assert resumed.manifest.counts["resumed_from_step"] == 30
        whole = hash_files(resumed)
        store.files.remove(str(resumed.ref))
        assert hash_files(pretrain(config, slices, 0, store)) == whole

    @pytest.mark.usefixtures("quick")
    def test_learns_as_well(self, streamed, config):
        small, slices, store = streamed
        ends = [
            read_curve(pretrain(settings, slices, 0, store), "loss_reconstruction")[50] for settings in (small, config)
        ]
        assert ends[0] == pytest.approx(ends[1], rel=0.3)


class TestResume:
    @pytest.mark.usefixtures("quick")
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
        assert hash_data(resumed) == hash_data(whole)
        assert store.partial(work).names() == set()

    def test_interrupted_twice(self, whole, config, slices, make_store):
        store = make_store()
        for stop_at in (20, 40):
            with pytest.raises(KeyboardInterrupt):
                pretrain(config, slices, 0, store, ExecutionConfig(checkpoint_steps=9), Watcher(stop_at))
        assert hash_files(pretrain(config, slices, 0, store)) == hash_files(whole)

    @pytest.mark.usefixtures("quick")
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
        assert hash_data(resumed) == hash_data(whole)
        assert resumed.manifest.counts["resumed_from_step"] == 15


class TestLearning:
    @pytest.mark.usefixtures("quick")
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

    @pytest.mark.usefixtures("quick")
    def test_sink_sees_what_the_curves_keep(self, whole, config, slices, make_store):
        sink = Watcher()
        pretrain(config, slices, 0, make_store(), sink=sink)
        assert {step: values["loss"] for step, values in sink.values.items()} == read_curve(whole, "loss")
        assert sink.done == [0, 20, 40, 50]


@pytest.fixture(scope="module")
def base(config):
    """What settings are compared with: two models share a window, so that there is padding and packing."""
    return config.model_copy(update={"steps": 3, "gamma": 0.2, "window": 130})


@pytest.fixture(scope="module")
def plain(base, slices, make_store):
    return read_weights(pretrain(base, slices, 0, make_store()))


@pytest.mark.usefixtures("quick")
class TestSettings:
    @pytest.mark.parametrize(
        "setting",
        [
            {"target": "clean"},
            {"normalisation": "layer"},
            {"normalisation": "window"},
            {"normalisation": "batch"},
            {"normalisation": "none"},
            {"deviation_floor": 0.1},
            {"relative_floor": 0.5},
            {"gamma": 0.5},
            {"contrast": "positive"},
            {"temperature": 0.5},
            {"latent_norm": 0.1},
            {"latent_variance": 0.1},
            {"latent_noise": 0.1},
            {"behaviour": 1.0, "behaviour_images": 4},
            {"noise": 0.0},
            {"additive_noise": 0.05},
            {"erasing": 0.2},
            {"mix_up": 0.5},
            {"cut_mix": 0.5},
            {"positions": "sinusoidal"},
            {"shortcut": True},
            {"accumulation": 2},
            {"learning_rate": 2e-3},
            {"weight_decay": 0.5},
            {"schedule": "one-cycle"},
            {"warmup": 1.0},
            {"gradient_clip": 1e-9},
            {"averaging": 0.9},
            {"precision": "bfloat16"},
            {"batch_size": 6},
        ],
        ids=lambda setting: ",".join(f"{name}={value}" for name, value in setting.items()),
    )
    def test_changes_the_result(self, plain, base, slices, make_store, setting):
        backbone = pretrain(base.model_copy(update=setting), slices, 0, make_store())
        assert all(map(math.isfinite, read_curve(backbone, "loss").values()))
        other = read_weights(backbone)
        assert all(value.isfinite().all() for value in other.values())
        for name in ("token_in.weight", "encoder.0.qkv.weight", "decoder.0.up.weight", "token_out.weight"):
            assert not torch.equal(other[name], plain[name]), name

    @pytest.mark.parametrize("setting", [{"recompute": True}, {"memory_gib": 1.0}, {"validations": 2}])
    def test_does_not_change_the_weights(self, plain, base, slices, make_store, setting):
        other = read_weights(pretrain(base.model_copy(update=setting), slices, 0, make_store()))
        assert all(torch.equal(other[name], value) for name, value in plain.items())

    def test_behaviour_is_learnt(self, config, slices, make_store):
        settings = {"steps": 60, "behaviour": 1.0, "behaviour_images": 16}
        backbone = pretrain(config.model_copy(update=settings), slices, 0, make_store())
        losses = read_curve(backbone, "loss_behaviour")
        assert losses[60] < 0.85 * losses[20]
        for step, loss in read_curve(backbone, "loss").items():
            parts = [read_curve(backbone, f"loss_{name}")[step] for name in ("reconstruction", "contrast", "behaviour")]
            assert loss == pytest.approx(0.95 * parts[0] + 0.05 * parts[1] + parts[2], rel=1e-5)


@pytest.mark.usefixtures("quick")
class TestPublished:
    """Which weights become the backbone."""

    @pytest.fixture
    def states(self, monkeypatch):
        """The weights at the end of each step, as the average is told of them."""
        seen, update = [], training.update_average

        def note(average, parameters, step, decay):
            seen.append([value.clone() for value in parameters])
            update(average, parameters, step, decay)

        monkeypatch.setattr(training, "update_average", note)
        return seen

    @pytest.fixture
    def validate(self, monkeypatch):
        """Validations of known R2; `validate(values)` returns the list of the weights that are validated."""

        def validate(values):
            seen, results = [], iter(values)

            def measure(self, model):
                seen.append({name: value.clone() for name, value in model.state_dict().items()})
                return {"val_r2/0": next(results)}

            monkeypatch.setattr(training.Validator, "measure", measure)
            return seen

        return validate

    def test_average_is_that_of_all_steps(self, config, slices, make_store, states):
        averaged = config.model_copy(update={"steps": 8, "averaging": 0.4})
        published = read_weights(pretrain(averaged, slices, 3, make_store()))
        assert len(states) == 8
        start = build_autoencoder(averaged, 51, make_generator(3, "backbone", "init"))
        for place, (name, average) in enumerate(start.state_dict().items()):
            for step, state in enumerate(states):
                kept = min(0.4, (1 + step) / (10 + step))
                average = kept * average + (1 - kept) * state[place]
            torch.testing.assert_close(published[name], average, atol=1e-6, rtol=1e-5)
        assert not any(
            torch.equal(published[name], last)
            for name, last in zip(published, states[-1], strict=True)
            if last.ndim == 2
        )

    def test_averaging_does_not_change_the_training(self, config, slices, make_store):
        short = config.model_copy(update={"steps": 40, "validations": 2})
        curves = [
            read_curve(pretrain(short.model_copy(update={"averaging": decay}), slices, 0, make_store()), "loss")
            for decay in (0.0, 0.9)
        ]
        assert curves[0] == curves[1]

    def test_average_is_what_is_validated(self, config, slices, make_store, validate):
        seen = validate([0.1])
        averaged = config.model_copy(update={"steps": 5, "averaging": 0.9})
        published = read_weights(pretrain(averaged, slices, 0, make_store()))
        (validated,) = seen
        assert all(torch.equal(validated[name], value) for name, value in published.items())

    @pytest.mark.parametrize(
        ("values", "best"), [([0.1, 0.9, 0.5], 1), ([0.5, 0.2, 0.9], 2), ([-3.0, -5.0, -4.0], 0), ([0.5, 0.5, 0.5], 0)]
    )
    def test_best_are_those_of_the_best_validation(self, config, slices, make_store, validate, values, best):
        seen = validate(values)
        kept = config.model_copy(update={"steps": 60, "validations": 3, "publish": "best"})
        published = read_weights(pretrain(kept, slices, 0, make_store()))
        assert len(seen) == 3
        for number, state in enumerate(seen):
            equal = torch.equal(state["token_in.weight"], published["token_in.weight"])
            assert equal == (number == best)

    def test_best_are_found_after_a_validation_without_numbers(self, config, slices, make_store, validate):
        seen = validate([float("nan"), 0.2, 0.1])
        kept = config.model_copy(update={"steps": 60, "validations": 3, "publish": "best"})
        published = read_weights(pretrain(kept, slices, 0, make_store()))
        assert torch.equal(seen[1]["token_in.weight"], published["token_in.weight"])

    def test_last_are_published_otherwise(self, config, slices, make_store, validate):
        seen = validate([0.9, 0.1])
        kept = config.model_copy(update={"steps": 40, "validations": 2})
        published = read_weights(pretrain(kept, slices, 0, make_store()))
        assert torch.equal(seen[1]["token_in.weight"], published["token_in.weight"])

    def test_resumed_equals_uninterrupted_with_everything_on(self, config, slices, make_store, validate):
        """The best validation, the second, is before or after the interruption, or between it and the checkpoint."""
        settings = {"steps": 70, "accumulation": 2, "averaging": 0.8, "publish": "best", "validations": 4}
        everything = config.model_copy(update=settings | {"schedule": "one-cycle", "mix_up": 0.3, "shortcut": True})
        execution, values = ExecutionConfig(checkpoint_steps=15), [0.1, 0.9, 0.5, 0.3]
        validate(values)
        whole = hash_files(pretrain(everything, slices, 0, make_store(), execution))
        for stop_at, checkpoint in ((20, 15), (40, 30), (60, 45)):
            store = make_store()
            validate(values)
            with pytest.raises(KeyboardInterrupt):
                pretrain(everything, slices, 0, store, execution, Watcher(stop_at))
            validate(values[checkpoint // 20 :])
            resumed = pretrain(everything, slices, 0, store, execution)
            assert resumed.manifest.counts["resumed_from_step"] == checkpoint
            assert hash_files(resumed) == whole, stop_at


class TestArtifact:
    def test_has_pictures(self, whole):
        for name in ("curves.png", "scales.png", "reconstruction.png"):
            picture = Image.open(io.BytesIO(whole.read(name)))
            assert picture.format == "PNG"
            assert 400 <= picture.width <= 4000
            assert 200 <= picture.height <= 4000
            assert len(picture.convert("L").getcolors(256)) > 5, name  # something is drawn
        assert set(whole.manifest.files) == {
            "weights.safetensors",
            "curves.parquet",
            "composition.parquet",
            "curves.png",
            "scales.png",
            "reconstruction.png",
        }

    @pytest.mark.usefixtures("quick")
    def test_speeds_are_told_and_not_kept(self, config, slices, make_store, tiny_table):
        """They differ from run to run, and the artifact's files do not."""
        speeds = {"tokens_per_s", "weights_per_s", "waiting_share", "matrix_peak_share", "memory_gib"}
        sink = Watcher()
        again = pretrain(config, slices, 0, make_store(), sink=sink)
        for values in sink.values.values():
            assert speeds <= values.keys()
            assert all(values[name] > 0 for name in speeds - {"waiting_share"})
            assert 0 <= values["waiting_share"] <= 1
        kept = set(pl.read_parquet(again.path("curves.parquet"))["metric"])
        assert not speeds & kept
        assert sink.values[50].keys() == speeds | kept
        assert speeds <= again.manifest.counts.keys()
        layout = tiny_table.layout
        for values in (*sink.values.values(), again.manifest.counts):
            assert values["weights_per_s"] / values["tokens_per_s"] == pytest.approx(layout.weights / layout.length)

    def test_counts(self, whole):
        counts = whole.manifest.counts
        assert (counts["steps"], counts["processes"], counts["device"], counts["precision"]) == (
            50,
            1,
            "cpu",
            "float32",
        )


class TestDiverged:
    @pytest.fixture
    def diverging(self, config):
        return config.model_copy(update={"learning_rate": 1e30})  # more than the config allows

    @pytest.mark.usefixtures("quick")
    def test_is_told_with_what_to_change(self, diverging, slices, make_store):
        store = make_store()
        with pytest.raises(DivergedError) as caught:
            pretrain(diverging, slices, 0, store)
        text = str(caught.value)
        assert "\n" not in text
        assert re.match(r"the pre-training loss is nan at step \d+: lower backbone.learning_rate or raise", text)
        assert not store.exists(plan_backbone(diverging, slices, 0).ref)

    @pytest.mark.usefixtures("quick")
    def test_kept_checkpoints_are_good_ones(self, diverging, slices, make_store):
        store = make_store()
        with pytest.raises(DivergedError):
            pretrain(diverging, slices, 0, store, ExecutionConfig(checkpoint_steps=6))
        partial = store.partial(plan_backbone(diverging, slices, 0))
        for name in partial.names():
            state = load_torch(partial.read(name))
            weights = state.get("model", state).values()
            assert all(value.isfinite().all() for value in weights), name

    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize(("broken", "told"), [(21, 21), (36, 40), (40, 40)])
    def test_no_number_stops_at_the_next_look_and_keeps_a_good_checkpoint(
        self, whole, config, slices, make_store, monkeypatch, broken, told
    ):
        """It looks at the loss every 20 steps, and before it keeps a checkpoint."""
        store, execution, seen = make_store(), ExecutionConfig(checkpoint_steps=7), []
        measure = training.Objective.measure

        def break_down(self, model, feed, number):
            losses = measure(self, model, feed, number)
            seen.append(number + 1)
            factor = float("nan") if number + 1 == broken else 1.0
            return dataclasses.replace(
                losses,
                own=losses.own * factor,
                parts={name: value * factor for name, value in losses.parts.items()},
            )

        monkeypatch.setattr(training.Objective, "measure", break_down)
        with pytest.raises(DivergedError, match=f"the pre-training loss is nan at step {told}: lower backbone.learn"):
            pretrain(config, slices, 0, store, execution)
        assert seen[-1] == told
        monkeypatch.setattr(training.Objective, "measure", measure)
        sink = Watcher()
        resumed = pretrain(config, slices, 0, store, execution, sink)
        assert sink.done[0] == (broken - 1) // 7 * 7
        expected = read_weights(whole)
        assert all(torch.equal(value, expected[name]) for name, value in read_weights(resumed).items())

    @pytest.mark.usefixtures("quick")
    def test_a_gradient_that_is_no_number_in_the_last_step_is_not_published(
        self, config, slices, make_store, monkeypatch
    ):
        store, measure, last = make_store(), training.Objective.measure, config.steps

        def break_down(self, model, feed, number):
            losses = measure(self, model, feed, number)
            return dataclasses.replace(losses, own=losses.own * (float("nan") if number + 1 == last else 1.0))

        monkeypatch.setattr(training.Objective, "measure", break_down)
        with pytest.raises(DivergedError, match=f"the pre-training gradient norm is nan at step {last}: lower"):
            pretrain(config, slices, 0, store)
        assert not store.exists(plan_backbone(config, slices, 0).ref)

    @pytest.mark.usefixtures("quick")
    def test_a_state_that_has_exploded_is_not_kept(self, config, slices, make_store, monkeypatch):
        store, describe = make_store(), training.Training._describe

        def tell(self, *given):
            return describe(self, *given) | {"loss": 20.0 if self.step + 1 >= 15 else 1.0}

        monkeypatch.setattr(training.Training, "_describe", tell)
        with pytest.raises(DivergedError, match=r"exploded: 20 at step 15, 1 at first"):
            pretrain(config, slices, 0, store, ExecutionConfig(checkpoint_steps=5))
        names = store.partial(plan_backbone(config, slices, 0)).names()
        assert names == {"step-00000005.pt", "step-00000010.pt"}

    @pytest.mark.usefixtures("quick")
    def test_an_explosion_is_told_with_what_to_change(self, config, slices, make_store):
        wild = config.model_copy(update={"steps": 60, "learning_rate": 10.0, "gradient_clip": 100.0, "warmup": 1.0})
        store = make_store()
        with pytest.raises(DivergedError) as caught:
            pretrain(wild, slices, 0, store)
        text = str(caught.value)
        assert re.match(r"the pre-training loss has exploded: \S+ at step (20|40), \S+ at first; lower backbone", text)
        assert text.endswith("the last good checkpoint is kept")
        assert "\n" not in text
        assert not store.exists(plan_backbone(wild, slices, 0).ref)

    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize(("factor", "stops"), [(9.9, False), (10.1, True)])
    def test_ten_times_the_first_loss_is_an_explosion(self, config, slices, make_store, monkeypatch, factor, stops):
        values = {1: 1.0, 20: 1.0, 40: factor, 50: 1.0}
        describe = training.Training._describe

        def tell(self, *given):
            return describe(self, *given) | {"loss": values[self.step + 1]}

        monkeypatch.setattr(training.Training, "_describe", tell)
        if stops:
            with pytest.raises(DivergedError, match=r"exploded: 10.1 at step 40, 1 at first"):
                pretrain(config, slices, 0, make_store())
        else:
            pretrain(config, slices, 0, make_store())

    @pytest.mark.usefixtures("quick")
    def test_an_explosion_before_the_first_log_is_told_too(self, config, slices, make_store):
        """The loss is 1 at the start, and 500 thousand when it is first noted."""
        wild = config.model_copy(update={"steps": 60, "learning_rate": 10.0})
        with pytest.raises(DivergedError, match="exploded"):
            pretrain(wild, slices, 0, make_store())


class TestMemory:
    def test_absurd_sizes_are_told_with_what_to_change(self, config, slices, make_store):
        absurd, store = config.model_copy(update={"max_positions": (2**42, 32, 64)}), make_store()
        with pytest.raises(OutOfMemoryError) as caught:
            pretrain(absurd, slices, 0, store)
        text = str(caught.value)
        assert text.startswith("pre-training does not fit in the memory of cpu: a part of a step has 4 windows of 66")
        for name in ("backbone.accumulation", "backbone.recompute", "backbone.batch_size", "max_positions"):
            assert name in text
        assert "\n" not in text
        assert not store.exists(plan_backbone(absurd, slices, 0).ref)

    @pytest.mark.parametrize(
        "error",
        [torch.OutOfMemoryError("CUDA out of memory.\nTried"), MemoryError(), RuntimeError("can't allocate memory: x")],
    )
    def test_a_step_that_does_not_fit_is_told(self, config, slices, make_store, monkeypatch, error):
        monkeypatch.setattr(training.Objective, "measure", raising(error))
        with pytest.raises(OutOfMemoryError, match="a part of a step has 2 windows of 66 tokens, with d_model 16"):
            pretrain(config.model_copy(update={"accumulation": 2}), slices, 0, make_store())

    def test_other_errors_stay_what_they_are(self, config, slices, make_store, monkeypatch):
        monkeypatch.setattr(training.Objective, "measure", raising(RuntimeError("shapes do not match")))
        with pytest.raises(RuntimeError, match="shapes do not match"):
            pretrain(config, slices, 0, make_store())

    def test_no_thread_is_left_after_an_error(self, config, slices, make_store, monkeypatch):
        before = set(threading.enumerate())
        monkeypatch.setattr(training.Objective, "measure", raising(RuntimeError("broken")))
        with pytest.raises(RuntimeError, match="broken"):
            pretrain(config, slices, 0, make_store())
        assert set(threading.enumerate()) <= before


def raising(error):
    """Return a function that raises an error, whatever it is given."""

    def fail(*given):
        raise error

    return fail


class TestComposition:
    def test_lists_training_models_only(self, whole, tiny_table):
        used = pl.read_parquet(whole.path("composition.parquet"))
        splits = dict(tiny_table.index.select("model", "split").rows())
        assert {splits[model] for model in used["model"]} == {"train"}
        assert used["model"].n_unique() == 3
        assert used.select("slice", "epoch").unique().sort("epoch").rows() == [(0, 1), (0, 2)]
        assert len(used) == 6 == whole.manifest.counts["training_checkpoints"]

    @pytest.mark.usefixtures("quick")
    def test_slices_take_their_models_and_epochs(self, config, tiny_tokens, make_store):
        parts = [take(tiny_tokens.ref, 4, last_epochs=1), take(tiny_tokens.ref, 2)]
        backbone = pretrain(config.model_copy(update={"steps": 2}), parts, 0, make_store())
        used = pl.read_parquet(backbone.path("composition.parquet"))
        assert set(used.filter(pl.col("slice") == 0)["epoch"]) == {2}
        assert len(used.filter(pl.col("slice") == 0)) == 4
        assert used.filter(pl.col("slice") == 1)["model"].n_unique() == 2
        assert len(used.filter(pl.col("slice") == 1)) == 4

    @pytest.mark.usefixtures("quick")
    def test_models_are_drawn_by_the_seed(self, config, tiny_tokens, make_store):
        store, drawn = make_store(), set()
        for seed in range(6):
            backbone = pretrain(config.model_copy(update={"steps": 1}), [take(tiny_tokens.ref, 2)], seed, store)
            drawn.add(tuple(pl.read_parquet(backbone.path("composition.parquet"))["model"].unique().sort()))
        assert len(drawn) > 1

    @pytest.mark.parametrize(
        "settings",
        [{"max_positions": (20, 32, 64)}, {"max_positions": (1, 2, 1), "positions": "sinusoidal", "shortcut": True}],
    )
    def test_positions_beyond_the_tables_are_refused(self, config, slices, trained_store, settings):
        small = config.model_copy(update=settings)
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

    @pytest.mark.usefixtures("quick")
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


def test_threads_of_the_process_change_no_bits(tiny_tokens, tiny_backbone_config, tmp_path):
    slices = [TokenSlice(tiny_tokens.ref, SliceConfig(zoo="tiny", models=3))]
    config = tiny_backbone_config.model_copy(update={"d_model": 64, "heads": 2})
    found = []
    for threads in (1, 2):
        shutil.copytree(tiny_tokens.store.root, tmp_path / str(threads))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            made = pretrain(config, slices, 5, ArtifactStore(str(tmp_path / str(threads))))
        finally:
            torch.set_num_threads(before)
        assert made.manifest.counts["threads"] == 1
        found.append(made.manifest.files["weights.safetensors"].sha256)
    assert found[0] == found[1]
