"""The stage that probes a backbone, on a real tiny one."""

import numpy as np
import polars as pl
import pytest
import torch

from mzsane.backbone.inference import load_backbone
from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import GlyphsConfig, SliceConfig, ZooConfig
from mzsane.probing import features
from mzsane.probing import stage as probes
from mzsane.probing.features import FEATURES, extract_features, measure_statistics, sketch_weights
from mzsane.probing.stage import ORDER, PROBE_SCHEMA, ZOO, plan_probes, probe_backbone
from mzsane.tokens.build import build_tokens
from mzsane.tokens.store import read_tokens
from mzsane.zoo.train import train_zoo
from tests.conftest import SERIAL


@pytest.fixture(scope="module")
def probed(make_store, tiny_zoo_config, tiny_tokens_config, tiny_backbone_config):
    """The probes of a backbone of the tiny zoo, with a zoo of its architecture and one of another beside it."""
    store = make_store()
    tokens_config = tiny_tokens_config.model_copy(update={"train_fraction": 0.5, "barrier_pairs": 0})
    others = []
    for name, network in (("figures", {"architecture": "cnn-s"}), ("mlp", {"architecture": "mlp", "width": 8})):
        zoo = ZooConfig(
            name=name,
            images=GlyphsConfig(source="glyphs", characters="0123", images=120),
            network=network,
            models=6,
            epochs=3,
            keep_epochs=3,
        )
        train_zoo(zoo, store, SERIAL)
        others.append(build_tokens(tokens_config, zoo, store).ref)
    own = build_tokens(tokens_config, tiny_zoo_config, store).ref
    slices = [TokenSlice(own, SliceConfig(zoo="tiny", models=3))]
    backbone = pretrain(tiny_backbone_config, slices, 0, store)
    artifact = probe_backbone(backbone.ref, slices, [own, *others], 0, store)
    return store, backbone, slices, others, artifact, pl.read_parquet(artifact.path("probes.parquet"))


def name_twin(others):
    """What the other zoo of the same architecture and source of images is called."""
    return f"glyphs cnn-s {others[0].fingerprint[:6]}"


def test_every_score_says_where_it_is_from(probed):
    store, backbone, slices, others, artifact, rows = probed
    assert dict(rows.schema) == PROBE_SCHEMA
    assert rows.filter(pl.col("value").is_not_null()).height > 20
    inside = rows.filter(pl.col("in_distribution"), pl.col("features").is_not_null())
    assert set(inside["tokens"]) == {slices[0].tokens.fingerprint}
    assert set(inside["sees"]) == {"labels"}
    outside = rows.filter(~pl.col("in_distribution"), pl.col("property") == "test_accuracy")
    assert set(outside["tokens"]) == {ref.fingerprint for ref in others}
    assert set(outside["sees"]) == {"none"}
    assert set(rows.filter(pl.col("zoo") != "all")["zoo"]) == {"glyphs cnn-s", "glyphs mlp", name_twin(others)}
    assert {tuple(names) for names in outside["fitted_on"]} == {("glyphs cnn-s",)}
    assert artifact.path("probes.png").read_bytes().startswith(b"\x89PNG")
    again = probe_backbone(backbone.ref, slices, others, 0, store)
    assert again.ref == artifact.ref


def test_only_pooled_latents_are_carried_to_another_architecture(probed):
    rows = probed[-1].filter(pl.col("features").is_not_null())
    assert set(rows.filter(zoo="glyphs mlp")["features"]) == {"pooled_latents"}
    assert set(rows.filter(zoo=name_twin(probed[3]))["features"]) == set(FEATURES)
    origin = rows.filter(property=ZOO)
    assert set(origin["metric"]) == {"accuracy"}
    assert origin["fitted_on"][0].to_list() == ["glyphs cnn-s", name_twin(probed[3])]


def test_what_cannot_be_probed_says_why(probed):
    rows = probed[-1].filter(pl.col("features").is_null())
    notes = {(zoo, name): note for zoo, name, note in rows.select("zoo", "property", "note").rows()}
    assert notes["glyphs cnn-s", ORDER] == "no model has 3 checkpoints, which an order needs"
    assert rows["value"].null_count() == rows.height


def test_probes_are_fitted_on_the_composition_and_scored_on_test_models(probed, monkeypatch):
    store, backbone, slices, *_ = probed
    seen = {}

    def spy(asked, fitted, scored, generator):
        seen[asked.name] = (set(fitted.models_E), set(scored.models_E))
        return {}

    monkeypatch.setattr(probes, "score_property", spy)
    probe_backbone(backbone.ref, slices, [], 1, store)
    used = pl.read_parquet(backbone.path("composition.parquet"))
    index = read_tokens(store.open(slices[0].tokens)).index
    mark = slices[0].tokens.fingerprint
    fitted, scored = seen["test_accuracy"]
    assert fitted == {f"{mark}/{model}" for model in used["model"]}
    assert scored == {f"{mark}/{model}" for model in index.filter(split="test")["model"]}


def test_a_backbone_of_nan_is_probed_all_the_same(probed, monkeypatch):
    store, backbone, slices, *_ = probed
    model, config = load_backbone(backbone)
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    monkeypatch.setattr(probes, "load_backbone", lambda artifact, device: (model, config))
    rows = pl.read_parquet(probe_backbone(backbone.ref, slices, [], 2, store).path("probes.parquet"))
    own = rows.filter(property="test_accuracy")
    assert set(own.filter(pl.col("note").is_not_null())["features"]) == {
        *("latents", "pooled_latents", "statistics_latents")
    }
    assert set(own.filter(pl.col("value").is_finite())["features"]) == {"weights", "statistics"}


def test_order_of_the_other_zoos_and_names_change_no_fingerprint(probed):
    _, backbone, slices, others, artifact, _ = probed
    own = slices[0].tokens
    assert plan_probes(backbone.ref, slices, [*reversed(others), own, own], 0).ref == artifact.ref
    assert plan_probes(backbone.ref, slices, others[:1], 0).ref != artifact.ref


def test_statistics_are_of_the_weights_without_padding(tiny_table):
    layout, flat = tiny_table.layout, tiny_table.load()[:3]
    statistics = measure_statistics(layout, flat).reshape(3, len(layout.layers), 7)
    first = layout.unflatten(flat)
    names = [entry.name for entry in layout.layers[0].entries]
    weights = torch.cat([first[name].flatten(1) for name in names], dim=1).double()
    np.testing.assert_allclose(statistics[:, 0, 0], weights.mean(1), rtol=1e-6)
    np.testing.assert_allclose(statistics[:, 0, 1], weights.var(1, correction=0), rtol=1e-6)
    np.testing.assert_allclose(statistics[:, 0, 4], np.median(weights, axis=1), atol=0.02)
    assert (np.diff(statistics[:, :, 2:], axis=2) >= 0).all()


def test_many_weights_are_reduced_and_keep_their_distances(monkeypatch):
    flat = torch.randn(8, 3000, generator=torch.Generator().manual_seed(0))
    assert sketch_weights(flat).shape == (8, 3000)
    monkeypatch.setattr(features, "_SKETCHED", 1000)
    reduced = torch.from_numpy(sketch_weights(flat))
    assert reduced.shape == (8, 1000)
    ratio = torch.pdist(reduced) / torch.pdist(flat.double())
    assert 0.9 < float(ratio.min()) < float(ratio.max()) < 1.1


def test_features_have_a_row_a_checkpoint(probed, tiny_table):
    model, config = load_backbone(probed[1])
    found = extract_features(model, tiny_table.layout, tiny_table.load()[:5], config.window)
    assert tuple(found) == FEATURES
    assert {len(values) for values in found.values()} == {5}
    assert found["latents"].shape[1] == 2 * 8 * len(tiny_table.layout.layers)
