"""Tokens of one architecture in the place of another's: which stand for which, and what is without the head.

Suffixes: B models, P weights of a model, T tokens of the target, R rows of a layer, K parts of a row.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from mzsane.layout.layers import Layer
from mzsane.layout.token_layout import TokenLayout


def map_tokens(source: TokenLayout, target: TokenLayout) -> Tensor:
    """Return for each token of the target the number of the token of the source that stands for it, (T,).

    Rows of a wider layer are those of the source again and again; parts of a longer row are spread over the source's.
    """
    if source.digest == target.digest:
        return torch.arange(target.length)
    pieces = []
    for layer, number in zip(target.layers, match_layers(source, target), strict=True):
        known = source.layers[number]
        row_R = torch.arange(layer.rows) % known.rows
        part_K = _spread(layer.parts, known.parts)
        pieces.append((known.first + row_R[:, None] * known.parts + part_K).flatten())
    return torch.cat(pieces)


def match_layers(source: TokenLayout, target: TokenLayout) -> list[int]:
    """Return for each layer of the target the number of the layer of the source that stands for it.

    That is the layer of the same name and shapes. Where there is none, it is the one at the same relative place among
    the layers of the same kind and kernel, or else of the same kind, or else among all.
    """
    likenesses: tuple[Callable[[Layer], Hashable], ...] = (
        lambda layer: (layer.kind, layer.entries[0].shape[2:]),
        lambda layer: layer.kind,
        lambda _: None,
    )
    same = {_describe(layer): number for number, layer in enumerate(source.layers)}
    matched = []
    for place, layer in enumerate(target.layers):
        if _describe(layer) in same:
            matched.append(same[_describe(layer)])
            continue
        like = next(like for like in likenesses if like(layer) in set(map(like, source.layers)))
        known = [number for number, other in enumerate(source.layers) if like(other) == like(layer)]
        wanted = [number for number, other in enumerate(target.layers) if like(other) == like(layer)]
        # One layer of its sort has no place among them: its depth in the network tells.
        depth = place / max(len(target.layers) - 1, 1)
        matched.append(
            known[int(_spread(len(wanted), len(known))[wanted.index(place)])]
            if len(wanted) > 1
            else known[round(depth * (len(known) - 1))]
        )
    return matched


def fit_weights(source: TokenLayout, target: TokenLayout, flat_BP: Tensor) -> Tensor:
    """Put the tokens of models of one layout in the places of another; the flat weights that these are, (B, P)."""
    if source.digest == target.digest:
        return flat_BP
    return target.detokenize(source.tokenize(flat_BP)[:, map_tokens(source, target)])


def needs_head(source: TokenLayout, target: TokenLayout, classes: int) -> bool:
    """Tell whether the target's last layer, its head, has a row a class and what stands for it has not."""
    rows = source.layers[match_layers(source, target)[-1]].rows
    return target.layers[-1].rows == classes != rows


def cut_head(layout: TokenLayout) -> TokenLayout:
    """Return the layout of all but the last layer."""
    names = {entry.name for entry in layout.layers[-1].entries}
    body = tuple(entry for entry in layout.tensors if entry.name not in names)
    return TokenLayout(token_dim=layout.token_dim, tensors=body, running_statistics=layout.running_statistics)


def find_columns(layout: TokenLayout, part: TokenLayout) -> Tensor:
    """Return where the weights of some of a layout's tensors are in its flat vectors."""
    pieces = [torch.arange(entry.size) + layout.offsets[entry.name] for entry in part.tensors]
    return torch.cat(pieces)


def _describe(layer: Layer) -> Hashable:
    return layer.name, tuple((entry.name, entry.shape, entry.transposed) for entry in layer.entries)


def _spread(count: int, known: int) -> Tensor:
    """Return `count` numbers from 0 to `known` - 1, evenly; 0 for one."""
    return torch.linspace(0, known - 1, count).round().long()
