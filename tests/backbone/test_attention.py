"""Attention within models against a masked softmax written out model by model: values, gradients, and padding.

Suffixes: B windows, W tokens of a window, F features of queries, keys and values.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mzsane.backbone.attention import attend, plan_attention

HEADS, WIDTH = 2, 4  # heads, and features of a token
Packing = list[list[int]]  # for each window its runs: lengths of models, and of padding below 0


def fill(packing: Packing) -> Tensor:
    """Return the segments of windows."""
    rows = []
    for runs in packing:
        row, model = [], 0
        for run in runs:
            model += run > 0
            row += [model if run > 0 else 0] * abs(run)
        rows.append(row)
    return torch.tensor(rows)


def draw_qkv(segments_BW: Tensor, seed: int = 0, width: int = WIDTH, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*segments_BW.shape, 3 * width, generator=generator, dtype=torch.float64).to(dtype)


def attend_one_by_one(qkv_BWF: Tensor, segments_BW: Tensor, heads: int = HEADS) -> Tensor:
    """Return what `attend` should: each model taken out of its window and attended to as if it were alone."""
    width = qkv_BWF.shape[-1] // 3
    out = qkv_BWF.new_zeros(*segments_BW.shape, width)
    for b, segments_W in enumerate(segments_BW):
        for model in range(1, int(segments_W.max()) + 1):
            places = (segments_W == model).nonzero().squeeze(1)
            parts = qkv_BWF[b, places].split(width, dim=-1)
            q, k, v = (part.unflatten(1, (heads, width // heads)) for part in parts)
            shares = torch.einsum("she,the->hst", q, k).div((width // heads) ** 0.5).softmax(dim=-1)
            out = out.index_put((torch.tensor(b), places), torch.einsum("hst,the->she", shares, v).flatten(1))
    return out


def compare(segments_BW: Tensor, seed: int = 0, atol: float = 1e-11) -> None:
    """Check values and gradients of a packing against the reference; NaN in the padding included."""
    qkv = draw_qkv(segments_BW, seed)
    real = (segments_BW > 0)[..., None]
    weights = draw_qkv(segments_BW, seed + 1)[..., :WIDTH]  # of the outputs in a loss, the padding's included
    given_qkv = torch.where(real, qkv, float("nan")).requires_grad_()
    expected_qkv = qkv.clone().requires_grad_()
    result = attend(given_qkv, HEADS, plan_attention(segments_BW))
    expected = attend_one_by_one(expected_qkv, segments_BW)
    torch.testing.assert_close(result, expected, atol=atol, rtol=0)
    (gradient,) = torch.autograd.grad((result * weights).sum(), given_qkv)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), expected_qkv)
    torch.testing.assert_close(gradient, expected_gradient, atol=atol, rtol=0)
    assert not gradient.masked_select(~real).any()


@st.composite
def packings(draw: st.DrawFn) -> Packing:
    """Draw windows of models and padding in any order; at least one token is real."""
    window = draw(st.integers(1, 9))
    windows = []
    for _ in range(draw(st.integers(1, 4))):
        runs: list[int] = []
        while (left := window - sum(map(abs, runs))) > 0:
            length = draw(st.integers(1, left))
            runs.append(-length if draw(st.integers(0, 3)) == 0 else length)
        windows.append(runs)
    if all(run < 0 for runs in windows for run in runs):
        windows.append([window])
    return windows


@settings(max_examples=120, deadline=None, derandomize=True)
@given(packings(), st.integers(0, 100))
@example([[4, 3, -2], [1, 8]], 0)  # unequal lengths, padding at the end
@example([[3, -2, 4], [-5, 4]], 0)  # padding in the middle and at the start
@example([[9]], 0)
@example([[3, 3, 3], [3, 3, 3]], 0)  # equal models that fill the windows
@example([[3, 3, -3], [3, 3, -3]], 0)  # equal models and padding
@example([[5, 4], [-9]], 0)  # a window of padding beside another
@example([[9], [-9], [9]], 0)
@example([[1] * 9], 0)
def test_equals_models_taken_one_by_one(packing: Packing, seed: int) -> None:
    compare(fill(packing), seed)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(packings())
def test_there_is_no_plan_exactly_where_each_window_is_one_whole_model(packing: Packing) -> None:
    whole = all(len(runs) == 1 and runs[0] > 0 for runs in packing)
    assert (plan_attention(fill(packing)) is None) == whole


@pytest.mark.parametrize("packing", [[[4]], [[2, 2]], [[3, 1]], [[1, -1, 2]], [[2, -2], [1, 3]]])
def test_gradients_equal_finite_differences(packing: Packing) -> None:
    segments = fill(packing)
    plan = plan_attention(segments)
    qkv = draw_qkv(segments).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attend(x, HEADS, plan), qkv)


def test_a_batch_of_padding_alone_is_not_an_error() -> None:
    segments = torch.zeros(2, 3, dtype=torch.int64)
    assert plan_attention(segments) is None
    assert attend(draw_qkv(segments), HEADS, None).shape == (2, 3, WIDTH)


def test_heads_do_not_mix() -> None:
    segments = fill([[3, 2]])
    qkv = draw_qkv(segments)
    changed = qkv.clone()
    changed.unflatten(-1, (3, HEADS, -1))[:, :, :, 1] += 1.0
    one, other = (attend(x, HEADS, plan_attention(segments)).unflatten(-1, (HEADS, -1)) for x in (qkv, changed))
    assert torch.equal(one[:, :, 0], other[:, :, 0])
    assert (one[:, :, 1] - other[:, :, 1]).abs().min() > 1e-3


@pytest.mark.parametrize("packing", [[[300]], [[200, 60, -40], [300]], [[150, 150], [-1, 299]], [[150, 150]]])
def test_long_rows_are_computed_alike(packing: Packing) -> None:
    """Beyond 128 tokens a fused kernel takes over."""
    compare(fill(packing), atol=1e-10)


def test_a_short_model_is_the_same_beside_a_long_one() -> None:
    qkv = draw_qkv(fill([[20, 180]]), dtype=torch.float32)
    beside = attend(qkv, HEADS, plan_attention(fill([[20, 180]])))[:, :20]
    short = attend(qkv[:, :20], HEADS, plan_attention(fill([[20]])))
    torch.testing.assert_close(beside, short, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("packing", [[[40]], [[25, 12, -3], [40]], [[20, 20]], [[200, 50]]])
def test_bfloat16_is_close_to_float32(packing: Packing) -> None:
    segments = fill(packing)
    plan = plan_attention(segments)
    qkv = draw_qkv(segments, width=32, dtype=torch.bfloat16)
    weights = draw_qkv(segments, seed=1, width=32)[..., :32]
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = qkv.to(dtype).requires_grad_()
        output = attend(inputs, 4, plan)
        assert output.dtype == dtype
        (gradient,) = torch.autograd.grad((output * weights.to(dtype)).sum(), inputs)
        results.append((output.float(), gradient.float()))
    for low, high in zip(*results, strict=True):
        assert (low - high).norm() < 0.02 * high.norm()
        assert not torch.equal(low, high)
