"""The weights that a layer computes with, where a checkpoint keeps what they are made of: masks, norms, directions.

Sources: `torch.nn.utils.prune` (weight_orig, weight_mask), `weight_norm` (weight_g, weight_v; Salimans and Kingma
2016) and `spectral_norm` (weight_orig, weight_u, weight_v; Miyato et al. 2018), both also as
`torch.nn.utils.parametrizations`.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mzsane.errors import ConfigError

_PARAMETRISED = re.compile(r"^(?P<module>.*?)parametrizations\.(?P<tensor>[^.]+)\.(?P<part>.+)$")
_OLD = re.compile(r"^(?P<module>(?:.*\.)?)(?P<tensor>[^.]+)_(?P<part>orig|mask|g)$")
_OBSERVERS = ("activation_post_process", "fake_quant", "observer_enabled")
_ADVICE = "save the state dict after torch.nn.utils.parametrize.remove_parametrizations"


def is_derived(names: Mapping[str, Tensor]) -> bool:
    """Tell whether some tensors are not weights but what weights are made of."""
    return any(_PARAMETRISED.match(name) for name in names) or bool(_find_old(names))


def compute_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the weights that the layers compute with, under their usual names.

    Raises:
        ConfigError: how the weights are made is not known.
    """
    if observer := next((name for name in tensors if any(word in name for word in _OBSERVERS)), None):
        raise ConfigError(
            f"quantised: {observer[:80]} belongs to training for quantisation: save the state dict of the network "
            "without its observers"
        )
    groups: dict[str, dict[str, Tensor]] = {}
    places: dict[str, str] = {}  # of a tensor -> the weight it makes
    for name, value in tensors.items():
        if match := _PARAMETRISED.match(name):
            weight, part = f"{match['module']}{match['tensor']}", match["part"]
            groups.setdefault(weight, {})[part] = value
            places[name] = weight
    for weight, parts in _find_old(tensors).items():
        if weight in groups:
            raise ConfigError(f"another form: {weight[:80]} is made in two ways; {_ADVICE}")
        groups[weight] = {part: tensors[name] for part, name in parts.items()}
        places |= dict.fromkeys(parts.values(), weight)
    made: dict[str, Tensor] = {}
    for name, value in tensors.items():
        weight = places.get(name, name)
        if weight in groups and weight not in made:
            made[weight] = _make(weight, groups[weight])
        elif weight not in groups:
            made[weight] = value
    return made


def _find_old(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """Return the parts of weights by name, where they stand beside each other: part -> name of its tensor."""
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        match = _OLD.match(name)
        if match is None:
            if name.endswith(".mask") and _alike(tensors, name, weight := f"{name.removesuffix('mask')}weight"):
                found[weight] = {"original": weight, "mask": name}
            continue
        weight, part = f"{match['module']}{match['tensor']}", match["part"]
        if part == "mask":
            first = f"{weight}_orig" if f"{weight}_orig" in tensors else weight
            if _alike(tensors, name, first):
                found[weight] = {"original": first, "mask": name}
        elif part == "orig" and f"{weight}_u" in tensors:
            found[weight] = {"original": name, "0._u": f"{weight}_u"}
            if f"{weight}_v" in tensors:
                found[weight]["0._v"] = f"{weight}_v"
        elif part == "g" and f"{weight}_v" in tensors and _fits_norm(tensors[name], tensors[f"{weight}_v"]):
            found[weight] = {"original0": name, "original1": f"{weight}_v"}
    return found


def _alike(tensors: Mapping[str, Tensor], name: str, other: str) -> bool:
    return other in tensors and tensors[name].shape == tensors[other].shape


def _fits_norm(size: Tensor, direction: Tensor) -> bool:
    """Tell whether one tensor can hold the norms of the other along all of its dimensions but at most one."""
    return size.dim() == 0 or (
        size.dim() == direction.dim()
        and sum(length != 1 for length in size.shape) <= 1
        and all(length in (1, full) for length, full in zip(size.shape, direction.shape, strict=True))
    )


def _make(weight: str, parts: Mapping[str, Tensor]) -> Tensor:
    """Return a weight from what it is made of."""
    names = parts.keys()
    if names == {"original", "mask"}:
        mask = parts["mask"]
        if not ((mask == 0) | (mask == 1)).all():
            raise ConfigError(f"another form: the mask of {weight[:80]} is not only zeros and ones; {_ADVICE}")
        return parts["original"] * mask.to(parts["original"].dtype)
    if names == {"original0", "original1"} and _fits_norm(parts["original0"], parts["original1"]):
        size, direction = parts["original0"], parts["original1"]
        along = [d for d in range(direction.dim()) if size.dim() == 0 or size.shape[d] == 1]
        norm: Tensor = torch.linalg.vector_norm(direction, dim=along, keepdim=True)
        return direction * (size / norm)
    if names == {"original", "0._u", "0._v"}:
        return _divide_by_norm(weight, parts["original"], parts["0._u"], parts["0._v"])
    rest = ", ".join(sorted(names))[:80]
    raise ConfigError(f"another form: {weight[:80]} is made of {rest} in a way that the file does not tell; {_ADVICE}")


def _divide_by_norm(weight: str, original: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return a weight over its spectral norm, as the stored singular vectors give it.

    Which dimension is that of the outputs is not stored: the one that the vectors fit.
    """
    candidates = []
    for dim in range(min(2, original.dim())):
        matrix = original.movedim(dim, 0).flatten(1) if original.dim() > 1 else original[:, None]
        if left.shape == matrix.shape[:1] and right.shape == matrix.shape[1:]:
            product = matrix @ right
            norm = left @ product
            error = float(torch.linalg.vector_norm(product / norm - left))
            candidates.append((error, dim, norm))
    if not candidates:
        raise ConfigError(f"another form: the vectors of {weight[:80]} do not fit it; {_ADVICE}")
    return original / min(candidates, key=lambda found: found[:2])[2]
