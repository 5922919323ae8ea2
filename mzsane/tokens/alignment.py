"""What brings the models of a zoo to canonical form, and how much that brought.

Suffixes: B models, P weights of a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from mzsane.layout.token_layout import TokenLayout
from mzsane.metrics import MetricSink
from mzsane.symmetry.align.barrier import measure_barrier
from mzsane.symmetry.align.canonical import Matching
from mzsane.tokens.population import Population

_BARRIER_SCHEMA = {"first": pl.String, "second": pl.String, "barrier_before": pl.Float64, "barrier_after": pl.Float64}


@dataclass(frozen=True)
class Alignment:
    """What brings the models of a zoo to canonical form.

    Attributes:
        training: the rows of the training models' last epochs; the first one is the reference.
        places: for each model its place in `matching`.
        matching: what was found.
    """

    training: pl.DataFrame
    places: dict[str, int]
    matching: Matching

    def pick(self, models: Sequence[str]) -> Matching:
        """Return the matching of some models, in their order."""
        return self.matching.pick(torch.tensor([self.places[model] for model in models]))

    def tell_objectives(self) -> pl.DataFrame:
        """Return each model's objective before and after."""
        return pl.DataFrame(
            {
                "model": list(self.places),
                "objective_before": self.matching.objective_before_B.double().numpy(),
                "objective_after": self.matching.objective_after_B.double().numpy(),
            }
        )


def measure_barriers(
    population: Population,
    layout: TokenLayout,
    models: Sequence[str],
    raw_BP: Tensor,
    aligned_BP: Tensor,
    pairs: int,
    sink: MetricSink,
) -> pl.DataFrame:
    """Return the loss barriers between the first of some models and others, as they are and aligned.

    Those of another activation are no pair: what lies between two functions is a model of neither.

    Args:
        population: the networks of the zoo.
        layout: where the weights sit.
        models: names.
        raw_BP: their weights.
        aligned_BP: the same in canonical form.
        pairs: how many, at most.
        sink: told of every pair.
    """
    split, activations = population.dataset.splits["val"], population.activations
    network = population.find_network(layout, models[0])
    alike = [at for at, model in enumerate(models) if at and activations[model] == activations[models[0]]][:pairs]
    records = []
    if network is not None:
        for place in alike:
            ends = (raw_BP[place], aligned_BP[place])
            barriers = [measure_barrier(network, layout, raw_BP[0], end_P, split) for end_P in ends]
            records.append((models[0], models[place], *barriers))
            sink.progress(len(records), len(alike), "loss barriers")
    return pl.DataFrame(records, schema=_BARRIER_SCHEMA, orient="row")
