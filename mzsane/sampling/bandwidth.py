"""The choice of a bandwidth on validation images, among those whose samples are new enough."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import polars as pl

from mzsane.config import SamplingConfig

TRIAL_SCHEMA = {
    "bandwidth": pl.Float64,
    "validation_accuracy": pl.Float64,
    "novelty": pl.Float64,
    "chosen": pl.Boolean,
}


@dataclass(frozen=True)
class Trial:
    """What a few samples of a bandwidth were like on average; None where it was not, or cannot be, measured."""

    bandwidth: float
    accuracy: float | None
    novelty: float | None


def choose_bandwidth(config: SamplingConfig, attempt: Callable[[float], Trial]) -> tuple[float, list[Trial]]:
    """Return the bandwidth to sample with, and what was tried: nothing, when the config gives one.

    The best accuracy wins among the bandwidths that reach the least novelty; where none does, the most novel one.
    Without that condition 0 would win, which copies anchors. Where novelty cannot be measured, since no training model
    has the target's architecture, nothing can be copied, and accuracy alone decides. Where accuracy is chance, since
    the head is new, the least novel one that is new enough is taken.
    """
    if isinstance(config.bandwidth, float):
        return config.bandwidth, []
    trials = [attempt(bandwidth) for bandwidth in config.bandwidth]
    new = [trial for trial in trials if trial.novelty is None or trial.novelty >= config.least_novelty]
    if new:
        best = max(new, key=lambda trial: -(trial.novelty or 0.0) if trial.accuracy is None else trial.accuracy)
    else:
        best = max(trials, key=lambda trial: trial.novelty or 0.0)
    return best.bandwidth, trials


def list_trials(trials: Sequence[Trial], chosen: float) -> pl.DataFrame:
    """Return what was tried as a frame, with the bandwidth that was chosen marked."""
    rows = [(*astuple(trial), trial.bandwidth == chosen) for trial in trials]
    return pl.DataFrame(rows, schema=TRIAL_SCHEMA, orient="row")
