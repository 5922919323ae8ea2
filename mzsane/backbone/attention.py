"""Attention within the models of a batch: what shares a window is computed as if each model were alone.

The models of packed windows become rows of their own, so that the cost is that of their lengths and not of the
window's, and no mask is needed where they are equally long.

Suffixes: B windows, W tokens of a window, X = B * W, K models of the batch, S tokens of the longest, F features, H
heads, E features of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_SHORT = 128  # tokens; up to here a CPU computes plain products faster than the fused kernel


@dataclass(frozen=True)
class AttentionPlan:
    """Which tokens of a batch are of one model.

    Attributes:
        shape: models K and tokens of the longest S.
        take_X: for each place of (K, S) the token of the batch that goes there; None if the batch is in that order.
        back_X: for each token of the batch its place in (K, S), any in the padding; None with `take_X`.
        padding_X1: True for the padding of the batch; None if there is none.
        keys_K11S: True where (K, S) has a token; None if all models are equally long.
    """

    shape: tuple[int, int]
    take_X: Tensor | None
    back_X: Tensor | None
    padding_X1: Tensor | None
    keys_K11S: Tensor | None


def plan_attention(segments_BW: Tensor, device: torch.device | None = None) -> AttentionPlan | None:
    """Plan the attention of a batch; None where each window is one model without padding.

    Args:
        segments_BW: which model of its window a token is of, 1, 2, ..., each in one run; 0 in the padding.
        device: where the batch is; where the segments are if None.
    """
    device, (windows, window) = device or segments_BW.device, segments_BW.shape
    segments = segments_BW.cpu()
    model_X = (segments + torch.arange(windows)[:, None] * (window + 1)).flatten()
    real_X = segments.flatten() > 0
    if not real_X.any():
        return None  # nothing to attend to: what comes out is ignored
    _, row_X, lengths_K = torch.unique_consecutive(model_X[real_X], return_inverse=True, return_counts=True)
    rows, longest = len(lengths_K), int(lengths_K.max())
    if (rows, longest) == (windows, window) and len(row_X) == windows * window:
        return None
    first_K = lengths_K.cumsum(0) - lengths_K
    place_X = row_X * longest + torch.arange(len(row_X)) - first_K[row_X]
    tokens_X = real_X.nonzero().squeeze(1)
    even = bool((lengths_K == longest).all())
    padded = len(tokens_X) < len(real_X)
    if even and not padded:
        return AttentionPlan((rows, longest), None, None, None, None)
    take_X = tokens_X[first_K].repeat_interleave(longest)  # a short model's row ends with its own first token, unseen
    take_X[place_X] = tokens_X
    back_X = torch.zeros(len(real_X), dtype=torch.int64)
    back_X[tokens_X] = place_X
    keys_KS = torch.arange(longest) < lengths_K[:, None]
    return AttentionPlan(
        (rows, longest),
        take_X.to(device),
        back_X.to(device),
        ~real_X[:, None].to(device) if padded else None,
        None if even else keys_KS[:, None, None].to(device),
    )


def attend(qkv_BWF: Tensor, heads: int, plan: AttentionPlan | None) -> Tensor:
    """Return for each token the mixture of its model's values, (B, W, F / 3); zeros in the padding.

    Args:
        qkv_BWF: queries, keys and values side by side.
        heads: number of heads.
        plan: which tokens are of one model; None if each window is one.
    """
    windows, window, features = qkv_BWF.shape
    rows, length = plan.shape if plan else (windows, window)
    qkv = qkv_BWF.flatten(0, 1)
    if plan and plan.take_X is not None and plan.back_X is not None:
        qkv = _regroup(qkv, plan.take_X, plan.back_X, plan.padding_X1)
    qkv_KS3HE = qkv.view(rows, length, 3, heads, features // 3 // heads)
    mixed = _mix(qkv_KS3HE, plan.keys_K11S if plan else None).reshape(rows * length, features // 3)
    if plan and plan.take_X is not None and plan.back_X is not None:
        absent = None if plan.keys_K11S is None else ~plan.keys_K11S.reshape(rows * length, 1)
        mixed = _regroup(mixed, plan.back_X, plan.take_X, absent)
        if plan.padding_X1 is not None:
            mixed = mixed.masked_fill(plan.padding_X1, 0)
    return mixed.view(windows, window, features // 3)


def _mix(qkv_KS3HE: Tensor, keys_K11S: Tensor | None) -> Tensor:
    """Return the mixtures of values, (K, S, H, E)."""
    low = qkv_KS3HE.dtype == torch.bfloat16
    if qkv_KS3HE.device.type != "cpu" or not (low or qkv_KS3HE.shape[1] <= _SHORT):
        q_KHSE, k_KHSE, v_KHSE = qkv_KS3HE.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_KHSE = functional.scaled_dot_product_attention(q_KHSE, k_KHSE, v_KHSE, attn_mask=keys_K11S)
        return mixed_KHSE.transpose(1, 2)
    # On a CPU the fused kernel is slower than this for short rows, and its backward pass in bfloat16 many times so.
    mixed: Tensor = _ShortMix.apply(qkv_KS3HE, keys_K11S)  # type: ignore[no-untyped-call]
    return mixed


class _ShortMix(torch.autograd.Function):
    """Attention as plain products of all heads of all rows (Y), with one copy of what they take and give each way."""

    @staticmethod
    def forward(ctx, qkv_KS3HE: Tensor, keys_K11S: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        """Return the mixtures of values, (K, S, H, E)."""
        rows, length, _, heads, width = qkv_KS3HE.shape
        qkv_3YSE = qkv_KS3HE.permute(2, 0, 3, 1, 4).reshape(3, rows * heads, length, width)
        q_YSE, k_YSE, v_YSE = qkv_3YSE.unbind(0)
        scores_YSS = _multiply(q_YSE, k_YSE.transpose(1, 2), width**-0.5, q_YSE.new_empty(len(q_YSE), length, length))
        if keys_K11S is not None:
            scores_YSS.view(rows, heads, length, length).masked_fill_(~keys_K11S, float("-inf"))
        shares_YSS = scores_YSS.softmax(dim=2)
        ctx.save_for_backward(qkv_3YSE, shares_YSS)
        return (shares_YSS @ v_YSE).view(rows, heads, length, width).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_KSHE: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """Return the gradient of queries, keys and values."""
        qkv_3YSE, shares_YSS = ctx.saved_tensors
        q_YSE, k_YSE, v_YSE = qkv_3YSE.unbind(0)
        rows, length, heads, width = gradient_KSHE.shape
        gradient_YSE = gradient_KSHE.transpose(1, 2).reshape(rows * heads, length, width)
        of_shares_YSS = gradient_YSE @ v_YSE.transpose(1, 2)
        of_scores_YSS = torch._softmax_backward_data(of_shares_YSS, shares_YSS, 2, shares_YSS.dtype)
        of_qkv_3YSE = torch.empty_like(qkv_3YSE)
        _multiply(of_scores_YSS, k_YSE, width**-0.5, of_qkv_3YSE[0])
        _multiply(of_scores_YSS.transpose(1, 2), q_YSE, width**-0.5, of_qkv_3YSE[1])
        torch.bmm(shares_YSS.transpose(1, 2), gradient_YSE, out=of_qkv_3YSE[2])
        return of_qkv_3YSE.view(3, rows, heads, length, width).permute(1, 3, 0, 2, 4), None


def _multiply(a_YSX: Tensor, b_YXE: Tensor, factor: float, out_YSE: Tensor) -> Tensor:
    """Write factor * a @ b to `out_YSE`, whatever stands there, in one operation; return it."""
    return torch.baddbmm(out_YSE, a_YSX, b_YXE, beta=0, alpha=factor, out=out_YSE)


def _regroup(rows_XF: Tensor, take_Y: Tensor, back_X: Tensor | None, padding_X1: Tensor | None) -> Tensor:
    taken: Tensor = _Regroup.apply(rows_XF, take_Y, back_X, padding_X1)  # type: ignore[no-untyped-call]
    return taken


class _Regroup(torch.autograd.Function):
    """Take rows of a matrix by index, each row that matters once; so the gradient is a taking of rows too."""

    @staticmethod
    def forward(ctx, rows_XF: Tensor, take_Y: Tensor, back_X: Tensor, padding_X1: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        """Return the rows `take_Y`."""
        ctx.save_for_backward(back_X, padding_X1)
        return rows_XF.index_select(0, take_Y)

    @staticmethod
    def backward(ctx, gradient_YF: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        """Return the gradient of the rows: that of where each went, zero in the padding."""
        back_X, padding_X1 = ctx.saved_tensors
        gradient_XF = gradient_YF.index_select(0, back_X)
        if padding_X1 is not None:
            gradient_XF.masked_fill_(padding_X1, 0)
        return gradient_XF, None, None, None
