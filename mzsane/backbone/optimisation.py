"""How the weights of a backbone change in a step: AdamW, the course of its rates, and a moving average.

All of it is a function of the step, the weights and AdamW's moments.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mzsane.config import BackboneConfig

_BETAS = (0.9, 0.95)
_CYCLED_BETA = (0.95, 0.85)  # AdamW's first at the ends and at the peak of a one-cycle
_START, _END = 1 / 25, 1 / 250_000  # of the peak rate, at the ends of a one-cycle


def make_optimizer(model: nn.Module, config: BackboneConfig) -> torch.optim.AdamW:
    """Make AdamW for the trainable parameters, fused; vectors have no weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in parameters if (p.ndim >= 2) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=_BETAS, fused=True)


def learning_rate_at(step: int, config: BackboneConfig) -> float:
    """Return the learning rate of a step, the first one being 0 (see `BackboneConfig.schedule`)."""
    warmup = max(1, round(config.warmup * config.steps))
    if config.schedule == "one-cycle":
        if step < warmup:
            return config.learning_rate * _anneal(_START, 1, step / warmup)
        return config.learning_rate * _anneal(1, _END, (step - warmup) / max(1, config.steps - 1 - warmup))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * _anneal(1, 0, (step - warmup) / max(1, config.steps - warmup))


def first_beta_at(step: int, config: BackboneConfig) -> float:
    """Return AdamW's decay of the first moment: constant, or down and up again under one-cycle."""
    if config.schedule != "one-cycle":
        return _BETAS[0]
    warmup = max(1, round(config.warmup * config.steps))
    edge, peak = _CYCLED_BETA
    if step < warmup:
        return _anneal(edge, peak, step / warmup)
    return _anneal(peak, edge, (step - warmup) / max(1, config.steps - 1 - warmup))


def set_rates(optimizer: torch.optim.AdamW, step: int, config: BackboneConfig) -> float:
    """Prepare the optimizer for a step; return the learning rate."""
    rate, beta = learning_rate_at(step, config), first_beta_at(step, config)
    for group in optimizer.param_groups:
        group["lr"], group["betas"] = rate, (beta, _BETAS[1])
    return rate


@torch.no_grad()
def update_average(average: Iterable[Tensor], parameters: Iterable[Tensor], step: int, decay: float) -> None:
    """Move averages towards parameters, in place.

    In the first steps the decay is (1 + step) / (10 + step) where that is less, so that the random start is forgotten.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average), list(parameters), share)


def _anneal(start: float, end: float, share: float) -> float:
    """Return the value on a half cosine from start to end."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
