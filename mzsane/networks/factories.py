"""Factories: networks that a user's own code makes, and how that code is known again.

Suffixes: N images, C channels, H height, W width, K classes.
"""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mzsane.errors import ConfigError
from mzsane.plugins import load_address
from mzsane.randomness import derive_seed, seed_globally

_PROBE_IMAGES = 3
_PROBE_NOISE = 0.05  # deviation, added to the weights: some start at 0, where much of a network is not seen
_DIGITS = {torch.float64: 5, torch.float32: 2}  # that every machine computes alike, at a scale of 1


def call_factory(address: str, channels: int, classes: int, size: int, seed: int) -> nn.Module:
    """Call `package.module:factory(channels=..., classes=...)`; what it draws at random comes from the seed.

    Lazy modules get their shapes from one image of `size` pixels.

    Raises:
        ConfigError: it cannot be imported, fails, or makes no module.
    """
    factory = load_address(address, "architecture")
    with seed_globally(seed):  # constructors draw from the global generators
        try:
            network = factory(channels=channels, classes=classes)
        except Exception as error:
            raise ConfigError(f"architecture {address!r} failed: {type(error).__name__}: {error}") from None
        if not isinstance(network, nn.Module):
            raise ConfigError(f"architecture {address!r} made a {type(network).__name__}, not a torch.nn.Module")
        if any(is_lazy(value) for value in (*network.parameters(), *network.buffers())):
            try:
                with torch.no_grad():
                    network.eval()(torch.zeros(2, channels, size, size))
                network.train()
            except Exception as error:
                raise ConfigError(
                    f"architecture {address!r} has lazy modules, which do not take images of {channels}x{size}x{size}: "
                    f"{say_error(error)}"
                ) from None
    for module in network.modules():  # such as old weight norms keep, and which cannot be copied
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()
    return network


def digest_factory(address: str, channels: int, classes: int, size: int) -> str:
    """Return what tells a factory's code from another: of what its networks are, start as, compute and learn.

    The same on every machine, as far as rounding goes: numbers are compared with five digits.

    Raises:
        ConfigError: as `call_factory`.
    """
    return _digest(load_address(address, "architecture"), address, channels, classes, size)


def say_error(error: Exception) -> str:
    """Return one line about an error of others' code."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines[0] else type(error).__name__


@lru_cache(maxsize=64)
def _digest(factory: Callable[..., Any], address: str, channels: int, classes: int, size: int) -> str:
    # Keyed by the function too: a module that is loaded again has other functions.
    shape = (channels, classes, size)
    found: list[Any] = [
        [name, list(value.shape), str(value.dtype), value.requires_grad]
        for name, value in list_state(call_factory(address, *shape, seed=0))
    ]
    for dtype in _DIGITS:
        try:
            once, again = (_observe(_make_probe(address, *shape).to(dtype), *shape, dtype) for _ in range(2))
        except Exception as error:  # some code knows float32 alone; what else is wrong is said by a trial of it
            found.append(type(error).__name__)
        else:
            found += [seen if seen == second else "random" for seen, second in zip(once, again, strict=True)]
            break
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def list_state(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Return a network's parameters and buffers by name."""
    return [*network.named_parameters(), *network.named_buffers()]


def _make_probe(address: str, channels: int, classes: int, size: int) -> nn.Module:
    """Return a network as its factory starts it, plus a little noise; noise alone where that is not the same again."""
    seed = derive_seed("factory", "start")
    network, again = (call_factory(address, channels, classes, size, seed) for _ in range(2))
    noise = torch.Generator().manual_seed(derive_seed("factory", "noise"))
    with torch.no_grad():
        for parameter, other in zip(network.parameters(), again.parameters(), strict=False):
            kept = 1.0 if torch.equal(parameter, other) else 0.0
            parameter.copy_(kept * parameter + _PROBE_NOISE * torch.randn(parameter.shape, generator=noise))
    return network


def _observe(network: nn.Module, channels: int, classes: int, size: int, dtype: torch.dtype) -> list[Any]:
    """Return rounded outputs in evaluation and training, norms of gradients, and what has become of the buffers."""
    generator = torch.Generator().manual_seed(derive_seed("factory", "images"))
    images_NCHW = torch.randn(_PROBE_IMAGES, channels, size, size, generator=generator).to(dtype)
    seen = []
    for train in (False, True):
        with seed_globally(derive_seed("factory", "call")):
            output = network.train(train)(images_NCHW)
        seen.append(_round(output, dtype))
    if isinstance(output, Tensor) and output.requires_grad:
        output.square().sum().backward()
    seen += [
        None if parameter.grad is None else _round(parameter.grad.norm(), dtype) for parameter in network.parameters()
    ]
    return seen + [_round(buffer.norm(), dtype) for buffer in network.buffers() if buffer.is_floating_point()]


def _round(value: Any, dtype: torch.dtype) -> Any:
    """Return the numbers in what a network returns, rounded relative to the largest."""
    if not isinstance(value, Tensor):
        return str(type(value))
    flat = value.detach().double().flatten()
    scale = float(flat.abs().max()) if len(flat) else 0.0
    if not 0 < scale < float("inf"):
        return [str(scale), list(value.shape)]
    digits = _DIGITS[dtype]
    return [f"{scale:.{digits - 1}e}", *[round(float(x) / scale, digits) + 0.0 for x in flat[:64]]]
