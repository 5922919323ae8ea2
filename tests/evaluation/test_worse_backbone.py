"""A backbone that is made worse on purpose gains nothing: neither sampling novelty nor a lead over decoded noise."""

import polars as pl
import pytest

from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import EvaluationConfig, ExecutionConfig, GlyphsConfig, SamplingConfig, SliceConfig, ZooConfig
from mzsane.evaluation.score import score_samples
from mzsane.evaluation.selection import draw_samples
from mzsane.sampling.target import Target
from mzsane.tokens.build import build_tokens
from mzsane.zoo.train import train_zoo

SERIAL = ExecutionConfig(processes=1)
SAMPLING = SamplingConfig(anchors=4, samples=16, keep=4, bandwidth=0.3)
EVALUATION = EvaluationConfig(finetune_epochs=(0,), ensembles=(), distillation_steps=())
STEPS = {"better": 800, "worse": 80}


@pytest.fixture(scope="module")
def found(make_store, tiny_tokens_config, tiny_backbone_config):
    """Zero-shot means by backbone and method, of a zoo that can tell its letters apart."""
    store = make_store()
    images = GlyphsConfig(source="glyphs", characters="ABCD", images=400)
    zoo = ZooConfig(name="four", images=images, models=8, epochs=6, keep_epochs=1, learning_rate=0.003, batch_size=32)
    train_zoo(zoo, store, SERIAL)
    tokens = build_tokens(tiny_tokens_config, zoo, store)
    slices = [TokenSlice(tokens.ref, SliceConfig(zoo="four", models=5))]
    target = Target(zoo.network, zoo.images, tokens.ref)
    means = {}
    for name, steps in STEPS.items():
        settings = {"steps": steps, "d_model": 32, "latent_dim": 32, "learning_rate": 0.004}
        backbone = pretrain(tiny_backbone_config.model_copy(update=settings), slices, 0, store)
        samples = draw_samples(SAMPLING, target, backbone.ref, slices, [0], 0, store, SERIAL)
        scores = score_samples(EVALUATION, SAMPLING, target, samples.ref, 0, store, SERIAL)
        rows = pl.read_parquet(scores.path("scores.parquet")).filter(pl.col("chosen_of").is_null())
        for row in rows.group_by("method").agg(pl.col("accuracy", "novelty", "sampling_novelty").mean()).to_dicts():
            means[name, row["method"]] = row
    return means


def test_what_the_autoencoder_loses_is_no_sampling_novelty(found):
    assert found["worse", "anchors"]["accuracy"] < found["better", "anchors"]["accuracy"] - 0.1  # it is worse
    # The distance from the training models grows by it, as if copies were new.
    assert found["worse", "anchors"]["novelty"] > found["better", "anchors"]["novelty"] + 0.1
    for name in STEPS:
        assert found[name, "anchors"]["sampling_novelty"] == pytest.approx(0, abs=2e-3)
    assert found["worse", "samples"]["sampling_novelty"] <= found["better", "samples"]["sampling_novelty"]


def test_a_worse_autoencoder_leads_decoded_noise_by_no_more(found):
    lead = {name: found[name, "samples"]["accuracy"] - found[name, "decoded_noise"]["accuracy"] for name in STEPS}
    assert lead["worse"] <= lead["better"] + 0.05
