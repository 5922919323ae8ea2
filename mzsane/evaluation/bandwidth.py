"""The choice of a bandwidth on validation images, among those whose samples are new enough."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import polars as pl

from mzsane.config import SamplingConfig

TRIAL_SCHEMA = {
    "bandwidth": pl.Float64,
    "validation_accuracy": pl.Float64,
    "sampling_novelty": pl.Float64,
    "chosen": pl.Boolean,
}

_HALVINGS = 3  # of the step of the list in which samples become new enough: an eighth of it is left


@dataclass(frozen=True)
class Trial:
    """What a few samples of a bandwidth were like on average; None where it was not, or cannot be, measured.

    Novelty is that which sampling added: the distance from the decoded anchors.
    """

    bandwidth: float
    accuracy: float | None
    novelty: float | None


def choose_bandwidth(config: SamplingConfig, attempt: Callable[[float], Trial]) -> tuple[float, list[Trial]]:
    """Return the bandwidth to sample with, and what was tried: nothing, when the config gives one.

    Beside those of the list, bandwidths between the narrowest that is new enough and the one before it are tried, so
    that the samples of two compositions stand at nearly the same novelty, whatever the steps of the list.

    The best accuracy wins among the bandwidths that reach the least novelty; where none does, the most novel one.
    Without that condition 0 would win, which copies anchors. Where novelty cannot be measured, since no training model
    has the target's architecture, nothing can be copied, and accuracy alone decides. Where accuracy is chance, since
    the head is new, the least novel one that is new enough is taken.
    """
    if isinstance(config.bandwidth, float):
        return config.bandwidth, []
    trials = [attempt(bandwidth) for bandwidth in config.bandwidth]
    for _ in range(_HALVINGS):
        if (between := _find_middle(trials, config.least_novelty)) is not None:
            trials.append(attempt(between))
    if new := _list_new(trials, config.least_novelty):
        best = max(new, key=lambda trial: -(trial.novelty or 0.0) if trial.accuracy is None else trial.accuracy)
    else:
        best = max(trials, key=lambda trial: trial.novelty or 0.0)
    return best.bandwidth, trials


def _list_new(trials: Sequence[Trial], least: float) -> list[Trial]:
    return [trial for trial in trials if trial.novelty is None or trial.novelty >= least]


def _find_middle(trials: Sequence[Trial], least: float) -> float | None:
    """Return what is between the narrowest bandwidth that is new enough and the next narrower one, if both are."""
    narrowest = min((trial.bandwidth for trial in _list_new(trials, least)), default=0.0)
    narrower = [trial.bandwidth for trial in trials if trial.bandwidth < narrowest]
    return float(f"{(narrowest + max(narrower)) / 2:.6g}") if narrower else None


def list_trials(trials: Sequence[Trial], chosen: float) -> pl.DataFrame:
    """Return what was tried as a frame, with the bandwidth that was chosen marked."""
    ordered = sorted(trials, key=lambda trial: trial.bandwidth)
    rows = [(*astuple(trial), trial.bandwidth == chosen) for trial in ordered]
    return pl.DataFrame(rows, schema=TRIAL_SCHEMA, orient="row")
