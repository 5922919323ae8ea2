"""The samples stage on a real tiny backbone."""

import polars as pl
import pytest
import torch

from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import ExecutionConfig, SamplingConfig, SliceConfig
from mzsane.evaluation.novelty.distance import open_known_models
from mzsane.evaluation.selection import draw_samples
from mzsane.networks.run import ModelSet, score_models
from mzsane.sampling.guidance import open_guidance, write_soft_targets
from mzsane.sampling.populations import read_populations
from mzsane.sampling.samplers import SAMPLERS, flow
from mzsane.sampling.target import Target
from mzsane.tokens.build import plan_tokens
from mzsane.tokens.store import read_tokens

SERIAL = ExecutionConfig(processes=1)
SAMPLING = SamplingConfig(anchors=2, samples=12, keep=3, bandwidth=0.2)


@pytest.fixture(scope="module")
def arm(make_store, tiny_zoo_config, tiny_tokens_config, tiny_backbone_config):
    store = make_store()
    tokens = plan_tokens(tiny_tokens_config, tiny_zoo_config).ref
    slices = [TokenSlice(tokens, SliceConfig(zoo="tiny", models=3))]
    backbone = pretrain(tiny_backbone_config, slices, 0, store)
    target = Target(tiny_zoo_config.network, tiny_zoo_config.images, tokens)
    samples = draw_samples(SAMPLING, target, backbone.ref, slices, [0], 0, store, SERIAL)
    return store, slices, backbone, target, samples


def test_anchors_are_training_models_of_the_composition(arm):
    store, slices, backbone, _, samples = arm
    used = set(pl.read_parquet(backbone.path("composition.parquet"))["model"])
    _, records, _ = read_populations(samples)
    models = {name.split("/")[1] for name in records["made_of"].explode()}
    assert models <= used
    table = read_tokens(store.open(slices[0].tokens))
    assert used <= set(table.index.filter(pl.col("split") == "train")["model"])


def test_populations_are_what_they_are_called(arm):
    store, slices, backbone, _, samples = arm
    populations, records, layout = read_populations(samples)
    table = read_tokens(store.open(slices[0].tokens))
    model, config = load_backbone(backbone)
    test_rows = table.pick_rows("test", last_epochs=1)
    assert torch.equal(populations["originals"], table.load(test_rows))
    latents = encode_models(model, table.layout, populations["originals"], config.window)
    assert torch.equal(populations["reconstruction"], decode_models(model, table.layout, latents, config.window))
    assert populations["samples"].shape == (12, layout.weights)
    assert len(records) == 12
    for i, name in enumerate(sorted(set(records["made_of"].explode()))):
        row = table.pick_rows("train", last_epochs=1, models=[name.split("/")[1]])
        assert torch.equal(populations["anchor_weights"][i], table.load(row)[0])


def test_the_nearest_anchor_is_told(arm):
    populations, records, _ = read_populations(arm[-1])
    for sample, nearest, distance in records.select("sample", "nearest_anchor", "nearest_distance").rows():
        distances = (populations["samples"][sample] - populations["anchor_weights"]).norm(dim=1)
        assert distance == pytest.approx(float(distances.min()), rel=1e-4)
        assert float(distances[nearest]) == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_draws_models(arm, sampler, monkeypatch):
    monkeypatch.setattr(flow, "_TRAINING_STEPS", 5)
    store, slices, backbone, target, _ = arm
    config = SAMPLING.model_copy(update={"sampler": sampler, "samples": 3, "keep": 1})
    populations, records, layout = read_populations(
        draw_samples(config, target, backbone.ref, slices, [0], 0, store, SERIAL)
    )
    assert populations["samples"].shape == (3, layout.weights)
    assert populations["samples"].isfinite().all()
    assert records["sampler"].to_list() == [sampler] * 3


def test_ranks_come_from_validation_images(arm):
    _, _, _, target, samples = arm
    populations, records, layout = read_populations(samples)
    models = ModelSet(target.network, target.images, layout, populations["samples"])
    validation = [score.accuracy for score in score_models(models, "val", SERIAL)]
    assert records["validation_accuracy"].to_list() == validation
    in_order = records.sort("rank")["validation_accuracy"].to_list()
    assert in_order == sorted(validation, reverse=True)
    assert sorted(records["rank"]) == list(range(1, 13))


def test_another_seed_draws_other_samples(arm):
    store, slices, backbone, target, samples = arm
    other = draw_samples(SAMPLING, target, backbone.ref, slices, [0], 1, store, SERIAL)
    first, second = read_populations(samples)[0]["samples"], read_populations(other)[0]["samples"]
    assert other.ref != samples.ref
    assert not torch.equal(first, second)


def test_what_was_drawn_at_one_bandwidth_saw_no_label(arm):
    _, records, _ = read_populations(arm[-1])
    row = records.select("sees", "anchors_see", "bandwidth", "head", "positions", "conditioned").unique().rows()
    assert row == [("none", "none", 0.2, "decoded", "own", False)]
    assert len(pl.read_parquet(arm[-1].path("bandwidths.parquet"))) == 0


def test_a_bandwidth_of_a_list_is_chosen_on_validation_images_and_that_is_said(arm):
    store, slices, backbone, target, _ = arm
    changes = {"bandwidth": (0.0, 0.3, 1.0), "bandwidth_samples": 4, "least_novelty": 0.0001}
    config = SAMPLING.model_copy(update=changes)
    samples = draw_samples(config, target, backbone.ref, slices, [0], 0, store, SERIAL)
    populations, records, _ = read_populations(samples)
    trials = pl.read_parquet(samples.path("bandwidths.parquet"))
    assert set(trials["bandwidth"]) >= {0.0, 0.3, 1.0}
    assert trials["sampling_novelty"][0] == pytest.approx(0.0, abs=1e-5)  # decoded anchors, however far they are
    new = trials.filter(pl.col("sampling_novelty") >= 0.0001)
    best = new.filter("chosen")
    assert best["validation_accuracy"].to_list() == [new["validation_accuracy"].max()]
    assert records["bandwidth"].unique().to_list() == best["bandwidth"].to_list()
    assert trials.filter("chosen")["bandwidth"].to_list() == best["bandwidth"].to_list()
    assert samples.manifest.counts["bandwidth"] == best["bandwidth"].item()
    assert set(records["sees"]) == {"labels"}
    assert set(records["anchors_see"]) == {"none"}
    # The samples are those of the bandwidth that was chosen, and none that the choice saw.
    fixed = SAMPLING.model_copy(update={"bandwidth": best["bandwidth"].item()})
    again = draw_samples(fixed, target, backbone.ref, slices, [0], 0, store, SERIAL)
    assert torch.equal(populations["samples"], read_populations(again)[0]["samples"])


def test_trials_are_measured_as_they_are(arm, monkeypatch):
    """The record of a trial is the mean of fresh models of that bandwidth, scored on validation images."""
    store, slices, backbone, target, _ = arm
    scored = []

    def watch(models, split, *rest):
        scored.append((split, models.flat_NP, score_models(models, split, *rest)))
        return scored[-1][2]

    monkeypatch.setattr("mzsane.evaluation.selection.score_models", watch)
    config = SAMPLING.model_copy(update={"bandwidth": (0.1, 0.4), "bandwidth_samples": 5, "rounds": 2})
    samples = draw_samples(config, target, backbone.ref, slices, [0], 3, store, SERIAL)
    assert [(split, len(flat)) for split, flat, _ in scored] == [("val", 5)] * 2 + [("val", 12)] * 2
    trials = pl.read_parquet(samples.path("bandwidths.parquet"))
    means = [sum(score.accuracy for score in scores) / 5 for _, _, scores in scored[:2]]
    assert trials["validation_accuracy"].to_list() == pytest.approx(means)
    populations, _, layout = read_populations(samples)
    known = open_known_models(samples, store, layout)
    first = draw_samples(config.model_copy(update={"rounds": 1}), target, backbone.ref, slices, [0], 3, store, SERIAL)
    decoded = known.against(["0", "1"], read_populations(first)[0]["anchors"])
    novelties = [float(decoded.find_nearest(flat)[0].mean()) / known.spacing for _, flat, _ in scored[:2]]
    assert trials["sampling_novelty"].to_list() == pytest.approx(novelties)
    assert not any(torch.equal(row, other) for row in scored[0][1] for other in populations["samples"])


def test_the_selected_of_a_round_are_the_anchors_of_the_next(arm):
    store, slices, backbone, target, samples = arm
    config = SAMPLING.model_copy(update={"rounds": 2, "bandwidth": 0.0})
    again = draw_samples(config, target, backbone.ref, slices, [0], 0, store, SERIAL)
    once = draw_samples(config.model_copy(update={"rounds": 1}), target, backbone.ref, slices, [0], 0, store, SERIAL)
    first, records, _ = read_populations(once)
    second, of_second, _ = read_populations(again)
    best = records.sort("validation_accuracy", descending=True, maintain_order=True)[: config.keep]
    kept = first["samples"][best["sample"].to_list()]
    # Without noise the second round's samples are anchors: selected samples of the first, and of what those were made.
    nearest = torch.cdist(second["samples"], kept)
    assert nearest.min(dim=1).values.max() < 1e-4
    made_of = {name for names in best["made_of"] for name in names}
    assert {name for names in of_second["made_of"] for name in names} <= made_of
    assert set(of_second["sees"]) == {"labels"}
    assert set(of_second["round"]) == {2}
    means = again.manifest.counts["validation_accuracy_by_round"]
    assert means[0] == pytest.approx(records["validation_accuracy"].mean())
    assert means[1] == pytest.approx(of_second["validation_accuracy"].mean())
    assert read_populations(samples)[1]["sees"].unique().to_list() == ["none"]


def test_later_rounds_draw_fresh_noise(arm):
    store, slices, backbone, target, samples = arm
    config = SAMPLING.model_copy(update={"rounds": 2})
    again = draw_samples(config, target, backbone.ref, slices, [0], 0, store, SERIAL)
    drawn = torch.cdist(read_populations(again)[0]["samples"], read_populations(samples)[0]["samples"])
    assert drawn.min() > 1e-3


def test_anchors_chosen_by_labels_are_said_to_be(arm):
    store, slices, backbone, target, _ = arm
    config = SAMPLING.model_copy(update={"anchor_choice": "best"})
    _, records, _ = read_populations(draw_samples(config, target, backbone.ref, slices, [0], 0, store, SERIAL))
    assert records.select("sees", "anchors_see", "anchor_choice").unique().rows() == [("labels", "labels", "best")]


def test_refined_anchors_are_nearer_to_their_models_and_saw_nothing(arm):
    store, slices, backbone, target, samples = arm
    config = SAMPLING.model_copy(update={"refine_anchors": True})
    refined = draw_samples(config, target, backbone.ref, slices, [0], 0, store, SERIAL)
    assert refined.ref != samples.ref
    (plain, plain_records, _), (moved, records, _) = read_populations(samples), read_populations(refined)
    assert not plain_records["refined"].any()
    assert records["refined"].all()
    assert records.select("sees", "anchors_see", "guided").unique().rows() == [("none", "none", False)]
    assert records["made_of"].to_list() == plain_records["made_of"].to_list()
    for name in ("anchor_weights", "originals", "reconstruction"):
        assert torch.equal(plain[name], moved[name])
    before, after = ((p["anchors"] - p["anchor_weights"]).square().mean(dim=1) for p in (plain, moved))
    assert (after < before).all()
    assert not torch.equal(plain["samples"], moved["samples"])


def test_guided_samples_agree_more_with_their_anchors_and_say_that_they_saw_images(arm):
    store, slices, backbone, target, _ = arm

    def draw(steps):
        config = SAMPLING.model_copy(update={"bandwidth": 1.0, "guidance_steps": steps, "guidance_rate": 0.5})
        artifact = draw_samples(config, target, backbone.ref, slices, [0], 0, store, SERIAL)
        populations, records, layout = read_populations(artifact)
        return populations, records.sort("sample"), layout

    (free, free_records, _), (guided, guided_records, layout) = draw(0), draw(20)
    assert not free_records["guided"].any()
    assert set(free_records["sees"]) == {"none"}
    assert guided_records["guided"].all()
    assert set(guided_records["sees"]) == {"images"}
    assert free_records["made_of"].to_list() == guided_records["made_of"].to_list()
    assert not torch.equal(free["samples"], guided["samples"])
    for name in ("anchors", "anchor_weights", "reconstruction"):  # what is no sample is not guided
        assert torch.equal(free[name], guided[name])
    judge = open_guidance(SAMPLING, target.network, target.images, layout, guided["anchor_weights"], 0)
    names = sorted(set(guided_records["made_of"].explode()))
    taught_ANK = judge.lessons_ANK[[names.index(name) for (name,) in guided_records["made_of"].to_list()]]

    def differ(flat_SP):
        return float((write_soft_targets(judge.network, flat_SP, judge.images_NCHW) - taught_ANK).abs().mean())

    assert differ(guided["samples"]) < differ(free["samples"])
