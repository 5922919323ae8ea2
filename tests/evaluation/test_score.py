"""What the scores stage says of each method, on a real tiny backbone."""

import polars as pl
import pytest
import torch

from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import EvaluationConfig, ExecutionConfig, GlyphsConfig, SamplingConfig, SliceConfig
from mzsane.evaluation.score import score_baselines, score_samples
from mzsane.evaluation.selection import draw_samples
from mzsane.networks.run import ModelSet, score_models
from mzsane.sampling.populations import read_populations
from mzsane.sampling.target import Target
from mzsane.store.artifacts import ArtifactRef
from mzsane.tokens.build import plan_tokens
from mzsane.tokens.store import read_tokens

SERIAL = ExecutionConfig(processes=1)
SAMPLING = SamplingConfig(anchors=2, samples=12, keep=3, bandwidth=0.2)
EVALUATION = EvaluationConfig(
    finetune_epochs=(0, 1),
    finetune_models=2,
    learning_rates=(0.001, 0.01),
    batch_size=32,
    ensembles=(2, 3),
    random_models=3,
    distillation_steps=(2, 20),
    distilled_models=2,
)


@pytest.fixture(scope="module")
def scored(make_store, tiny_zoo_config, tiny_tokens_config, tiny_backbone_config):
    store = make_store()
    tokens = plan_tokens(tiny_tokens_config, tiny_zoo_config).ref
    slices = [TokenSlice(tokens, SliceConfig(zoo="tiny", models=3))]
    backbone = pretrain(tiny_backbone_config, slices, 0, store)
    own = Target(tiny_zoo_config.network, tiny_zoo_config.images, tokens)
    other = Target(tiny_zoo_config.network, GlyphsConfig(source="glyphs", characters="0123", images=120))
    frames = {}
    for name, target in (("own", own), ("other", other)):
        samples = draw_samples(SAMPLING, target, backbone.ref, slices, [0], 0, store, SERIAL)
        scores = score_samples(EVALUATION, SAMPLING, target, samples.ref, 0, store, SERIAL)
        baselines = score_baselines(EVALUATION, target, tiny_tokens_config, 0, store, SERIAL)
        frames[name] = (
            target,
            samples,
            pl.read_parquet(scores.path("scores.parquet")),
            pl.read_parquet(baselines.path("scores.parquet")),
        )
    return store, tokens, frames


def pick(frame, method, sees="none", epochs=0):
    return frame.filter(method=method, sees=sees, finetune_epochs=epochs, ensemble=1)


def test_everything_that_used_labels_says_so(scored):
    for _, _, scores, baselines in scored[2].values():
        frame = pl.concat([scores, baselines])
        assert set(frame.filter(pl.col("finetune_epochs") > 0)["sees"]) == {"labels"}
        unlabelled = frame.filter((pl.col("finetune_epochs") == 0) & (pl.col("sees") == "none"))
        assert "selected" not in set(unlabelled["method"])
        assert len(pick(frame, "selected", "labels")) == SAMPLING.keep
        for method in ("decoded_noise", "layer_noise"):
            assert len(pick(frame, method, "labels")) == SAMPLING.keep


def test_what_was_drawn_with_a_look_at_labels_says_so(scored):
    """A bandwidth that labels chose is in the samples and in the noise as far as they; best anchors are in all."""
    store, _, frames = scored
    target, samples, _, _ = frames["own"]
    backbone = ArtifactRef.parse(samples.manifest.inputs["backbone"])
    slices = [TokenSlice(ArtifactRef.parse(samples.manifest.inputs["tokens/0"]), SliceConfig(zoo="tiny", models=3))]
    always = {"selected", "best_anchor", "best_model"}
    noise = {"decoded_noise", "layer_noise", "flat_noise"}
    of_anchors = {"anchors", "interpolation", "average", "statistics"}
    for changes, labelled in (
        ({"bandwidth": (0.1, 0.3), "bandwidth_samples": 2}, {"samples", *noise}),
        ({"rounds": 2}, {"samples", *noise}),
        ({"anchor_choice": "best"}, {"samples", *noise, *of_anchors}),
    ):
        sampling = SAMPLING.model_copy(update=changes)
        drawn = draw_samples(sampling, target, backbone, slices, [0], 0, store, SERIAL)
        scores = score_samples(EVALUATION, sampling, target, drawn.ref, 0, store, SERIAL)
        at_once = pl.read_parquet(scores.path("scores.parquet")).filter(finetune_epochs=0)
        assert set(at_once.filter(sees="labels")["method"]) == always | labelled
        blind = {"zoo", "reconstruction", "samples", *noise, *of_anchors} - labelled
        assert set(at_once.filter(sees="none")["method"]) == blind
        for method in noise:
            assert len(pick(at_once, method, "labels")) == SAMPLING.samples


def test_selected_are_the_best_on_validation_and_scored_on_test(scored):
    target, samples, scores, _ = scored[2]["own"]
    populations, records, layout = read_populations(samples)
    best = records.sort("validation_accuracy", descending=True, maintain_order=True)["sample"][: SAMPLING.keep]
    chosen = populations["samples"][best.to_list()]
    models = ModelSet(target.network, target.images, layout, chosen)
    on_test = [score.accuracy for score in score_models(models, "test", SERIAL)]
    assert pick(scores, "selected", "labels")["accuracy"].to_list() == on_test
    on_validation = [score.accuracy for score in score_models(models, "val", SERIAL)]
    assert on_test != on_validation  # else this test could not tell one from the other


def test_the_best_anchor_is_best_on_validation(scored):
    target, samples, scores, _ = scored[2]["own"]
    populations, _, layout = read_populations(samples)
    models = ModelSet(target.network, target.images, layout, populations["anchor_weights"])
    on_validation = [score.accuracy for score in score_models(models, "val", SERIAL)]
    best = on_validation.index(max(on_validation))
    on_test = score_models(models, "test", SERIAL)[best].accuracy
    assert pick(scores, "best_anchor", "labels")["accuracy"].to_list() == [on_test]


def test_every_method_scores_the_right_number_of_models(scored):
    _, _, scores, baselines = scored[2]["own"]
    expected = {"samples": 12, "anchors": 2, "interpolation": 12, "average": 1, "statistics": 12}
    expected |= dict.fromkeys(("decoded_noise", "layer_noise", "flat_noise"), 12)
    assert {method: len(pick(scores, method)) for method in expected} == expected
    assert len(pick(scores, "best_anchor", "labels")) == 1
    assert len(pick(scores, "samples", "labels", 1)) == 2
    assert len(pick(scores, "flat_noise", "images")) == 12
    assert len(pick(scores, "best_model", "labels")) == 1
    assert len(pick(baselines, "random_init")) == 3
    assert len(pick(baselines, "random_init", "labels", 1)) == 3
    for sees in ("none", "statistics", "images"):
        assert pick(baselines, "distilled_init", sees)["gradient_steps"].to_list() == [2, 2, 20, 20]


def test_zoo_is_the_targets_own_or_else_that_of_the_composition(scored):
    store, tokens, frames = scored
    table = read_tokens(store.open(tokens))
    held_out = table.index[table.pick_rows("test", last_epochs=1).tolist()]
    target, _, scores, baselines = frames["own"]
    assert pick(scores, "zoo")["accuracy"].to_list() == held_out["test_accuracy"].to_list()
    assert len(pick(baselines, "zoo")) == 0
    assert len(pick(baselines, "zoo", "labels", 1)) == 1
    target, _, scores, baselines = frames["other"]
    flat = table.load(table.pick_rows("test", last_epochs=1))
    transfer = score_models(ModelSet(target.network, target.images, table.layout, flat), "test", SERIAL)
    assert pick(scores, "zoo")["accuracy"].to_list() == [score.accuracy for score in transfer]
    assert len(pick(baselines, "zoo")) == 0


def test_a_held_out_model_is_in_no_training_split(scored):
    store, tokens, _ = scored
    index = read_tokens(store.open(tokens)).index
    splits = index.group_by("model").agg(pl.col("split").n_unique())["split"]
    assert splits.max() == 1
    assert torch.tensor([len(index.filter(pl.col("split") == s)) for s in ("train", "val", "test")]).min() > 0


def test_baselines_are_guided_as_samples_are(scored):
    store, tokens, frames = scored
    target, samples, free, _ = frames["own"]
    backbone = ArtifactRef.parse(samples.manifest.inputs["backbone"])
    slices = [TokenSlice(tokens, SliceConfig(zoo="tiny", models=3))]
    sampling = SAMPLING.model_copy(update={"bandwidth": 1.0, "guidance_steps": 20, "guidance_rate": 0.1})
    config = EVALUATION.model_copy(update={"finetune_epochs": (0,)})
    drawn = draw_samples(sampling, target, backbone, slices, [0], 0, store, SERIAL)
    scores = pl.read_parquet(
        score_samples(config, sampling, target, drawn.ref, 0, store, SERIAL).path("scores.parquet")
    )
    for method in ("samples", "decoded_noise", "layer_noise", "flat_noise", "interpolation", "random_init"):
        assert len(pick(scores, method, "images")) == SAMPLING.samples
        assert not len(pick(scores, method))
        assert set(pick(scores, method, "images")["gradient_steps"]) == {20}
        assert pick(scores, method, "images")["image_passes"].min() >= 20 * sampling.guidance_images
    for method in ("anchors", "average", "statistics", "reconstruction"):
        assert len(pick(scores, method))
    assert "random_init" not in set(free["method"])
    chance = 1 / target.images.classes
    assert pick(scores, "random_init", "images")["accuracy"].mean() > chance


def test_noise_goes_as_far_as_the_samples(scored):
    """From the anchors as they are in the zoo, whether it starts there or from what the backbone decodes."""
    _, samples, scores, _ = scored[2]["own"]
    records = read_populations(samples)[1].sort("sample")
    distances = records["novelty"].to_list()
    for method in ("decoded_noise", "layer_noise"):
        for found, asked in zip(pick(scores, method)["novelty"], distances, strict=True):
            assert found == pytest.approx(asked, rel=0.15)  # aligned it may be somewhat nearer
        assert pick(scores, method)["cluster"].to_list() == records["cluster"].to_list()


def test_every_model_is_compared_with_what_was_trained_on(scored):
    _, _, scores, _ = scored[2]["own"]
    for method in ("zoo", "samples", "anchors", "decoded_noise", "layer_noise", "flat_noise", "interpolation"):
        card = pick(scores, method)
        assert card["novelty"].null_count() == 0, method
        assert card["error_overlap"].null_count() == 0, method
        assert card["outside_norms"].null_count() == 0, method
    assert pick(scores, "anchors")["sampling_novelty"].to_list() == pytest.approx([0.0, 0.0], abs=2e-3)
    assert pick(scores, "samples")["sampling_novelty"].min() > 0.001  # this backbone decodes all much alike
    assert pick(scores, "samples")["novelty"].min() > 0.1
    assert pick(scores, "layer_noise")["sampling_novelty"].null_count() == 12


def test_a_backbone_that_looked_at_the_targets_images_says_so(scored, tiny_backbone_config):
    """The behavioural loss sees images of the zoo; what no backbone made has not seen them."""
    store, tokens, frames = scored
    slices = [TokenSlice(tokens, SliceConfig(zoo="tiny", models=3))]
    backbone = pretrain(tiny_backbone_config.model_copy(update={"behaviour": 0.1, "steps": 2}), slices, 0, store)
    config = EVALUATION.model_copy(update={"finetune_epochs": (0,), "distillation_steps": ()})
    for name, expected in (("own", "images"), ("other", "none")):
        drawn = draw_samples(SAMPLING, frames[name][0], backbone.ref, slices, [0], 0, store, SERIAL)
        scores = score_samples(config, SAMPLING, frames[name][0], drawn.ref, 0, store, SERIAL)
        frame = pl.read_parquet(scores.path("scores.parquet"))
        made_by_it = {"samples", "selected", "anchors", "reconstruction", "decoded_noise"}
        for (method,), rows in frame.group_by("method"):
            assert set(rows["generator_sees"]) == {expected if method in made_by_it else "none"}, method
