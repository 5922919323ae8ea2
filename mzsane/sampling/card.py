"""The memorisation card: what of each sample was there before, in its weights and in what it does.

Suffixes: S samples, N known models, I images, P weights of a model.
"""

from collections.abc import Mapping

import polars as pl
import torch
from torch import Tensor

from mzsane.backbone.judge import read_activations
from mzsane.config import ExecutionConfig
from mzsane.evaluation.disagreement import classify_models, measure_pairs
from mzsane.evaluation.novelty import KnownModels
from mzsane.evaluation.scoring import ModelSet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import make_generator
from mzsane.tokens.store import TokenTable

_COMPARED = 30  # training models whose disagreement with one another is measured

CARD_SCHEMA = {
    "novelty": pl.Float64,
    "nearest_model": pl.String,
    "nearest_disagreement": pl.Float64,
    "zoo_disagreement": pl.Float64,
    "nearest_sample_distance": pl.Float64,
}


def make_card(
    samples: ModelSet,
    known: KnownModels | None,
    tables: Mapping[int, TokenTable],
    seed: int,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> pl.DataFrame:
    """Compare samples with what the backbone was trained on, and with one another.

    Args:
        samples: the samples and the target's images.
        known: what the backbone was trained on; None if it is of another architecture, and nothing can be compared.
        tables: tokens by number of the slice, for the activation of models that differ in it.
        seed: of the choice of training models whose disagreement is measured.
        execution: how many processes.
        sink: told of progress.

    Returns:
        A row a sample: `novelty`, the distance to the nearest training checkpoint over the zoo's spacing;
        `nearest_model`, whose that is; `nearest_disagreement`, the share of validation images that sample and that
        model, at its last checkpoint, put in different classes; `zoo_disagreement`, its mean over pairs of training
        models; `nearest_sample_distance`, the distance to the nearest other sample over the zoo's spacing. Null where
        it cannot be measured: of weights that are not finite, with one training model or one sample; disagreement also
        where the number of classes is another.
    """
    count = len(samples.flat_NP)
    if known is None:
        return pl.DataFrame({name: [None] * count for name in CARD_SCHEMA}, schema=CARD_SCHEMA)
    distances_S, nearest_S = known.find_nearest(samples.flat_NP)
    finite_S = distances_S.isfinite()
    card: dict[str, list] = {
        "novelty": (distances_S / known.spacing).tolist(),
        "nearest_model": [known.names[i] if found else None for i, found in zip(nearest_S, finite_S, strict=True)],
        "nearest_sample_distance": known.measure_spread(samples.flat_NP).tolist(),
        "nearest_disagreement": [None] * count,
        "zoo_disagreement": [None] * count,
    }
    if known.columns_P is None:
        order = torch.randperm(len(known.names), generator=make_generator(seed, "samples", "card"))
        compared_N = order[:_COMPARED]
        wanted_N = torch.cat([compared_N, nearest_S]).unique()
        classes_NI = _classify_known(known, wanted_N, samples, tables, execution, sink)
        classes_SI = classify_models(samples, (), execution, sink)
        of_nearest_SI = classes_NI[torch.searchsorted(wanted_N, nearest_S)]
        card["nearest_disagreement"] = [
            share if found else None
            for share, found in zip((classes_SI != of_nearest_SI).double().mean(dim=1).tolist(), finite_S, strict=True)
        ]
        card["zoo_disagreement"] = [measure_pairs(classes_NI[torch.searchsorted(wanted_N, compared_N)])] * count
    frame = pl.DataFrame(card, schema_overrides=CARD_SCHEMA).select(list(CARD_SCHEMA))
    return frame.with_columns(pl.selectors.float().fill_nan(None))


def _classify_known(
    known: KnownModels,
    wanted_N: Tensor,
    samples: ModelSet,
    tables: Mapping[int, TokenTable],
    execution: ExecutionConfig | None,
    sink: MetricSink,
) -> Tensor:
    activations = []
    for number in wanted_N.tolist():
        at, _, model = known.names[number].partition("/")
        table = tables[int(at)]
        activations += read_activations(table, table.pick_rows("train", last_epochs=1, models=[model]))
    flat_NP = known.load(known.last_N[wanted_N])
    models = ModelSet(samples.network, samples.images, samples.layout, flat_NP)
    return classify_models(models, activations, execution, sink)
