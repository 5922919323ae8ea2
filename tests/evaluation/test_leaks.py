"""Planted leaks: what a score may not see is changed, and the score must not notice.

The same samples are scored on three targets with the same images: one as it is, one whose training and validation
labels are shuffled, one whose test labels are. A row that says it saw no labels is the same on the first two; no choice
(of samples, anchors, noise, learning rates) differs between the first and the third.
"""

import numpy as np
import polars as pl
import pytest
import torch

from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import (
    AblationConfig,
    EvaluationConfig,
    ExecutionConfig,
    FilesConfig,
    GlyphsConfig,
    SamplingConfig,
    SliceConfig,
)
from mzsane.evaluation.novelty.distance import open_known_models
from mzsane.evaluation.score import score_baselines, score_samples
from mzsane.evaluation.selection import draw_samples
from mzsane.plan import ArmPlan, list_arms
from mzsane.problems.images.dataset import load_images
from mzsane.sampling.populations import read_populations
from mzsane.sampling.target import Target
from mzsane.tokens.build import plan_tokens
from mzsane.tokens.store import read_tokens

SERIAL = ExecutionConfig(processes=1)
SAMPLING = SamplingConfig(anchors=3, samples=24, keep=4, bandwidth=0.3)
EVALUATION = EvaluationConfig(
    finetune_epochs=(0, 1, 2),
    finetune_models=2,
    learning_rates=(1e-5, 0.003),
    batch_size=16,
    ensembles=(2,),
    random_models=2,
    distillation_steps=(5,),
    distilled_models=2,
)
PLACE = ["method", "sees", "ensemble", "finetune_epochs", "model"]


def write_images(folder, images, shuffled):
    """Write a dataset as npz, some labels in another order; return its config."""
    arrays = {}
    for part, names in (("train", ("train", "val")), ("test", ("test",))):
        pixels = torch.cat([images.splits[name].images_NCHW for name in names])
        low, high = pixels.min(), pixels.max()
        labels = torch.cat([images.splits[name].labels_N for name in names]).numpy()
        arrays[f"images_{part}"] = ((pixels - low) / (high - low) * 255).round().to(torch.uint8).numpy()[:, 0]
        arrays[f"labels_{part}"] = np.random.default_rng(1).permutation(labels) if part == shuffled else labels
    file = folder / f"{shuffled}.npz"
    np.savez(file, **arrays)
    return FilesConfig(source="npz", train=str(file), classes=4, validation_fraction=0.4)


@pytest.fixture(scope="module")
def store(make_store):
    return make_store()


@pytest.fixture(scope="module")
def slices(tiny_tokens_config, tiny_zoo_config):
    return [TokenSlice(plan_tokens(tiny_tokens_config, tiny_zoo_config).ref, SliceConfig(zoo="tiny", models=4))]


@pytest.fixture(scope="module")
def backbone(store, slices, tiny_backbone_config):
    return pretrain(tiny_backbone_config.model_copy(update={"steps": 150}), slices, 0, store)


@pytest.fixture(scope="module")
def frames(store, slices, backbone, tiny_zoo_config, tiny_tokens_config, tmp_path_factory):
    """Scores and baselines by what was shuffled."""
    images, folder = (
        load_images(GlyphsConfig(source="glyphs", characters="ABCD", images=400)),
        tmp_path_factory.mktemp("images"),
    )
    frames = {}
    for shuffled in ("nothing", "train", "test"):
        target = Target(tiny_zoo_config.network, write_images(folder, images, shuffled))
        samples = draw_samples(SAMPLING, target, backbone.ref, slices, [0], 0, store, SERIAL)
        scores = score_samples(EVALUATION, SAMPLING, target, samples.ref, 0, store, SERIAL)
        others = [slices[0].tokens]
        baselines = score_baselines(EVALUATION, target, tiny_tokens_config, 0, store, SERIAL, transfer=others)
        frames[shuffled] = pl.concat([pl.read_parquet(part.path("scores.parquet")) for part in (scores, baselines)])
    return frames


def test_rows_that_saw_no_labels_do_not_depend_on_them(frames):
    true, shuffled = (
        frames[name].filter(sees="none").sort(PLACE).select(*PLACE, "accuracy", "loss", "calibration", "novelty")
        for name in ("nothing", "train")
    )
    assert true.equals(shuffled)
    saw = [frames[name].filter(sees="labels").sort(PLACE)["accuracy"] for name in ("nothing", "train")]
    assert not saw[0].equals(saw[1])  # else the labels would not matter and this test could not fail


def test_no_choice_depends_on_test_labels(frames):
    true, shuffled = (frames[name].sort(PLACE) for name in ("nothing", "test"))
    # Novelty tells which models were chosen.
    choices = [*PLACE, "chosen_of", "learning_rate", "novelty"]
    assert true.select(choices).equals(shuffled.select(choices))
    assert not true["accuracy"].equals(shuffled["accuracy"])


def test_a_choice_on_test_images_would_be_another(frames):
    """What the test above relies on: accuracies on test images do not order models as those on validation images."""
    others = []
    for method, keep in (("samples", 4), ("layer_noise", 4)):
        rows = frames["nothing"].filter(method=method, sees="none", ensemble=1, finetune_epochs=0)
        best = set(rows.sort("accuracy", descending=True, maintain_order=True)["novelty"][:keep])
        chosen = "selected" if method == "samples" else method
        found = frames["nothing"].filter(method=chosen, sees="labels", ensemble=1, finetune_epochs=0)
        others.append(set(found["novelty"]) != best)
    assert any(others)


def test_selected_are_those_that_the_records_rank_first(frames):
    frame = frames["nothing"].filter(ensemble=1, finetune_epochs=0)
    selected, samples = frame.filter(method="selected"), frame.filter(method="samples")
    first = samples.sort("model").head(SAMPLING.keep)
    assert selected["accuracy"].mean() > samples["accuracy"].mean()
    assert set(selected["novelty"]) != set(first["novelty"])
    assert set(selected["novelty"]) <= set(samples["novelty"])
    assert set(selected["chosen_of"]) == {SAMPLING.samples}


def test_every_selection_says_from_how_many(frames):
    frame = frames["nothing"]
    found = frame.filter(pl.col("chosen_of").is_not_null()).select("method", "chosen_of").unique()
    assert dict(found.iter_rows()) == {
        "selected": SAMPLING.samples,
        **dict.fromkeys(("decoded_noise", "layer_noise", "flat_noise"), SAMPLING.samples),
        "best_anchor": SAMPLING.anchors,
        "best_model": 4,
    }
    assert set(frame.filter(sees="none")["chosen_of"]) == {None}
    unexplained = frame.filter(pl.col("sees") == "labels", pl.col("chosen_of").is_null())
    assert unexplained["finetune_epochs"].min() > 0
    tuned = frame.filter(pl.col("finetune_epochs") > 0)
    assert set(tuned["learning_rate"]) <= set(EVALUATION.learning_rates)
    assert set(frame.filter(finetune_epochs=0)["learning_rate"]) == {None}


def test_no_model_that_was_trained_on_is_scored_as_held_out(store, slices, backbone, tiny_zoo_config):
    own = Target(tiny_zoo_config.network, tiny_zoo_config.images, slices[0].tokens)
    samples = draw_samples(SAMPLING, own, backbone.ref, slices, [0], 0, store, SERIAL)
    populations, _, _ = read_populations(samples)
    known = open_known_models(samples, store, read_populations(samples)[2])
    known_KP = known.load(torch.arange(len(known.model_K)))
    assert torch.cdist(populations["anchor_weights"], known_KP).min() < 1e-3  # what was trained on is found
    assert torch.cdist(populations["originals"], known_KP).min() > 0.1


def test_zoo_and_transfer_rows_are_of_held_out_models(store, slices, backbone, tiny_zoo_config, tiny_tokens_config):
    table = read_tokens(store.open(slices[0].tokens))
    trained = set(table.index.filter(pl.col("split") != "test")["model"])
    rows = table.pick_rows("test", last_epochs=1)
    held_out = table.index[rows.tolist()]
    assert not trained & set(held_out["model"])
    own = Target(tiny_zoo_config.network, tiny_zoo_config.images, slices[0].tokens)
    evaluation = EvaluationConfig(finetune_epochs=(0,), finetune_models=1)
    # As a transfer to its own images a zoo scores what it was measured with, so that models are told by accuracy.
    baselines = score_baselines(evaluation, own, tiny_tokens_config, 0, store, SERIAL, transfer=[slices[0].tokens])
    samples = draw_samples(SAMPLING, own, backbone.ref, slices, [0], 0, store, SERIAL)
    scores = score_samples(evaluation, SAMPLING, own, samples.ref, 0, store, SERIAL)
    for method, part in (("zoo", scores), ("transfer", baselines)):
        frame = pl.read_parquet(part.path("scores.parquet"))
        assert sorted(frame.filter(method=method)["accuracy"]) == sorted(held_out["test_accuracy"])
        assert frame.filter(method=method)["loss"].to_list() == pytest.approx(held_out["test_loss"].to_list(), rel=1e-4)


def test_every_table_has_the_models_of_other_zoos_that_fit():
    letters = {"source": "glyphs", "characters": "ABCDEFGHIJ"}
    config = AblationConfig.model_validate(
        {
            "name": "t",
            "zoos": [
                {"name": "digits", "images": {"source": "digits"}, "models": 20},
                {"name": "letters", "images": letters, "models": 20},
                {"name": "four", "images": {"source": "glyphs", "characters": "ABCD"}, "models": 20},
                {"name": "relu", "images": letters, "network": {"activation": "relu"}, "models": 20},
            ],
            "compositions": [{"name": "digits", "slices": [{"zoo": "digits", "models": 10}]}],
            "targets": [
                {"name": "digits", "zoo": "digits"},
                {"name": "figures", "images": {"source": "glyphs", "characters": "0123456789"}, "network": {}},
            ],
            "tokens": {"token_dim": 51},
        }
    )
    assert [config.transfer_zoos(target) for target in config.targets] == [["letters"], ["digits", "letters"]]
    plan = ArmPlan(config, list_arms(config)[0])
    letters_tokens = plan_tokens(config.tokens, config.find_zoo("letters")).ref
    assert plan.baselines(config.targets[0]).work.inputs["transfer/0"] == letters_tokens
