"""Names that users may add to: samplers and architectures of ours, of installed packages, and by `package.module:name`.

A package offers one by an entry point of the group `mzsane.samplers` or `mzsane.architectures`; a module that can be
imported needs none. Nothing of a plug-in is imported before it is used.
"""

import importlib
import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from mzsane.errors import ConfigError

SAMPLERS = {
    "joint": "mzsane.sampling.samplers.kde:sample_joint",
    "shared": "mzsane.sampling.samplers.kde:sample_shared",
    "token": "mzsane.sampling.samplers.kde:sample_token",
    "individual": "mzsane.sampling.samplers.kde:sample_individual",
    "neighbourhood": "mzsane.sampling.samplers.neighbourhood:sample_neighbourhood",
    "interpolation": "mzsane.sampling.samplers.interpolation:sample_interpolation",
    "gaussian": "mzsane.sampling.samplers.gaussian:sample_gaussian",
    "flow": "mzsane.sampling.samplers.flow:sample_flow",
}
ARCHITECTURES = ("cnn-s", "cnn-l", "mlp", "resnet18", "vit")  # made by `networks.build`
_OURS: dict[str, tuple[str, ...]] = {"samplers": tuple(SAMPLERS), "architectures": ARCHITECTURES}
_ADDRESS = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
_LONGEST = 200  # characters


def resolve_name(group: str, name: str) -> str:
    """Return a name of ours as it is, and what an installed package offers by its address, `package.module:name`.

    Args:
        group: `samplers` or `architectures`.
        name: one of ours, an entry point's, or an address.

    Raises:
        ValueError: it is none of these, or two packages offer it.
    """
    if name in _OURS[group] or (len(name) <= _LONGEST and _ADDRESS.match(name)):
        return name
    offered = _list_offered(group)
    addresses = offered.get(name, ())
    if len(addresses) > 1:
        raise ValueError(
            f"{name!r} is offered by several packages ({', '.join(addresses)}): give one of these addresses"
        )
    if addresses:
        return addresses[0]
    known = [*_OURS[group], *offered]
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"no {group[:-1]} {name[:60]!r}: {hint}There are {', '.join(known)}, and package.module:name")


def describe_names(group: str) -> Callable[[dict[str, Any]], None]:
    """Return what makes a form offer the names of ours, and take others."""

    def describe(schema: dict[str, Any]) -> None:
        schema.pop("type", None)
        others = {"type": "string", "title": "of a plug-in", "pattern": _ADDRESS.pattern}
        schema["anyOf"] = [{"type": "string", "enum": list(_OURS[group]), "title": "one of ours"}, others]

    return describe


def load_address(address: str, what: str) -> Any:
    """Import what an address names.

    Args:
        address: `package.module:name`.
        what: what it is to be, for error texts.

    Raises:
        ConfigError: it cannot be imported, or cannot be called.
    """
    module, _, name = address.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module's code raises
        raise ConfigError(f"{what} {address!r} cannot be imported: {error}") from None
    if not callable(found):
        raise ConfigError(f"{what} {address!r} is a {type(found).__name__}, which cannot be called")
    return found


@lru_cache
def _list_offered(group: str) -> dict[str, tuple[str, ...]]:
    """Return what installed packages offer: addresses by name."""
    offered: dict[str, tuple[str, ...]] = {}
    for point in entry_points(group=f"mzsane.{group}"):
        offered[point.name] = (*offered.get(point.name, ()), point.value)
    return {name: tuple(dict.fromkeys(values)) for name, values in offered.items()}
