"""The memorisation card tells copies from new models, by weights and by what they do."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from mzsane.config import ExecutionConfig, GlyphsConfig
from mzsane.evaluation.novelty.distance import KnownModels
from mzsane.evaluation.novelty.memorisation import CARD_SCHEMA, Memorisation
from mzsane.networks.build import build_network
from mzsane.networks.disagreement import classify_models
from mzsane.networks.run import ModelSet
from mzsane.problems.images.dataset import load_images
from mzsane.randomness import make_generator
from mzsane.symmetry.apply.permute import permute_weights
from mzsane.symmetry.groups import draw_permutations

SERIAL = ExecutionConfig(processes=1)


@pytest.fixture(scope="module")
def known(tiny_table):
    return KnownModels.from_tables({"0": (tiny_table, tiny_table.pick_rows("train"))})


@pytest.fixture(scope="module")
def make(tiny_table, tiny_zoo_config, known):
    def run(flat_SP, judged=known, decoded=None):
        models = ModelSet(tiny_zoo_config.network, tiny_zoo_config.images, tiny_table.layout, flat_SP)
        memorisation = Memorisation(judged, {0: tiny_table}, models, 0, SERIAL, decoded_AP=decoded)
        return memorisation.measure(flat_SP, sampled=decoded is not None)

    return run


@pytest.fixture(scope="module")
def classify(tiny_table, tiny_zoo_config):
    """Predicted classes of a model on validation images, without the code that is tested."""
    images = load_images(tiny_zoo_config.images)
    network = build_network(tiny_zoo_config.network, images.channels, images.classes, images.size).eval()

    @torch.no_grad()
    def run(flat_P):
        network.load_state_dict(tiny_table.layout.unflatten(flat_P))
        return network(images.splits["val"].images_NCHW).argmax(dim=1)

    return run, images.splits["val"].labels_N


def test_a_shuffled_copy_is_told(make, tiny_table, known):
    rows = tiny_table.pick_rows("train", last_epochs=1)
    copies = tiny_table.load(rows)[:2]
    # Of the zoo's reference, whose order weight matching always finds.
    permutations = draw_permutations(tiny_table.groups, 1, make_generator(1))
    shuffled = permute_weights(tiny_table.layout, tiny_table.groups, permutations, copies[:1])
    assert torch.cdist(shuffled, tiny_table.load()).min() > known.spacing / 2
    card = make(torch.cat([copies, shuffled]))
    assert card.schema == pl.Schema(CARD_SCHEMA)
    names = [f"0/{tiny_table.index['model'][row]}" for row in rows[:2].tolist()]
    assert card["nearest_model"].to_list() == [*names, names[0]]
    assert card["novelty"].to_list() == pytest.approx([0.0] * 3, abs=2e-3)
    assert card["disagreement"].to_list() == [0.0] * 3
    assert card["error_overlap"].to_list() == pytest.approx([1.0] * 3)
    first, other, shuffle = card["spread"].to_list()
    assert (first, shuffle) == pytest.approx((0.0, 0.0), abs=2e-3)
    assert other > 0.1


def test_errors_are_compared_with_the_most_similar_training_model(make, tiny_table, classify):
    run, labels = classify
    flat = tiny_table.load(tiny_table.pick_rows("train", last_epochs=1))
    noisy = flat + 0.3 * torch.randn(flat.shape, generator=make_generator(2))
    card = make(noisy)
    known = [run(flat_P) for flat_P in flat]
    for flat_P, row in zip(noisy, card.iter_rows(named=True), strict=True):
        classes = run(flat_P)
        overlaps, disagreements = [], []
        for other in known:
            wrong, theirs = classes != labels, other != labels
            overlaps.append(float((wrong & theirs).sum() / (wrong | theirs).sum()))
            judged = ~(wrong & theirs)  # at least one of the two is right
            disagreements.append(float((classes != other)[judged].double().mean()))
        assert row["error_overlap"] == pytest.approx(max(overlaps))
        assert row["disagreement"] == pytest.approx(disagreements[overlaps.index(max(overlaps))])
    assert 0 < card["disagreement"].max() <= 1


def test_a_decoded_anchor_has_no_sampling_novelty(make, tiny_table, known):
    """Not even one that the autoencoder decodes badly, which is far from every training model."""
    flat = tiny_table.load(tiny_table.pick_rows("train", last_epochs=1))[:2]
    decoded = flat + 0.2 * torch.randn(flat.shape, generator=make_generator(5))
    permutations = draw_permutations(tiny_table.groups, 2, make_generator(6))
    shuffled = permute_weights(tiny_table.layout, tiny_table.groups, permutations, decoded)
    step = torch.nn.functional.normalize(torch.randn(2, flat.shape[1], generator=make_generator(7)))
    card = make(torch.cat([decoded, shuffled, decoded + 0.5 * step]), decoded=decoded)
    assert card["sampling_novelty"].to_list() == pytest.approx([0.0] * 4 + [0.5 / known.spacing] * 2, abs=2e-3)
    assert min(card["novelty"]) > 0.2
    assert make(decoded)["sampling_novelty"].null_count() == 2  # of what no sampler made


def test_a_layer_that_is_too_large_is_marked(make, tiny_table):
    flat = tiny_table.load(tiny_table.pick_rows("train", last_epochs=1))[1:2]
    larger = flat.clone()
    entry = tiny_table.layout.tensors[-2]
    offset = tiny_table.layout.offsets[entry.name]
    larger[:, offset : offset + entry.size] *= 3
    card = make(torch.cat([flat, larger]))
    assert card["outside_norms"][1]
    assert card["norm_ratio"][1] > 2 > card["norm_ratio"][0]


def test_samples_near_one_another_are_told(make, tiny_table, known):
    far = torch.randn(3, tiny_table.layout.weights, generator=make_generator(3))
    step = torch.nn.functional.normalize(torch.randn(1, far.shape[1], generator=make_generator(4)))
    card = make(torch.cat([far, far[:1] + 0.5 * step]))
    distances = card["spread"].to_list()
    assert distances[0] == distances[3] == pytest.approx(0.5 / known.spacing, rel=1e-2)
    assert min(distances[1:3]) > 10 * distances[0]


def test_what_cannot_be_measured_is_null(make, tiny_table):
    flat = tiny_table.load(tiny_table.pick_rows("test", last_epochs=1))
    broken = torch.cat([flat, flat + 0.1, torch.full_like(flat, float("nan"))])
    card = make(broken)
    assert card["novelty"].is_null().to_list() == [False, False, True]
    for name in ("nearest_model", "disagreement", "error_overlap", "outside_norms", "spread"):
        assert card[name].is_null().to_list() == [False, False, True], name
    assert make(flat)["spread"].to_list() == [None]
    nothing = make(broken, None)
    assert nothing.schema == pl.Schema(CARD_SCHEMA)
    assert nothing.null_count().row(0) == (3,) * len(CARD_SCHEMA)


def test_models_are_classified_with_their_own_activation(tiny_table, tiny_zoo_config):
    flat = tiny_table.load(tiny_table.pick_rows("train", last_epochs=1))[:1].expand(2, -1) * 2
    models = ModelSet(
        tiny_zoo_config.network, GlyphsConfig(source="glyphs", characters="ABCD"), tiny_table.layout, flat
    )
    tanh, sigmoid = classify_models(replace(models, activations=(None, "sigmoid")), SERIAL)
    again = classify_models(models, SERIAL)
    assert torch.equal(again[0], tanh)
    assert torch.equal(again[1], tanh)
    assert not torch.equal(sigmoid, tanh)


def test_chunks_of_models_keep_their_order(tiny_table, tiny_zoo_config, monkeypatch):
    flat = tiny_table.load()
    models = ModelSet(tiny_zoo_config.network, tiny_zoo_config.images, tiny_table.layout, flat)
    whole = classify_models(models, SERIAL)
    monkeypatch.setattr("mzsane.networks.disagreement._CHUNK", 5)
    assert torch.equal(classify_models(models, SERIAL), whole)
