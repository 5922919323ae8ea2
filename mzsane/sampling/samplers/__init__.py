"""Samplers by name, ours and those of users, and how a user's code is known again."""

import hashlib
import json

import torch

from mzsane import plugins
from mzsane.errors import ConfigError
from mzsane.randomness import derive_seed
from mzsane.sampling.samplers.protocol import Anchors, Drawn, Sampler

SAMPLERS: dict[str, Sampler] = {
    name: plugins.load_address(address, "sampler") for name, address in plugins.SAMPLERS.items()
}
_SHAPES = ((4, 6, 5), (3, 2, 8))  # anchors, tokens, latent width that a user's sampler is looked at with
_BANDWIDTHS, _COUNT = (0.1, 1.0), 3
_DIGITS = 5


def find_sampler(name: str) -> Sampler:
    """Return a sampler by its name, or a user's by its address; what it draws is checked.

    Raises:
        ConfigError: it cannot be imported; when it is called: it fails, or does not return what a sampler does.
    """
    if name in SAMPLERS:
        return SAMPLERS[name]
    sampler: Sampler = plugins.load_address(name, "sampler")

    def sample(anchors: Anchors, bandwidth: float, count: int, generator: torch.Generator) -> Drawn:
        try:
            drawn = sampler(anchors, bandwidth, count, generator)
        except Exception as error:
            raise ConfigError(f"sampler {name!r} failed: {type(error).__name__}: {error}") from None
        shapes = (count, *anchors.latents_ATL.shape[1:]), (count, len(anchors.latents_ATL))
        if not isinstance(drawn, Drawn) or (drawn.latents_STL.shape, drawn.used_SA.shape) != shapes:
            raise ConfigError(
                f"sampler {name!r} must return a Drawn of latents {shapes[0]} and, of bool, which anchors were used "
                f"{shapes[1]}"
            )
        return drawn

    return sample


def digest_sampler(name: str) -> dict[str, str]:
    """Return what stands for a user's sampler in the name of work, by what it draws; nothing for one of ours.

    Raises:
        ConfigError: as `find_sampler`.
    """
    if name in SAMPLERS:
        return {}
    sampler, found = find_sampler(name), []
    for shape in _SHAPES:
        for bandwidth in _BANDWIDTHS:
            generator = torch.Generator().manual_seed(derive_seed("sampler", "draw"))
            latents_ATL = torch.randn(shape, generator=generator)
            drawn = sampler(Anchors(latents_ATL, torch.arange(shape[1]) // 2), bandwidth, _COUNT, generator)
            numbers = [float(f"{x:.{_DIGITS - 1}e}") for x in drawn.latents_STL.flatten().tolist()]
            found.append([numbers, drawn.used_SA.tolist()])
    return {"sampler_code": hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]}
