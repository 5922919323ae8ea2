"""The memorisation card tells copies from new models, by weights and by what they do."""

import polars as pl
import pytest
import torch

from mzsane.config import ExecutionConfig, GlyphsConfig
from mzsane.evaluation.disagreement import classify_models, measure_pairs
from mzsane.evaluation.novelty import KnownModels
from mzsane.evaluation.scoring import ModelSet
from mzsane.randomness import make_generator
from mzsane.sampling.card import CARD_SCHEMA, make_card
from mzsane.tokens.symmetry.groups import draw_permutations
from mzsane.tokens.symmetry.permute import permute_weights
from mzsane.zoo.architectures import build_network
from mzsane.zoo.images import load_images

SERIAL = ExecutionConfig(processes=1)


@pytest.fixture(scope="module")
def known(tiny_table):
    return KnownModels.from_tables({"0": (tiny_table, tiny_table.pick_rows("train"))})


@pytest.fixture(scope="module")
def make(tiny_table, tiny_zoo_config, known):
    def run(flat_SP, judged=known):
        models = ModelSet(tiny_zoo_config.network, tiny_zoo_config.images, tiny_table.layout, flat_SP)
        return make_card(models, judged, {0: tiny_table}, 0, SERIAL)

    return run


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
    assert card["nearest_disagreement"].to_list() == [0.0] * 3
    first, other, shuffle = card["nearest_sample_distance"].to_list()
    assert (first, shuffle) == pytest.approx((0.0, 0.0), abs=2e-3)
    assert other > 0.1


def test_disagreement_is_the_share_of_images_put_in_other_classes(make, tiny_table, tiny_zoo_config, known):
    rows = tiny_table.pick_rows("train", last_epochs=1)
    flat = tiny_table.load(rows)
    card = make(flat + 0.3 * torch.randn(flat.shape, generator=make_generator(2)))
    images = load_images(tiny_zoo_config.images)
    classes = {}
    network = build_network(tiny_zoo_config.network, images.channels, images.classes, images.size).eval()
    for row, flat_P in zip(rows.tolist(), flat, strict=True):
        network.load_state_dict(tiny_table.layout.unflatten(flat_P))
        with torch.no_grad():
            predicted = network(images.splits["val"].images_NCHW).argmax(dim=1)
        classes[f"0/{tiny_table.index['model'][row]}"] = predicted
    pairs = [(classes[a] != classes[b]).double().mean() for a in classes for b in classes if a < b]
    assert card["zoo_disagreement"].unique().to_list() == pytest.approx([float(sum(pairs) / len(pairs))])
    noisy = flat + 0.3 * torch.randn(flat.shape, generator=make_generator(2))
    expected = []
    for flat_P, nearest in zip(noisy, card["nearest_model"], strict=True):
        network.load_state_dict(tiny_table.layout.unflatten(flat_P))
        with torch.no_grad():
            predicted = network(images.splits["val"].images_NCHW).argmax(dim=1)
        expected.append(float((predicted != classes[nearest]).double().mean()))
    assert card["nearest_disagreement"].to_list() == pytest.approx(expected)
    assert max(expected) > 0
    assert card["novelty"].to_list() == pytest.approx(known.measure_novelty(noisy).tolist())


def test_samples_near_one_another_are_told(make, tiny_table, known):
    far = torch.randn(3, tiny_table.layout.weights, generator=make_generator(3))
    step = torch.nn.functional.normalize(torch.randn(1, far.shape[1], generator=make_generator(4)))
    card = make(torch.cat([far, far[:1] + 0.5 * step]))
    distances = card["nearest_sample_distance"].to_list()
    assert distances[0] == distances[3] == pytest.approx(0.5 / known.spacing, rel=1e-2)
    assert min(distances[1:3]) > 10 * distances[0]


def test_what_cannot_be_measured_is_null(make, tiny_table):
    flat = tiny_table.load(tiny_table.pick_rows("test", last_epochs=1))
    broken = torch.cat([flat, flat + 0.1, torch.full_like(flat, float("nan"))])
    card = make(broken)
    assert card["novelty"].is_null().to_list() == [False, False, True]
    for name in ("nearest_model", "nearest_disagreement", "nearest_sample_distance"):
        assert card[name].is_null().to_list() == [False, False, True], name
    assert make(flat)["nearest_sample_distance"].to_list() == [None]
    nothing = make(broken, None)
    assert nothing.schema == pl.Schema(CARD_SCHEMA)
    assert nothing.null_count().row(0) == (3,) * len(CARD_SCHEMA)


def test_models_are_classified_with_their_own_activation(tiny_table, tiny_zoo_config):
    flat = tiny_table.load(tiny_table.pick_rows("train", last_epochs=1))[:1].expand(2, -1) * 2
    models = ModelSet(
        tiny_zoo_config.network, GlyphsConfig(source="glyphs", characters="ABCD"), tiny_table.layout, flat
    )
    tanh, sigmoid = classify_models(models, [None, "sigmoid"], SERIAL)
    again = classify_models(models, (), SERIAL)
    assert torch.equal(again[0], tanh)
    assert torch.equal(again[1], tanh)
    assert not torch.equal(sigmoid, tanh)


def test_chunks_of_models_keep_their_order(tiny_table, tiny_zoo_config, monkeypatch):
    flat = tiny_table.load()
    models = ModelSet(tiny_zoo_config.network, tiny_zoo_config.images, tiny_table.layout, flat)
    whole = classify_models(models, (), SERIAL)
    monkeypatch.setattr("mzsane.evaluation.disagreement._CHUNK", 5)
    assert torch.equal(classify_models(models, (), SERIAL), whole)


def test_pairs():
    classes = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0], [1, 1, 2, 0]])
    assert measure_pairs(classes) == pytest.approx((0.25 + 0.5 + 0.25) / 3)
    assert measure_pairs(classes[:1]) != measure_pairs(classes[:1])
