"""The course of learning rate and momentum against PyTorch's schedulers, the moving average, and weight decay."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR

from mzsane.backbone.optimisation import first_beta_at, learning_rate_at, make_optimizer, set_rates, update_average
from mzsane.config import BackboneConfig

LENGTHS = [(10, 0.3), (37, 0.1), (100, 0.5), (200, 0.25), (64, 0.0), (1000, 0.02)]  # steps, warm-up


def make_plain(beta: float) -> torch.optim.AdamW:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.5, betas=(beta, 0.95))


def follow(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[tuple[float, float]]:
    """Return learning rate and first beta of each step."""
    seen = []
    for step in range(steps):
        (group,) = scheduler.optimizer.param_groups
        seen.append((group["lr"], group["betas"][0]))
        scheduler.optimizer.step()
        if step + 1 < steps:  # one-cycle refuses to be stepped past its end
            scheduler.step()
    return seen


@pytest.mark.parametrize(("steps", "warmup"), LENGTHS)
def test_one_cycle_is_pytorchs(steps: int, warmup: float) -> None:
    config = BackboneConfig(steps=steps, warmup=warmup, learning_rate=0.5, schedule="one-cycle")
    rising = max(1, round(warmup * steps))
    scheduler = OneCycleLR(
        make_plain(0.95),
        max_lr=0.5,
        total_steps=steps,
        pct_start=(rising + 1) / steps,  # PyTorch counts the peak among the rising steps
        anneal_strategy="cos",
        cycle_momentum=True,
        three_phase=False,
    )
    expected = follow(scheduler, steps)
    for step, (rate, beta) in enumerate(expected):
        assert learning_rate_at(step, config) == pytest.approx(rate, rel=1e-9), step
        assert first_beta_at(step, config) == pytest.approx(beta, rel=1e-9), step


@pytest.mark.parametrize(("steps", "warmup"), LENGTHS)
def test_cosine_is_pytorchs_after_a_linear_warm_up(steps: int, warmup: float) -> None:
    config = BackboneConfig(steps=steps, warmup=warmup, learning_rate=0.5)
    rising = max(1, round(warmup * steps))
    optimizer = make_plain(0.9)
    warm_up = LinearLR(optimizer, start_factor=1 / rising, total_iters=max(1, rising - 1))
    cosine = CosineAnnealingLR(optimizer, T_max=steps - rising)
    for step, (rate, beta) in enumerate(follow(SequentialLR(optimizer, [warm_up, cosine], [rising]), steps)):
        assert learning_rate_at(step, config) == pytest.approx(rate, rel=1e-6, abs=1e-12), step
        assert first_beta_at(step, config) == beta == 0.9


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (2, 0.5), (2, 1.0), (3, 1.0), (7, 0.0), (7, 1.0)])
def test_the_shortest_trainings_have_rates(schedule: str, steps: int, warmup: float) -> None:
    config = BackboneConfig.model_validate(
        {"steps": steps, "warmup": warmup, "learning_rate": 0.5, "schedule": schedule}
    )
    for step in range(steps):
        assert 0 < learning_rate_at(step, config) <= 0.5
        assert 0.85 <= first_beta_at(step, config) <= 0.95


def test_rates_reach_every_group_of_the_optimizer() -> None:
    config = BackboneConfig(steps=20, warmup=0.25, learning_rate=0.5, schedule="one-cycle")
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    assert len(optimizer.param_groups) == 2
    for step in (0, 5, 19):
        rate = set_rates(optimizer, step, config)
        assert rate == learning_rate_at(step, config)
        for group in optimizer.param_groups:
            assert group["lr"] == rate
            assert group["betas"] == (first_beta_at(step, config), 0.95)
    set_rates(optimizer, 5, config)
    assert optimizer.param_groups[1]["betas"] == (0.85, 0.95)
    assert optimizer.param_groups[1]["lr"] == 0.5


class TestWeightDecay:
    def test_is_for_matrices_alone(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4))
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        config = BackboneConfig(weight_decay=0.5, learning_rate=0.1)
        optimizer = make_optimizer(model, config)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, value in model.named_parameters():
            kept = 1 - 0.1 * 0.5 if value.ndim == 2 else 1.0
            torch.testing.assert_close(value.detach(), kept * before[name], msg=name)

    def test_frozen_parameters_are_left_out(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        model[1].requires_grad_(False)
        groups = make_optimizer(model, BackboneConfig()).param_groups
        assert [len(group["params"]) for group in groups] == [1, 1]
        assert groups[0]["params"][0] is model[0].weight
        assert groups[1]["params"][0] is model[0].bias

    def test_the_optimizer_is_fused(self) -> None:
        assert make_optimizer(nn.Linear(2, 2), BackboneConfig()).defaults["fused"]


class TestAverage:
    def test_equals_the_average_written_out(self) -> None:
        generator = torch.Generator().manual_seed(0)
        parameters = torch.randn(30, 4, generator=generator, dtype=torch.float64)
        decay = 0.7
        average = [torch.full((2,), 5.0, dtype=torch.float64), torch.full((2,), -5.0, dtype=torch.float64)]
        expected = [5.0, 5.0, -5.0, -5.0]
        places = [each.data_ptr() for each in average]
        for step, values in enumerate(parameters):
            update_average(average, values.split(2), step, decay)
            now = min(decay, (1 + step) / (10 + step))
            expected = [now * old + (1 - now) * new for old, new in zip(expected, values.tolist(), strict=True)]
            torch.testing.assert_close(torch.cat(average), torch.tensor(expected, dtype=torch.float64))
        assert [each.data_ptr() for each in average] == places

    def test_forgets_the_random_start_at_once(self) -> None:
        average = [torch.full((1,), 1000.0)]
        for step in range(20):
            update_average(average, [torch.ones(1)], step, 0.999)
        assert abs(float(average[0]) - 1) < 0.1

    def test_is_as_slow_as_it_was_set(self) -> None:
        average = [torch.zeros(1)]
        for step in range(1000, 1100):
            update_average(average, [torch.ones(1)], step, 0.99)
        assert float(average[0]) == pytest.approx(1 - 0.99**100, rel=1e-4)
