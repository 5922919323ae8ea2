"""The speed of pre-training: tokens, waiting for data, the share of the machine's matrix peak, memory."""

import time
from statistics import median_high

import torch

from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.loader import BatchLoader, TrainingBatch
from mzsane.backbone.machine import count_flops, measure_matrix_peak, measure_memory
from mzsane.config import BackboneConfig


class SpeedMeter:
    """How fast the steps of a process are; what is not a step (validating, saving) is left out."""

    def __init__(
        self, config: BackboneConfig, token_dim: int, precision: torch.dtype, feeder: BatchLoader, ranks: Ranks
    ) -> None:
        self.config, self.token_dim, self.precision = config, token_dim, precision
        self.feeder, self.ranks = feeder, ranks
        self.peak: float | None = None
        self._rates: list[dict[str, float]] = []
        self.start()

    def start(self) -> None:
        """Begin to measure anew."""
        self.began, self.waited = time.perf_counter(), self.feeder.waited
        self.tokens = self.weights = 0
        self.flops = 0.0

    def count(self, feed: TrainingBatch) -> None:
        """Count a part of a step."""
        tokens, attended = feed.tokens
        self.tokens += tokens
        self.weights += feed.weights // self.ranks.count
        self.flops += count_flops(self.config, self.token_dim, tokens, attended)

    def read(self) -> dict[str, float]:
        """Return speeds of this process since the start of the measurement, and begin anew."""
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize(self.ranks.device)
        seconds = time.perf_counter() - self.began
        if self.peak is None:
            self.peak = measure_matrix_peak(self.ranks.device, self.precision)
        values = {
            "tokens_per_s": self.tokens / seconds,
            "weights_per_s": self.weights / seconds,
            "waiting_share": (self.feeder.waited - self.waited) / seconds,
            "matrix_peak_share": self.flops / seconds / self.peak,
            "memory_gib": measure_memory(self.ranks.device),
        }
        self._rates.append(values)
        self.start()
        return values

    @property
    def summary(self) -> dict[str, float]:
        """The medians of all that was read, for people; nothing if nothing was."""
        if not self._rates:
            return {}
        return {name: round(median_high(rates[name] for rates in self._rates), 4) for name in self._rates[0]}
