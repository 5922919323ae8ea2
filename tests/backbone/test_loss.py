"""The loss against slow references that follow the formulas number by number."""

import math
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mzsane.backbone.loss import (
    contrast_loss,
    explained_variance,
    group_errors,
    latent_penalties,
    measure_scales,
    weigh_errors,
)
from mzsane.errors import ConfigError

Kind = Literal["simclr", "positive"]
Place = tuple[Any, ...]
MODES = ("token", "layer", "window", "batch", "none")
LOCAL = ("token", "layer", "window")  # modes that look at one model at a time
TINY = 1e-15  # a floor that plays no part


@dataclass(frozen=True)
class Example:
    """Windows of packed models with padding inside tokens and whole padding tokens."""

    output: Tensor
    target: Tensor
    mask: Tensor
    segments: Tensor
    layers: Tensor

    def scale(self, factors: Tensor) -> "Example":
        """Multiply weights and outputs by factors."""
        return replace(self, output=factors * self.output, target=factors * self.target)

    def weigh(self, mode: str, floor: float = TINY, relative_floor: float = 0.0, **others: Any) -> Tensor:
        parts = (self.output, self.target, self.mask, self.segments, self.layers)
        return weigh_errors(*parts, mode, floor, relative_floor, **others)

    def loss(self, mode: str, floor: float = TINY, relative_floor: float = 0.0) -> Tensor:
        parts = (self.output, self.target, self.mask, self.segments, self.layers)
        return weigh_errors(*parts, mode, floor, relative_floor).sum() / self.mask.sum().clamp(min=1)


def make_example(
    seed: int = 0,
    shape: tuple[int, int, int] = (3, 8, 6),
    scales: bool = True,
    shortest: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Example:
    """Return windows of up to three models of up to three layers each; the tokens are of very different size."""
    generator = torch.Generator().manual_seed(seed)
    batch, window, width = shape

    def draw(high: int, *size: int) -> Tensor:
        return torch.randint(0, high, size, generator=generator)

    segments = draw(3, batch, window).sort(dim=1).values + 1
    layers = draw(3, batch, window) + 4 * (segments - 1)
    layers = layers.sort(dim=1).values - 4 * (segments - 1)
    lengths = draw(width - shortest + 1, batch, window) + shortest
    padding = draw(max(1, window // 2), batch)[:, None] + torch.arange(window) >= window
    segments, layers, lengths = (x.masked_fill(padding, 0) for x in (segments, layers, lengths))
    target = torch.randn(shape, generator=generator, dtype=dtype)
    if scales:
        target = target * 10 ** (3 * torch.rand(batch, window, 1, generator=generator, dtype=dtype) - 2) + 0.3
    output = target + 0.5 * torch.randn(shape, generator=generator, dtype=dtype)
    mask = torch.arange(width) < lengths[:, :, None]
    return Example(output, target, mask, segments, layers)


def weigh_slowly(example: Example, mode: str, floor: float, relative_floor: float) -> Tensor:
    """Squared error over squared deviation, weight by weight, with the standard library's deviation."""
    places = [tuple(place) for place in example.mask.nonzero().tolist()]

    def token(place: Place) -> Place:
        return place[:2]

    def model(place: Place) -> Place:
        return place[0], example.segments[place[:2]].item()

    def layer(place: Place) -> Place:
        return *model(place), example.layers[place[:2]].item()

    def deviate(of: Callable[[Place], Place], place: Place) -> float:
        return statistics.pstdev([example.target[other].item() for other in places if of(other) == of(place)])

    weighed = torch.zeros_like(example.target)
    for place in places:
        if mode == "none":
            s = 1.0
        else:
            s = deviate({"token": token, "layer": layer, "window": model, "batch": lambda _: ()}[mode], place)
            if mode in ("token", "layer"):
                s = max(s, relative_floor * deviate(model, place))
            s += floor
        weighed[place] = (example.target[place].item() - example.output[place].item()) ** 2 / s**2
    return weighed


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(1, 4)),
    mode=st.sampled_from(MODES),
    floor=st.sampled_from([1e-4, 0.5]),
    relative_floor=st.sampled_from([0.0, 0.1, 0.7]),
)
def test_errors_are_weighed_by_the_formula(
    seed: int, shape: tuple[int, int, int], mode: str, floor: float, relative_floor: float
) -> None:
    example = make_example(seed, shape)
    expected = weigh_slowly(example, mode, floor, relative_floor)
    torch.testing.assert_close(example.weigh(mode, floor, relative_floor), expected, rtol=1e-9, atol=1e-12)
    mean = expected.sum() / example.mask.sum()
    torch.testing.assert_close(example.loss(mode, floor, relative_floor), mean, rtol=1e-9, atol=1e-12)


def test_small_tokens_rule_the_token_loss() -> None:
    """On tokens of deviations 1e-3 to 10 with errors of the batch's deviation: method.md has 109,349 against 1.06."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(16, 20, 50, generator=generator) * 10 ** torch.linspace(-3, 1, 20)[:, None]
    output = target + target.std() * torch.randn(target.shape, generator=generator)
    ones = torch.ones(16, 20, dtype=torch.int64)
    example = Example(output, target, torch.ones_like(target, dtype=torch.bool), ones, ones)
    assert 0.9 < example.loss("batch", 1e-4) < 1.1
    assert example.loss("token", 1e-4) > 1e5
    # The relative floor bounds a weight's share: 1 / 0.1^2 times what it is under `window`.
    assert example.loss("token", 1e-4, 0.1) < 100 * example.loss("window", 1e-4)


def test_an_unknown_normalisation_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'row'.*token, layer, window, batch, none"):
        make_example().loss("row")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_what_stands_in_the_padding_changes_nothing(mode: str, value: float) -> None:
    example = make_example()

    def measure(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        output = output.clone().requires_grad_()
        loss = replace(example, output=output, target=target).loss(mode, 1e-4, 0.1)
        return loss.detach(), torch.autograd.grad(loss, output)[0]

    loss, gradient = measure(example.output, example.target)
    dirty_output, dirty_target = (torch.where(example.mask, x, value) for x in (example.output, example.target))
    for output, target in (
        (dirty_output, example.target),
        (example.output, dirty_target),
        (dirty_output, dirty_target),
    ):
        dirty_loss, dirty_gradient = measure(output, target)
        assert torch.equal(dirty_loss, loss)
        assert torch.equal(dirty_gradient, gradient)
    assert torch.equal(gradient != 0, example.mask)
    assert torch.equal(example.weigh(mode) != 0, example.mask)


@pytest.mark.parametrize("mode", MODES)
def test_more_padding_changes_nothing(mode: str) -> None:
    example = make_example()
    wider = [torch.nn.functional.pad(x, (0, 3, 0, 4, 0, 2)) for x in (example.output, example.target, example.mask)]
    longer = [torch.nn.functional.pad(x, (0, 4, 0, 2)) for x in (example.segments, example.layers)]
    torch.testing.assert_close(Example(*wider, *longer).loss(mode, 1e-4, 0.1), example.loss(mode, 1e-4, 0.1))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_but_padding_costs_nothing(mode: str) -> None:
    example = make_example()
    empty = replace(example, mask=torch.zeros_like(example.mask), segments=torch.zeros_like(example.segments))
    assert empty.loss(mode) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("relative_floor", [0.0, 0.5])
@pytest.mark.parametrize("factor", [1e-3, 37.0])
def test_a_scaled_zoo_keeps_its_share_where_models_stand_alone(mode: str, relative_floor: float, factor: float) -> None:
    example = make_example(shortest=2)
    factors = torch.ones(3, 1, 1, dtype=torch.float64)
    factors[1] = factor
    before, after = (x.weigh(mode, TINY, relative_floor).sum(dim=(1, 2)) for x in (example, example.scale(factors)))
    shares = [errors[1] / errors.sum() for errors in (before, after)]
    if mode in LOCAL:
        torch.testing.assert_close(after, before)
        torch.testing.assert_close(shares[1], shares[0])
    else:
        assert not math.isclose(shares[0], shares[1], rel_tol=0.3)


@pytest.mark.parametrize("mode", LOCAL)
def test_a_scaled_model_leaves_those_that_share_its_window_alone(mode: str) -> None:
    example = make_example(shape=(2, 12, 5), shortest=2)
    factors = torch.where(example.segments == 2, 50.0, 1.0)[:, :, None]
    assert (example.segments == 2).any()
    torch.testing.assert_close(example.scale(factors).weigh(mode, TINY, 0.3), example.weigh(mode, TINY, 0.3))


def test_a_scaled_layer_counts_the_same_under_layer_and_more_under_window() -> None:
    example = make_example(shape=(2, 12, 5), scales=False, shortest=2)
    factors = torch.where(example.layers == 1, 50.0, 1.0)[:, :, None]
    scaled = example.scale(factors)
    for mode, same in (("token", True), ("layer", True), ("window", False)):
        assert torch.allclose(scaled.weigh(mode), example.weigh(mode)) is same


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_windows_and_tokens_does_not_matter(mode: str) -> None:
    """Nor that of the models in a window, whose tokens need not even lie side by side."""
    generator = torch.Generator().manual_seed(1)
    example = make_example()
    windows, tokens = (torch.randperm(size, generator=generator) for size in example.segments.shape)
    parts = (example.output, example.target, example.mask, example.segments, example.layers)
    moved = Example(*(part[windows][:, tokens] for part in parts))
    expected = example.weigh(mode, 1e-4, 0.1)[windows][:, tokens]
    torch.testing.assert_close(moved.weigh(mode, 1e-4, 0.1), expected)


def test_modes_agree_where_their_groups_do() -> None:
    example = make_example(shape=(4, 6, 5))
    single = make_example(shape=(4, 1, 5))
    for mode in ("layer", "window"):  # windows of one token
        torch.testing.assert_close(single.weigh(mode), single.weigh("token"))
    one_layer = replace(example, layers=torch.ones_like(example.layers))
    torch.testing.assert_close(one_layer.weigh("layer"), one_layer.weigh("window"))
    own_layers = replace(example, layers=torch.arange(6).expand(4, 6))
    torch.testing.assert_close(own_layers.weigh("layer"), own_layers.weigh("token"))
    one_window = Example(*(part[:1] for part in vars(example).values()))
    one_model = replace(one_window, segments=(one_window.segments > 0).long())
    torch.testing.assert_close(one_model.weigh("window"), one_model.weigh("batch"))
    assert not torch.allclose(example.weigh("token"), example.weigh("layer"))
    assert not torch.allclose(example.weigh("layer"), example.weigh("window"))
    assert not torch.allclose(example.weigh("window"), example.weigh("batch"))

    target = torch.tensor([[[1.0, -1.0, 1.0, -1.0]] * 3] * 2, dtype=torch.float64)  # variance 1 in every group
    ones = torch.ones(2, 3, dtype=torch.int64)
    unit = Example(target + 0.3, target, torch.ones_like(target, dtype=torch.bool), ones, ones)
    for mode in MODES:
        torch.testing.assert_close(unit.weigh(mode, 1e-15), unit.weigh("none"))


def test_batch_mode_is_masked_error_over_variance() -> None:
    example = make_example()
    weights, outputs = example.target[example.mask], example.output[example.mask]
    torch.testing.assert_close(example.loss("batch"), (outputs - weights).square().mean() / weights.var(unbiased=False))


def test_batch_statistics_can_span_processes() -> None:
    """Two threads, each with half of the windows, in the place of two processes."""
    example = make_example(shape=(4, 6, 5))
    given = [torch.empty(0), torch.empty(0)]
    meeting = threading.Barrier(2, timeout=20)

    def weigh_half(rank: int) -> Tensor:
        def sum_ranks(own: Tensor) -> Tensor:
            given[rank] = own
            meeting.wait()
            total = given[0] + given[1]
            meeting.wait()
            return total

        half = Example(*(part[2 * rank : 2 * rank + 2] for part in vars(example).values()))
        return half.weigh("batch", sum_ranks=sum_ranks)

    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(weigh_half, range(2)))
    torch.testing.assert_close(torch.cat(halves), example.weigh("batch"))


@pytest.mark.parametrize("mode", MODES)
def test_perfect_is_zero_and_a_mean_is_one(mode: str) -> None:
    example = make_example()
    assert replace(example, output=example.target).loss(mode) == 0
    if mode == "token":
        count = example.mask.sum(-1, keepdim=True).clamp(min=1)
        mean = (example.target * example.mask).sum(-1, keepdim=True) / count
        weighed = replace(example, output=mean.expand_as(example.target)).weigh(mode)
        # One a weight, but for tokens of a single weight: their mean is perfect.
        assert weighed.sum() == pytest.approx(example.mask[count[..., 0] > 1].sum().item())


@pytest.mark.parametrize("mode", ["token", "layer"])
def test_constant_tokens_are_bounded_by_the_floors(mode: str) -> None:
    """The first window is all one number; of the second only the last token varies, and has its deviation, 3."""
    target = torch.full((2, 3, 4), 0.01)
    target[1, 2] = torch.tensor([3.0, -3.0, 3.0, -3.0])
    segments = torch.ones(2, 3, dtype=torch.int64)
    layers = torch.arange(3).expand(2, 3)
    example = Example(target + 0.02, target, torch.ones_like(target, dtype=torch.bool), segments, layers)
    example.output.requires_grad_()
    weighed = example.weigh(mode, 0.1)
    torch.testing.assert_close(weighed[:, :2], torch.full((2, 2, 4), (0.02 / 0.1) ** 2))
    assert torch.autograd.grad(weighed.sum(), example.output)[0].isfinite().all()
    deviation = float(example.target[1].std(unbiased=False))
    relative = example.weigh(mode, 1e-4, 0.5)
    torch.testing.assert_close(relative[1, 0], torch.full((4,), (0.02 / (0.5 * deviation + 1e-4)) ** 2))
    torch.testing.assert_close(relative[1, 2], torch.full((4,), (0.02 / (3 + 1e-4)) ** 2))
    assert relative.isfinite().all()


@pytest.mark.parametrize("mode", LOCAL)
def test_small_deviations_around_a_large_mean_keep_their_digits(mode: str) -> None:
    """In float32 the mean of squares less the squared mean would be noise here."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(1, 4, 50, generator=generator)
    ones = torch.ones(1, 4, dtype=torch.int64)
    target = (1000 + 0.01 * spread).float()
    example = Example(target + 0.01, target, torch.ones_like(target, dtype=torch.bool), ones, ones)
    exact = Example(example.output.double(), target.double(), example.mask, ones, ones)
    torch.testing.assert_close(example.weigh(mode).double(), exact.weigh(mode), rtol=2e-3, atol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("relative_floor", [0.0, 0.4])
def test_reconstruction_gradient(mode: str, relative_floor: float) -> None:
    example = make_example(shape=(2, 5, 4), scales=False)

    def compute_loss(output: Tensor) -> Tensor:
        return replace(example, output=output).loss(mode, 1e-2, relative_floor)

    assert torch.autograd.gradcheck(compute_loss, example.output.clone().requires_grad_())


def test_float32_stays_float32() -> None:
    example = make_example(dtype=torch.float32)
    for mode in MODES:
        assert example.weigh(mode, 1e-4, 0.1).dtype == torch.float32
    exact = Example(example.output.double(), example.target.double(), example.mask, example.segments, example.layers)
    torch.testing.assert_close(example.loss("layer", 1e-4).double(), exact.loss("layer", 1e-4), rtol=1e-4, atol=0)


def test_scales_are_the_deviations_of_tokens() -> None:
    example = make_example(shape=(3, 5, 4))
    mask = example.mask[0]
    scales = measure_scales(torch.where(mask, example.target, float("nan")), mask)
    for model, token in torch.cartesian_prod(torch.arange(3), torch.arange(5)).tolist():
        weights = example.target[model, token][mask[token]].tolist()
        assert scales[model, token].item() == pytest.approx(statistics.pstdev(weights) if weights else 0)


def contrast_slowly(first: Tensor, second: Tensor, temperature: float) -> float:
    """NT-Xent, SimCLR equation 1, over all 2B views."""
    views = [row.tolist() for row in torch.cat([first, second])]
    batch = len(first)

    def similarity(i: int, j: int) -> float:
        a, b = views[i], views[j]
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.hypot(*a) / math.hypot(*b) / temperature

    total = 0.0
    for i in range(2 * batch):
        j = (i + batch) % (2 * batch)
        total -= similarity(i, j) - math.log(sum(math.exp(similarity(i, k)) for k in range(2 * batch) if k != i))
    return total / (2 * batch)


def draw_views(batch: int, width: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(batch, width, generator=generator, dtype=dtype) for _ in range(2))
    return first, second


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_contrast_equals_the_formula(temperature: float, batch: int) -> None:
    first, second = draw_views(batch)
    ours = contrast_loss(first, second, temperature).item()
    assert ours == pytest.approx(contrast_slowly(first, second, temperature), rel=1e-9, abs=1e-12)
    assert (ours == 0) is (batch == 1)


def test_contrast_prefers_right_pairs_and_is_symmetric() -> None:
    first, second = draw_views(8)
    identical = contrast_loss(first, first, 0.1)
    shuffled = contrast_loss(first, first.roll(1, dims=0), 0.1)
    assert identical < 0.3 < 1 < shuffled
    for kind in ("simclr", "positive"):
        loss = contrast_loss(first, second, 0.1, kind)
        torch.testing.assert_close(loss, contrast_loss(second, first, 0.1, kind))
        torch.testing.assert_close(loss, contrast_loss(5 * first, 0.1 * second, 0.1, kind))
        order = torch.tensor([3, 1, 4, 0, 5, 7, 2, 6])
        torch.testing.assert_close(loss, contrast_loss(first[order], second[order], 0.1, kind))


def test_attraction_is_least_for_identical_views() -> None:
    first, second = draw_views(8)
    assert contrast_loss(first, first, 0.1, "positive").item() == pytest.approx(0, abs=1e-12)
    assert contrast_loss(first, -first, 0.1, "positive").item() == pytest.approx(2)
    expected = 1 - torch.nn.functional.cosine_similarity(first, second).mean()
    torch.testing.assert_close(contrast_loss(first, second, 0.1, "positive"), expected)
    # A step against the gradient brings the views together.
    second.requires_grad_()
    before = contrast_loss(first, second, 0.1, "positive")
    step = torch.autograd.grad(before, second)[0]
    assert contrast_loss(first, second - step, 0.1, "positive") < before


@pytest.mark.parametrize("kind", ["simclr", "positive"])
@pytest.mark.parametrize("batch", [1, 3])
def test_contrast_gradient(kind: Kind, batch: int) -> None:
    views = [view.requires_grad_() for view in draw_views(batch, 4)]
    assert torch.autograd.gradcheck(lambda *pair: contrast_loss(pair[0], pair[1], 0.5, kind), views)


@pytest.mark.parametrize("kind", ["simclr", "positive"])
def test_silent_projections_are_harmless(kind: Kind) -> None:
    """A projection that ends in a ReLU can be all zeros, of one view, of both, or of the whole batch."""
    first, second = draw_views(4, dtype=torch.float32)
    first[0] = 0
    second[:2] = 0
    for pair in ((first, second), (torch.zeros(3, 4), torch.zeros(3, 4)), (torch.zeros(1, 4), torch.ones(1, 4))):
        views = [view.clone().requires_grad_() for view in pair]
        loss = contrast_loss(views[0], views[1], 0.1, kind)
        assert loss.isfinite()
        for gradient in torch.autograd.grad(loss, views):
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 100
    if kind == "positive":
        assert contrast_loss(torch.zeros(3, 4), torch.zeros(3, 4), 0.1, kind) == 1


def test_latent_penalties_are_over_real_tokens() -> None:
    latents = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    rows = latents[real]
    dirty = torch.where(real[:, :, None], latents, float("nan")).requires_grad_()
    norm, variance = latent_penalties(dirty, real)
    torch.testing.assert_close(norm, rows.square().mean())
    torch.testing.assert_close(variance, rows.var(dim=0, unbiased=False).mean())
    gradient = torch.autograd.grad(norm + variance, dirty)[0]
    assert torch.equal(gradient.ne(0), real[:, :, None].expand_as(latents))
    assert torch.autograd.gradcheck(lambda x: latent_penalties(x, real), latents.requires_grad_())
    assert [value.item() for value in latent_penalties(latents, torch.zeros_like(real))] == [0, 0]


def explain_slowly(target: list[float], output: list[float]) -> float:
    mean = statistics.fmean(target)
    error = sum((a - b) ** 2 for a, b in zip(target, output, strict=True))
    return 1 - error / sum((a - mean) ** 2 for a in target)


def test_explained_variance_counts_weights_only() -> None:
    example = make_example()
    output, target, mask = example.output, example.target, example.mask
    expected = explain_slowly(target[mask].tolist(), output[mask].tolist())
    assert explained_variance(output, target, mask) == pytest.approx(expected)
    dirty = torch.where(mask, target, float("nan"))
    assert explained_variance(output, dirty, mask) == pytest.approx(expected)
    assert explained_variance(target, target, mask) == 1
    mean = target[mask].mean()
    assert explained_variance(mean.expand_as(target), target, mask) == pytest.approx(0)
    assert math.isnan(explained_variance(output, target, torch.zeros_like(mask)))
    flat = target[:, 0]  # whole models without windows
    everything = torch.ones_like(flat, dtype=torch.bool)
    by_hand = explain_slowly(flat.flatten().tolist(), (flat + 0.1).flatten().tolist())
    assert explained_variance(flat + 0.1, flat, everything) == pytest.approx(by_hand)


def test_group_errors_are_the_explained_variance_of_each_group() -> None:
    example = make_example(shape=(3, 8, 6))
    groups = torch.randint(-1, 3, (3, 8), generator=torch.Generator().manual_seed(0))
    (group_5,) = group_errors(example.output, example.target, example.mask, (groups, 5))
    for number in range(3):
        inside = example.mask & (groups == number)[:, :, None]
        expected = explain_slowly(example.target[inside].tolist(), example.output[inside].tolist())
        assert group_5[number].item() == pytest.approx(expected)
    assert group_5[3:].isnan().all()
    # Where a group's weights are all the same there is nothing to explain; float32 must not find a variance there.
    constant = torch.full((3, 8, 7), 0.3)
    (of_constant,) = group_errors(constant + 1, constant, torch.ones(3, 8, 7, dtype=torch.bool), (groups, 3))
    assert of_constant.isnan().all()
    dirty = torch.where((groups == -1)[:, :, None], float("nan"), example.output)
    (of_dirty,) = group_errors(dirty, example.target, example.mask, (groups, 3))
    torch.testing.assert_close(of_dirty, group_5[:3])
