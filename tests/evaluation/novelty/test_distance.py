"""Distance to training models: a copy is a copy however its units are ordered."""

import polars as pl
import pytest
import torch

from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import EvaluationConfig, ExecutionConfig, NetworkConfig, SamplingConfig, SliceConfig
from mzsane.errors import ConfigError
from mzsane.evaluation.novelty import distance as novelty
from mzsane.evaluation.novelty.distance import KnownModels, open_known_models
from mzsane.evaluation.score import score_samples
from mzsane.evaluation.selection import draw_samples
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network
from mzsane.randomness import make_generator
from mzsane.sampling.populations import read_populations
from mzsane.sampling.target import Target
from mzsane.symmetry.apply.permute import permute_weights
from mzsane.symmetry.groups import draw_permutations
from mzsane.tokens.build import plan_tokens
from mzsane.tokens.store import TokenTable
from mzsane.tokens.transfer import fit_weights

original = TokenTable.read_part
SERIAL = ExecutionConfig(processes=1)


@pytest.fixture(scope="module")
def known(tiny_table):
    """Three models of two checkpoints each; of one model a fourth."""
    generator = make_generator(0)
    flat = torch.randn(7, tiny_table.layout.weights, generator=generator)
    flat[1::2] = flat[:6:2] + 0.1 * torch.randn(3, flat.shape[1], generator=generator)
    names = ["a", "a", "b", "b", "c", "c", "d"]
    return KnownModels(tiny_table.layout, tiny_table.groups, names, lambda rows: flat[rows]), flat


def shuffle(known, flat_SP, seed=1):
    permutations = draw_permutations(known.groups, len(flat_SP), make_generator(seed))
    return permute_weights(known.layout, known.groups, permutations, flat_SP)


def test_a_copy_is_not_new_in_whatever_order_its_units_are(known):
    known, flat = known
    distances, nearest = known.find_nearest(flat)
    torch.testing.assert_close(distances, torch.zeros(7), atol=1e-3, rtol=0)
    assert [known.names[i] for i in nearest] == ["a", "a", "b", "b", "c", "c", "d"]
    shuffled = shuffle(known, flat[:2])  # of the reference and a checkpoint beside it
    assert torch.cdist(shuffled, flat).min() > 1
    distances, nearest = known.find_nearest(shuffled)
    torch.testing.assert_close(distances, torch.zeros(2), atol=1e-3, rtol=0)
    assert [known.names[i] for i in nearest] == ["a", "a"]


def test_a_known_displacement_is_measured(known):
    known, flat = known
    moved = flat[[2]] + 0.5 * torch.nn.functional.normalize(torch.randn(1, flat.shape[1], generator=make_generator(3)))
    (distance,), (nearest,) = known.find_nearest(moved)
    assert float(distance) == pytest.approx(0.5, rel=1e-3)
    assert known.names[nearest] == "b"
    torch.testing.assert_close(known.measure_novelty(moved), torch.tensor([0.5 / known.spacing]), rtol=1e-3, atol=0)


def test_spacing_leaves_out_the_model_itself_with_all_its_checkpoints(known):
    known, flat = known
    last = flat[[1, 3, 5, 6]]
    others = [[2, 3, 4, 5, 6], [0, 1, 4, 5, 6], [0, 1, 2, 3, 6], [0, 1, 2, 3, 4, 5]]
    plain = [float(torch.cdist(model[None], flat[rest]).min()) for model, rest in zip(last, others, strict=True)]
    assert 1 < known.spacing <= sum(plain) / 4  # aligning can only bring them nearer
    without_groups = KnownModels(known.layout, (), [known.names[i] for i in known.model_K], known.load)
    assert without_groups.spacing == pytest.approx(sum(plain) / 4, rel=1e-4)


def test_spacing_is_that_of_each_zoo_by_itself(known):
    """Zoos of one seed draw the same initial weights; what became of them is no measure of how far models are."""
    known, flat = known
    zoo = flat[[1, 3, 5, 6]]
    flat_KP = torch.cat([zoo, zoo + 0.1 * torch.randn(zoo.shape, generator=make_generator(4))])
    names = [f"{name}/{number}" for name in "ab" for number in range(4)]
    references = {"a": flat_KP[0], "b": flat_KP[4]}
    joined = KnownModels(known.layout, known.groups, names, flat_KP.__getitem__, references)
    twins = joined.find_nearest(flat_KP, torch.arange(8))[0]
    alone = [
        KnownModels(known.layout, known.groups, names[:4], flat_KP[some].__getitem__).spacing
        for some in (slice(4), slice(4, 8))
    ]
    assert twins.max() < 0.5 * min(alone)
    assert joined.spacing == pytest.approx(sum(alone) / 2, rel=0.01)
    alone = KnownModels(known.layout, known.groups, ["a/0", "b/0"], flat_KP[[0, 5]].__getitem__, references)
    assert alone.spacing != alone.spacing


def test_other_models_are_compared_in_the_same_way(known):
    known, flat = known
    anchors = known.against(["x", "y"], flat[[0, 4]])
    distances, nearest = anchors.find_nearest(torch.cat([flat[[0, 4]], shuffle(known, flat[[4, 0]])]))
    torch.testing.assert_close(distances, torch.zeros(4), atol=1e-3, rtol=0)
    assert distances[:2].tolist() == [0.0, 0.0]  # as it lies, to the bit
    assert nearest.tolist() == [0, 1, 1, 0]
    found = known.measure_distances(shuffle(known, flat[[0, 2]]), flat[[0, 2, 4]])
    torch.testing.assert_close(found.diagonal(), torch.zeros(2), atol=1e-3, rtol=0)
    assert found[0, 1] > 1
    assert known.measure_distances(flat, flat[:0]).shape == (7, 0)


def test_spread_is_the_distance_to_the_nearest_other_model(known):
    known, flat = known
    pair = flat[[4]] + 0.5 * torch.nn.functional.normalize(torch.randn(1, flat.shape[1], generator=make_generator(3)))
    broken = torch.full_like(pair, float("nan"))
    spread = known.measure_spread(torch.cat([flat[[4]], broken, shuffle(known, pair), flat[[2]]]))
    assert spread[[0, 2]].tolist() == pytest.approx([0.5 / known.spacing] * 2, rel=1e-2)
    assert spread[1].isnan()
    assert spread[3] > 0.9
    assert known.measure_spread(pair).isnan().all()


def test_chunks_change_nothing(known, monkeypatch):
    known, flat = known
    expected, spacing = known.find_nearest(flat + 0.1), known.spacing
    monkeypatch.setattr(novelty, "_CHUNK", 2 * known.layout.weights)
    again = KnownModels(known.layout, known.groups, [known.names[i] for i in known.model_K], known.load)
    for found, value in zip(again.find_nearest(flat + 0.1), expected, strict=True):
        torch.testing.assert_close(found, value)
    assert again.spacing == pytest.approx(spacing, rel=1e-5)


def test_tables_give_the_same_held_or_read_in_parts(tiny_table, known, monkeypatch):
    rows = tiny_table.pick_rows("train")
    models = tiny_table.load(tiny_table.pick_rows("test")) + 0.01
    held = KnownModels.from_tables({"0": (tiny_table, rows)})
    names = [f"0/{tiny_table.index['model'][row]}" for row in rows.tolist()]
    assert [held.names[i] for i in held.model_K] == names
    assert torch.equal(held.load(torch.arange(len(rows))), tiny_table.load(rows))
    assert [int(i) for i in held.last_N] == [max(k for k, of in enumerate(names) if of == name) for name in held.names]
    reads = []
    monkeypatch.setattr(TokenTable, "read_part", lambda self, part: reads.append(part) or original(self, part))
    monkeypatch.setattr(novelty, "_CHUNK", 2 * tiny_table.layout.weights)
    read = KnownModels.from_tables({"0": (tiny_table, rows)})
    first = len(reads)
    for found, value in zip(read.find_nearest(models), held.find_nearest(models), strict=True):
        torch.testing.assert_close(found, value)
    assert read.spacing == pytest.approx(held.spacing, rel=1e-5)
    assert len(reads) - first == tiny_table.parts == 1  # and not once for every chunk and candidate


def test_bodies_are_compared_where_heads_have_other_classes(tiny_table):
    wide = build_network(NetworkConfig(), 1, 9, 28)
    layout = TokenLayout.from_network(wide, tiny_table.layout.token_dim)
    rows = tiny_table.pick_rows("train", last_epochs=1)
    known = KnownModels.from_tables({"0": (tiny_table, rows)}, layout)
    copies = fit_weights(tiny_table.layout, layout, tiny_table.load(rows))
    head = layout.layers[-1]
    offset = layout.offsets[head.entries[0].name]
    copies[:, offset:] = torch.randn(len(rows), layout.weights - offset, generator=make_generator(5))
    distances, nearest = known.find_nearest(copies)
    assert distances.tolist() == pytest.approx([0.0] * len(rows), abs=2e-3)
    assert [known.names[i] for i in nearest] == [f"0/{tiny_table.index['model'][row]}" for row in rows.tolist()]
    shuffled = shuffle(known, known.load(torch.arange(1)))  # units of the body, whose columns in the head do not count
    moved = copies[:1].clone()
    moved[:, known.columns_P] = shuffled
    assert float(known.find_nearest(moved)[0]) == pytest.approx(0.0, abs=2e-3)
    moved[:, known.columns_P[0]] += 0.5
    assert float(known.find_nearest(moved)[0]) == pytest.approx(0.5, rel=1e-2)
    assert 0 < known.spacing < KnownModels.from_tables({"0": (tiny_table, rows)}).spacing


def test_other_architectures_are_not_compared(tiny_table):
    other = TokenLayout.from_network(
        build_network(NetworkConfig(architecture="mlp"), 1, 4, 28), tiny_table.layout.token_dim
    )
    with pytest.raises(ConfigError, match="measuring novelty needs models of one layout"):
        KnownModels.from_tables({"0": (tiny_table, tiny_table.pick_rows("train"))}, other)


def test_what_cannot_be_compared_is_not_a_number(known):
    known, flat = known
    broken = flat[:2].clone()
    broken[0, 0] = float("nan")
    distances, _ = known.find_nearest(broken)
    assert distances.isnan().tolist() == [True, False]
    alone = KnownModels(known.layout, known.groups, ["a"], lambda rows: flat[rows])
    assert alone.spacing != alone.spacing


def test_scores_tell_how_new_each_model_is(make_store, tiny_zoo_config, tiny_tokens_config, tiny_backbone_config):
    store = make_store()
    slices = [TokenSlice(plan_tokens(tiny_tokens_config, tiny_zoo_config).ref, SliceConfig(zoo="tiny", models=3))]
    backbone = pretrain(tiny_backbone_config, slices, 0, store)
    target = Target(tiny_zoo_config.network, tiny_zoo_config.images, slices[0].tokens)
    sampling = SamplingConfig(anchors=2, samples=6, keep=3, bandwidth=0.2)
    samples = draw_samples(sampling, target, backbone.ref, slices, [0], 0, store, SERIAL)
    known = open_known_models(samples, store, read_populations(samples)[2])
    used = pl.read_parquet(backbone.path("composition.parquet"))
    assert sorted(known.names) == sorted({f"0/{model}" for model in used["model"]})
    assert len(known.model_K) == len(used)
    populations, records, _ = read_populations(samples)
    torch.testing.assert_close(known.measure_novelty(populations["anchor_weights"]), torch.zeros(2), atol=1e-3, rtol=0)

    evaluation = EvaluationConfig(finetune_epochs=(0, 1), finetune_models=1, ensembles=())
    scores = score_samples(evaluation, sampling, target, samples.ref, 0, store, SERIAL)
    rows = pl.read_parquet(scores.path("scores.parquet"))
    assert rows.filter(finetune_epochs=1)["novelty"].is_null().all()
    found = rows.filter(method="samples", finetune_epochs=0).sort("model")["novelty"]
    assert found.to_list() == pytest.approx(known.measure_novelty(populations["samples"]).tolist())
    selected = records.filter(pl.col("rank") <= 3).sort("rank")["sample"].to_list()
    of_selected = rows.filter(method="selected", finetune_epochs=0).sort("model")["novelty"].to_list()
    assert of_selected == pytest.approx([found[i] for i in selected])
