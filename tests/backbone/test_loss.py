"""The loss against slow references that follow the paper's formulas number by number."""

import math

import pytest
import torch

from mzsane.backbone.loss import contrast_loss, explained_variance, reconstruction_loss

MODES = ("token", "batch", "none")


def make_batch(seed=0, shape=(3, 5, 7), dtype=torch.float64, scales=True):
    """Return outputs, targets and a mask with padding inside tokens and whole padding tokens."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(shape, generator=generator, dtype=dtype)
    if scales:  # tokens of very different size, as in networks
        target = target * 10 ** torch.linspace(-2, 1, shape[1], dtype=dtype)[None, :, None] + 0.3
    output = target + 0.5 * torch.randn(shape, generator=generator, dtype=dtype)
    lengths = torch.randint(2, shape[2] + 1, shape[:2], generator=generator)
    lengths[:, -1] = 0
    lengths[0, 0] = shape[2]
    mask = torch.arange(shape[2]) < lengths[:, :, None]
    return output, target, mask


def reconstruct_slowly(output, target, mask, normalisation, floor):
    """Sum over all weights of (t - t')^2 / s^2 over their number, s = deviation + floor of the weight's group."""
    weights = [(b, w, d) for b, w, d in mask.nonzero().tolist()]

    def deviation(group):
        values = [target[place].item() for place in group]
        mean = sum(values) / len(values)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) + floor

    total = 0.0
    for place in weights:
        if normalisation == "none":
            s = 1.0
        elif normalisation == "batch":
            s = deviation(weights)
        else:
            s = deviation([other for other in weights if other[:2] == place[:2]])
        total += (target[place].item() - output[place].item()) ** 2 / s**2
    return total / len(weights)


@pytest.mark.parametrize("normalisation", MODES)
@pytest.mark.parametrize("floor", [1e-4, 0.5])
def test_reconstruction_equals_the_slow_reference(normalisation, floor):
    output, target, mask = make_batch()
    ours = reconstruction_loss(output, target, mask, normalisation, floor).item()
    assert ours == pytest.approx(reconstruct_slowly(output, target, mask, normalisation, floor), rel=1e-10)


def test_the_three_modes_differ():
    output, target, mask = make_batch()
    losses = {mode: reconstruction_loss(output, target, mask, mode, 1e-4).item() for mode in MODES}
    assert len({round(loss, 6) for loss in losses.values()}) == 3
    # Small tokens weigh the most under `token`: the point of it, and its danger.
    assert losses["token"] > 10 * losses["batch"]


@pytest.mark.parametrize("normalisation", MODES)
def test_what_stands_in_the_padding_changes_nothing(normalisation):
    output, target, mask = make_batch()
    loss = reconstruction_loss(output, target, mask, normalisation, 1e-4)
    dirty_output, dirty_target = (torch.where(mask, x, torch.full_like(x, 1e6)) for x in (output, target))
    assert reconstruction_loss(dirty_output, target, mask, normalisation, 1e-4) == loss
    assert reconstruction_loss(output, dirty_target, mask, normalisation, 1e-4) == loss


@pytest.mark.parametrize("normalisation", MODES)
def test_more_padding_changes_nothing(normalisation):
    output, target, mask = make_batch()
    loss = reconstruction_loss(output, target, mask, normalisation, 1e-4)
    wider = [torch.nn.functional.pad(x, (0, 3, 0, 4)) for x in (output, target, mask)]
    torch.testing.assert_close(reconstruction_loss(*wider, normalisation, 1e-4), loss)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 37.0])
def test_a_scaled_zoo_has_the_same_token_loss(factor):
    output, target, mask = make_batch()
    loss = reconstruction_loss(output, target, mask, "token", 1e-15)
    scaled = reconstruction_loss(factor * output, factor * target, mask, "token", 1e-15)
    torch.testing.assert_close(scaled, loss)
    plain = reconstruction_loss(factor * output, factor * target, mask, "none", 1e-15)
    torch.testing.assert_close(plain, factor**2 * reconstruction_loss(output, target, mask, "none", 1e-15))


def test_a_scaled_token_leaves_the_token_loss_but_not_the_batch_loss():
    output, target, mask = make_batch(scales=False)
    factors = torch.ones(3, 5, 1, dtype=torch.float64)
    factors[1, 2] = 100
    for mode, same in (("token", True), ("batch", False)):
        losses = [reconstruction_loss(f * output, f * target, mask, mode, 1e-12).item() for f in (1.0, factors)]
        assert (losses[0] == pytest.approx(losses[1])) is same


def test_batch_mode_is_masked_error_over_variance():
    output, target, mask = make_batch()
    expected = (output - target)[mask].square().mean() / target[mask].var(unbiased=False)
    torch.testing.assert_close(reconstruction_loss(output, target, mask, "batch", 1e-15), expected)


@pytest.mark.parametrize("normalisation", MODES)
def test_perfect_is_zero_and_a_token_mean_is_one(normalisation):
    _, target, mask = make_batch()
    assert reconstruction_loss(target, target, mask, normalisation, 1e-4) == 0
    if normalisation == "token":
        mean = (target * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        loss = reconstruction_loss(mean.expand_as(target), target, mask, "token", 1e-15)
        assert loss.item() == pytest.approx(1)


def test_a_constant_token_is_bounded_by_the_floor():
    target = torch.full((1, 1, 4), 0.01, dtype=torch.float64)
    loss = reconstruction_loss(target + 0.02, target, torch.ones(1, 1, 4, dtype=torch.bool), "token", 0.1)
    assert loss.item() == pytest.approx((0.02 / 0.1) ** 2)


@pytest.mark.parametrize("normalisation", MODES)
def test_reconstruction_gradient(normalisation):
    output, target, mask = make_batch(shape=(2, 3, 4), scales=False)
    output.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reconstruction_loss(x, target, mask, normalisation, 1e-2), output)
    reconstruction_loss(output, target, mask, normalisation, 1e-2).backward()
    assert torch.equal(output.grad != 0, mask)


def contrast_slowly(first, second, temperature):
    """NT-Xent, SimCLR equation 1, over all 2B views."""
    views = [row.tolist() for row in torch.cat([first, second])]
    batch = len(first)

    def similarity(i, j):
        a, b = views[i], views[j]
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b)) / temperature

    total = 0.0
    for i in range(2 * batch):
        j = (i + batch) % (2 * batch)
        total -= similarity(i, j) - math.log(sum(math.exp(similarity(i, k)) for k in range(2 * batch) if k != i))
    return total / (2 * batch)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_contrast_equals_the_formula(temperature, batch):
    generator = torch.Generator().manual_seed(batch)
    first, second = (torch.randn(batch, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    ours = contrast_loss(first, second, temperature).item()
    assert ours == pytest.approx(contrast_slowly(first, second, temperature), rel=1e-9, abs=1e-12)


def test_contrast_prefers_right_pairs_and_is_symmetric():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, 6, generator=generator)
    identical = contrast_loss(first, first, 0.1)
    shuffled = contrast_loss(first, first.roll(1, dims=0), 0.1)
    assert identical < 0.1 < 1 < shuffled
    second = torch.randn(8, 6, generator=generator)
    torch.testing.assert_close(contrast_loss(first, second, 0.1), contrast_loss(second, first, 0.1))
    torch.testing.assert_close(contrast_loss(first, second, 0.1), contrast_loss(5 * first, 0.1 * second, 0.1))


def test_contrast_gradient_and_silent_views():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    first.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: contrast_loss(x, second, 0.5), first)
    # A projection that ends in a ReLU can be all zeros.
    silent = torch.zeros(3, 4, requires_grad=True)
    loss = contrast_loss(silent, silent.clone(), 0.1)
    loss.backward()
    assert math.isfinite(loss.item())
    assert silent.grad.isfinite().all()


def test_explained_variance_counts_weights_only():
    output, target, mask = make_batch()
    weights, outputs = target[mask].tolist(), output[mask].tolist()
    mean = sum(weights) / len(weights)
    error = sum((a - b) ** 2 for a, b in zip(weights, outputs, strict=True))
    spread = sum((a - mean) ** 2 for a in weights)
    assert explained_variance(output, target, mask) == pytest.approx(1 - error / spread)
    dirty = torch.where(mask, target, torch.full_like(target, 99.0))
    assert explained_variance(output, dirty, mask) == pytest.approx(1 - error / spread)
    assert explained_variance(target, target, mask) == 1
    assert explained_variance(torch.full_like(target, mean), target, mask) == pytest.approx(0)
