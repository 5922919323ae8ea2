"""Validation during pre-training: right numbers, from validation models and images alone, and nothing else touched."""

import dataclasses
import io
import random

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import nn

from mzsane.backbone.autoencoder import build_autoencoder
from mzsane.backbone.validation import judge
from mzsane.backbone.validation.measure import Validator
from mzsane.composition import ChosenSlice
from mzsane.config import GlyphsConfig, NetworkConfig, ZooConfig
from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network
from mzsane.problems.images.dataset import load_images
from mzsane.store.artifacts import Artifact
from mzsane.tokens.store import TokenTable
from mzsane.zoo.train import train_zoo
from tests.conftest import SERIAL

FAMILIES = ("val_r2", "val_accuracy", "val_sample_accuracy", "val_agreement", "probe_r2")


@dataclasses.dataclass(frozen=True)
class HeldTable(TokenTable):
    """A table whose weights are in memory, so that a test can change them."""

    flat_NP: torch.Tensor

    def load(self, rows=None, dtype=torch.float32):
        return (self.flat_NP if rows is None else self.flat_NP[rows]).to(dtype)


class Copier(nn.Module):
    """An autoencoder whose latents are the tokens; what it decodes can be scaled, or changed by fixed noise."""

    def __init__(self, scale=1.0, noise=0.0):
        super().__init__()
        self.scale, self.noise, self.decoded = scale, noise, []

    def encode(self, tokens_BWD, positions_BW3, segments_BW=None):
        return tokens_BWD

    def decode(self, latents_BWL, positions_BW3, segments_BW=None):
        self.decoded.append(latents_BWL)
        shift = torch.randn(latents_BWL.shape[1:], generator=torch.Generator().manual_seed(0))
        return self.scale * latents_BWL + self.noise * shift


def hold(table, index=None, flat_NP=None, layout=None):
    fields = {field.name: getattr(table, field.name) for field in dataclasses.fields(TokenTable)}
    fields |= {"flat_NP": table.load() if flat_NP is None else flat_NP}
    fields |= {"index": table.index if index is None else index, "layout": layout or table.layout}
    return HeldTable(**fields)


def tell(table, zoo):
    """Return the table as if it were of another zoo, or of one that is not told."""
    inputs = {} if zoo is None else {"zoo": str(zoo.ref)}
    manifest = table.artifact.manifest.model_copy(update={"inputs": inputs})
    held = hold(table)
    return dataclasses.replace(held, artifact=Artifact(table.artifact.store if zoo is None else zoo.store, manifest))


def take(table):
    return ChosenSlice(table, table.pick_rows("train"), 1.0)


def plant(table, values, epochs=1):
    """Return a table of more models, three quarters to train on: each a network plus its value in all weights."""
    count = len(values)
    split = ["train"] * (3 * count // 4) + ["val"] * (count - 3 * count // 4)
    generator = torch.Generator().manual_seed(1)
    flat_NP = table.load()[:1] + 0.05 * torch.randn(count, table.layout.weights, generator=generator)
    index = pl.DataFrame(
        {
            "model": [f"{number // epochs:03d}" for number in range(count)],
            "epoch": [number % epochs for number in range(count)],
            "split": split,
            "planted": values,
            "chance": torch.randn(count, generator=generator).tolist(),
            "constant": 1.0,
            "part": range(count),
            "word": "yes",
        }
    )
    return hold(table, index, flat_NP + torch.tensor(values)[:, None])


@pytest.fixture(scope="module")
def images(tiny_zoo_config):
    return load_images(tiny_zoo_config.images)


@pytest.fixture(scope="module")
def config(tiny_backbone_config):
    return tiny_backbone_config


def run_plainly(network, layout, flat_P, images_NCHW):
    network.load_state_dict(layout.unflatten(flat_P))
    with torch.no_grad():
        return torch.cat([network.eval()(image_CHW[None]).argmax(dim=1) for image_CHW in images_NCHW])


def test_a_perfect_copy_has_r2_one_no_gap_and_full_agreement(tiny_table, config):
    values = Validator([take(tiny_table), take(tiny_table)], config, 0).measure(Copier())
    for number in (0, 1):
        assert values[f"val_r2/{number}"] == 1
        assert values[f"val_r2_conv/{number}"] == values[f"val_r2_linear/{number}"] == 1
        assert values[f"val_accuracy_gap/{number}"] == 0
        assert values[f"val_agreement/{number}"] == 1


def test_windows_shorter_than_a_model_are_stitched(tiny_table, config):
    short = config.model_copy(update={"window": 24})
    model = Copier()
    assert Validator([take(tiny_table)], short, 0).measure(model)["val_r2/0"] == 1
    assert max(latents.shape[1] for latents in model.decoded) == 24


def test_a_decoder_of_zeros_explains_nothing(tiny_table, config):
    values = Validator([take(tiny_table)], config, 0).measure(Copier(scale=0.0))
    for name in ("val_r2/0", "val_r2_conv/0", "val_r2_linear/0"):
        assert -1 < values[name] <= 0
    assert values["val_agreement/0"] < 1


def test_r2_of_a_kind_is_over_the_weights_of_its_layers(tiny_table, config):
    model = Copier(noise=0.1)
    values = Validator([take(tiny_table)], config, 0).measure(model)
    layout = tiny_table.layout
    flat_BP = tiny_table.load(tiny_table.pick_rows("val", last_epochs=1))
    original = layout.unflatten(flat_BP)
    decoded = layout.unflatten(layout.detokenize(model.decode(layout.tokenize(flat_BP), None)))
    for kind, modules in {"conv": (0, 3, 6), "linear": (9, 11)}.items():
        names = [f"module_list.{module}.{part}" for module in modules for part in ("weight", "bias")]
        x, y = (
            np.concatenate([state[name].double().numpy().ravel() for name in names]) for state in (original, decoded)
        )
        expected = 1 - ((x - y) ** 2).sum() / ((x - x.mean()) ** 2).sum()
        assert values[f"val_r2_{kind}/0"] == pytest.approx(expected, abs=1e-5)


def test_accuracies_are_those_of_real_networks_run_one_image_at_a_time(tiny_table, tiny_zoo_config, images, config):
    model = Copier(noise=0.12)
    values = Validator([take(tiny_table)], config, 0).measure(model)
    layout, split = tiny_table.layout, images.splits["val"]
    network = build_network(tiny_zoo_config.network, images.channels, images.classes, images.size)
    flat_P = tiny_table.load(tiny_table.pick_rows("val", last_epochs=1))[0]
    decoded_P = layout.detokenize(model.decode(layout.tokenize(flat_P[None]), None))[0]
    before_N, after_N = (run_plainly(network, layout, flat, split.images_NCHW) for flat in (flat_P, decoded_P))
    accuracy = float((after_N == split.labels_N).double().mean())
    assert values["val_accuracy/0"] == pytest.approx(accuracy)
    assert values["val_accuracy_gap/0"] == pytest.approx(float((before_N == split.labels_N).double().mean()) - accuracy)
    assert values["val_agreement/0"] == pytest.approx(float((before_N == after_N).double().mean()))
    assert 0 < values["val_agreement/0"] < 1


def test_a_model_is_run_with_its_own_activation_where_the_zoo_varies_it(tiny_table, tiny_zoo_config, images, config):
    index = tiny_table.index.with_columns(pl.lit('{"activation": "relu"}').alias("recipe"))
    values = Validator([take(hold(tiny_table, index))], config, 0).measure(Copier())
    relu = tiny_zoo_config.network.model_copy(update={"activation": "relu"})
    split = images.splits["val"]
    classes_N = run_plainly(
        build_network(relu, images.channels, images.classes, images.size),
        tiny_table.layout,
        tiny_table.load(tiny_table.pick_rows("val", last_epochs=1))[0],
        split.images_NCHW,
    )
    assert values["val_accuracy/0"] == pytest.approx(float((classes_N == split.labels_N).double().mean()))


def test_batch_norm_is_conditioned_on_training_images(tiny_table, config, store):
    network_config = NetworkConfig(architecture="resnet18", width=4)
    dataset = GlyphsConfig(source="glyphs", characters="AB", images=60)
    zoo = train_zoo(
        ZooConfig(name="resnets", images=dataset, network=network_config, models=2, epochs=1, keep_epochs=1),
        store,
        SERIAL,
    )
    images = load_images(dataset)
    network = build_network(network_config, images.channels, images.classes, images.size)
    layout = TokenLayout.from_network(network, 51)
    flat_NP = torch.empty(len(tiny_table.index), layout.weights)
    for number in range(len(flat_NP)):
        initialise_network(network, "kaiming_normal", torch.Generator().manual_seed(number))
        flat_NP[number] = layout.flatten({name: value.detach() for name, value in network.named_parameters()})
    table = hold(tell(tiny_table, zoo), flat_NP=flat_NP, layout=layout)
    values = Validator([take(table)], config, 0).measure(Copier(noise=0.05))

    flat_BP = table.load(table.pick_rows("val", last_epochs=1))
    decoded_BP = layout.detokenize(_stitch_noise(layout.tokenize(flat_BP), config.window))
    expected = []
    for flat_P in (flat_BP[0], decoded_BP[0]):
        network = build_network(network_config, images.channels, images.classes, images.size)
        network.load_state_dict(layout.unflatten(flat_P), strict=False)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of the one batch alone
        with torch.no_grad():
            network.train()(images.splits["train"].images_NCHW)
            expected.append(network.eval()(images.splits["val"].images_NCHW).argmax(dim=1))
    labels_N = images.splits["val"].labels_N
    assert set(values) >= {"val_r2_conv/0", "val_r2_norm/0", "val_r2_linear/0"}
    assert values["val_accuracy/0"] == pytest.approx(float((expected[1] == labels_N).double().mean()))
    assert values["val_agreement/0"] == pytest.approx(float((expected[0] == expected[1]).double().mean()))


def _stitch_noise(tokens_BTD, window):
    """Return what `Copier(noise=0.05)` decodes in windows with a halo of a quarter."""
    model, halo, length = Copier(noise=0.05), window // 4, tokens_BTD.shape[1]
    out = torch.empty_like(tokens_BTD)
    for first in range(0, length, window - 2 * halo):
        start = min(max(first - halo, 0), length - window)
        decoded = model.decode(tokens_BTD[:, start : start + window], None)
        out[:, first : first + window - 2 * halo] = decoded[:, first - start :][:, : window - 2 * halo]
    return out


def test_samples_are_training_models_with_a_fifth_of_their_deviation_as_noise(tiny_table, config):
    model = Copier()
    Validator([take(tiny_table)], config, 0).measure(model)
    anchors_BTL = tiny_table.layout.tokenize(tiny_table.load(tiny_table.pick_rows("train", last_epochs=1)))
    (samples_BTL,) = [latents for latents in model.decoded if len(latents) == len(anchors_BTL)]
    spread_TL = anchors_BTL.std(dim=0, correction=0)
    noise_BTL = ((samples_BTL - anchors_BTL) / spread_TL)[:, spread_TL > 0]
    assert float(noise_BTL.std()) == pytest.approx(0.2, rel=0.03)
    assert float(noise_BTL.mean()) == pytest.approx(0, abs=0.01)
    correlations_BB = torch.corrcoef(noise_BTL) - torch.eye(len(noise_BTL))
    assert float(correlations_BB.abs().max()) < 0.08  # each sample has noise of its own


def test_samples_of_equal_anchors_are_the_anchor(tiny_table, images, tiny_zoo_config, config):
    flat_NP = tiny_table.load()[-1:].expand(len(tiny_table.index), -1).clone()
    values = Validator([take(hold(tiny_table, flat_NP=flat_NP))], config, 0).measure(Copier())
    split = images.splits["val"]
    network = build_network(tiny_zoo_config.network, images.channels, images.classes, images.size)
    classes_N = run_plainly(network, tiny_table.layout, flat_NP[0], split.images_NCHW)
    assert values["val_sample_accuracy/0"] == pytest.approx(float((classes_N == split.labels_N).double().mean()))


def test_probes_find_a_planted_property_and_not_chance(tiny_table, config):
    values = [0.1 * ((7 * number) % 40) / 40 for number in range(40)]
    found = Validator([take(plant(tiny_table, values))], config, 0).measure(Copier())
    assert {name for name in found if name.startswith("probe")} == {"probe_r2_planted/0", "probe_r2_chance/0"}
    assert found["probe_r2_planted/0"] > 0.9
    assert found["probe_r2_chance/0"] < 0.3


def test_probes_are_scored_on_models_that_they_do_not_know(tiny_table, config):
    table = plant(tiny_table, [0.01 * (number % 40) for number in range(80)], epochs=2)
    moved = pl.when(pl.col("split") == "val").then(-pl.col("planted")).otherwise(pl.col("planted"))
    upside_down = hold(table, table.index.with_columns(moved.alias("planted")), table.flat_NP)
    assert Validator([take(table)], config, 0).measure(Copier())["probe_r2_planted/0"] > 0.9
    assert Validator([take(upside_down)], config, 0).measure(Copier())["probe_r2_planted/0"] < 0


def test_probes_leave_out_what_is_not_known_of_a_checkpoint(tiny_table, config):
    table = plant(tiny_table, [0.01 * (number % 20) for number in range(40)])
    holes = pl.when(pl.col("model").is_in(["003", "035"])).then(None).when(pl.col("model") == "004").then(float("inf"))
    index = table.index.with_columns(holes.otherwise(pl.col("planted")).alias("planted"))
    found = Validator([take(hold(table, index, table.flat_NP))], config, 0).measure(Copier())
    assert found["probe_r2_planted/0"] > 0.9


def test_a_backbone_that_gives_no_numbers_is_measured_all_the_same(tiny_table, config):
    table = plant(tiny_table, [0.01 * number for number in range(40)])
    model = Copier(scale=float("nan"))
    model.encode = lambda tokens_BWD, positions_BW3: tokens_BWD * float("nan")
    found = Validator([take(table)], config, 0).measure(model)
    assert np.isnan(found["val_r2/0"])
    assert np.isnan(found["probe_r2_planted/0"])
    assert 0 <= found["val_accuracy/0"] < 1


class Forbidding(dict):
    """The splits of an image dataset, without its test images."""

    def __getitem__(self, name):
        assert name != "test", "test images are read"
        return super().__getitem__(name)


def test_nothing_of_the_test_split_is_read(tiny_table, images, config, monkeypatch):
    expected = Validator([take(tiny_table)], config, 0)
    table = hold(tiny_table)
    table.flat_NP[table.pick_rows("test")] = float("nan")
    changed = {name: np.nan for name in table.index.columns if name.startswith("test_") or name == "generalisation_gap"}
    assert len(changed) == 3
    table = hold(table, table.index.with_columns(**{name: pl.lit(value) for name, value in changed.items()}))
    guarded = dataclasses.replace(images, splits=Forbidding(images.splits))
    monkeypatch.setattr(judge, "load_images", lambda config: guarded)
    model = Copier(noise=0.1)
    assert Validator([take(table)], config, 0).measure(model) == expected.measure(model)


def test_metrics_of_test_images_are_not_probed(tiny_table, config):
    table = plant(tiny_table, [0.01 * number for number in range(40)])
    planted = pl.col("planted")
    index = table.index.with_columns(
        test_accuracy=planted, test_loss=planted, generalisation_gap=planted, val_accuracy=planted
    )
    found = Validator([take(hold(table, index, table.flat_NP))], config, 0).measure(Copier())
    probed = {name for name in found if name.startswith("probe")}
    assert probed == {"probe_r2_planted/0", "probe_r2_chance/0", "probe_r2_val_accuracy/0"}


def test_unknown_origin_leaves_accuracies_out_and_says_so(tiny_table, config):
    validator = Validator([take(tell(tiny_table, None))], config, 0, names=["bought"])
    values = validator.measure(Copier())
    assert values["val_r2/0"] == 1
    assert not any("accuracy" in name or "agreement" in name for name in values)
    assert "slice 0 (bought): val_accuracy, val_agreement and val_sample_accuracy are left out" in validator.notes[0]


def test_missing_images_leave_accuracies_out_and_say_which(tiny_table, config, monkeypatch):
    def refuse(config):
        raise ConfigError("image dataset mnist is not in the data folder")

    monkeypatch.setattr(judge, "load_images", refuse)
    validator = Validator([take(tiny_table)], config, 0)
    assert "image dataset mnist is not in the data folder" in validator.notes[0]
    assert "val_accuracy/0" not in validator.measure(Copier())


def test_tokens_of_another_network_are_not_run(tiny_table, tiny_zoo_config, config, store):
    update = {"network": NetworkConfig(architecture="mlp"), "models": 2, "epochs": 1, "keep_epochs": 1}
    zoo = train_zoo(tiny_zoo_config.model_copy(update=update), store, SERIAL)
    validator = Validator([take(tell(tiny_table, zoo))], config, 0)
    assert "the tokens are not those of the zoo's network, mlp" in validator.notes[0]


def test_without_validation_models_only_samples_are_measured(tiny_table, config):
    index = tiny_table.index.with_columns(pl.col("split").replace("val", "test"))
    validator = Validator([take(hold(tiny_table, index))], config, 0)
    assert set(validator.measure(Copier())) == {"val_sample_accuracy/0"}
    assert len(validator.notes) == 1
    assert "no validation models" in validator.notes[0]
    assert validator.draw(Copier()).startswith(b"\x89PNG")


def test_too_few_checkpoints_are_not_probed_and_it_is_said(tiny_table, config):
    validator = Validator([take(tiny_table)], config, 0)
    assert "probes are left out" in validator.notes[0]
    assert not any(name.startswith("probe") for name in validator.measure(Copier()))


def test_a_slice_of_the_last_epoch_is_probed_at_that_epoch(tiny_table, config):
    table = plant(tiny_table, [0.01 * (number % 40) for number in range(80)], epochs=2)
    part = ChosenSlice(table, table.pick_rows("train", last_epochs=1), 1.0)
    zoo = Validator([part], config, 0)._zoos[0]
    assert [len(flat_EP) for flat_EP in zoo.probes.flat] == [30, 10]
    assert "epoch" not in zoo.probes.properties


def test_the_same_backbone_measures_the_same_whatever_surrounds_it(tiny_table, config):
    table = plant(tiny_table, [0.01 * (number % 20) for number in range(40)])
    model = build_autoencoder(config, table.layout.token_dim, torch.Generator().manual_seed(0))
    validator = Validator([take(table)], config, 3)
    first = validator.measure(model)
    validator.measure(Copier(noise=1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert validator.measure(model) == first
    assert Validator([take(table)], config, 3).measure(model.train()) == first
    assert model.training
    assert {name.split("/")[0] for name in first} >= {"val_r2", "val_sample_accuracy", "probe_r2_chance"}


def test_no_global_generator_is_touched(tiny_table, config):
    table = plant(tiny_table, [0.01 * (number % 20) for number in range(40)])
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    validator = Validator([take(table)], config, 0)
    validator.measure(Copier())
    validator.draw(Copier())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_no_more_models_are_decoded_than_is_said(tiny_table, config):
    model = Copier()
    table = plant(tiny_table, [0.01 * (number % 50) for number in range(400)])
    Validator([take(table)], config, 0).measure(model)
    assert sum(len(latents) for latents in model.decoded) == 48 + 8


def test_the_picture_shows_a_panel_for_each_zoo_and_kind(tiny_table, config):
    validator = Validator([take(tiny_table)], config, 0, names=["letters"])
    one = Image.open(io.BytesIO(validator.draw(Copier(noise=0.05))))
    two = Image.open(io.BytesIO(Validator([take(tiny_table)] * 2, config, 0).draw(Copier(noise=0.05))))
    assert two.width == one.width
    assert two.height > 1.4 * one.height
    assert Image.open(io.BytesIO(validator.draw(Copier(scale=float("nan"))))).size == one.size
