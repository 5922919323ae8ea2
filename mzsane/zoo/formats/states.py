"""The state dicts inside what a checkpoint file holds: containers are seen through, and several networks are named.

A file is searched for dicts of named tensors. Containers with well-known names come first; beside them, and under other
names, nothing that could be a network is left out without a word: then a setting has to say which one is meant.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.networks.wrappers import strip_wrappers
from mzsane.zoo.formats.pickle_limits import QUANTISED

# Keys that weights are kept under, the most explicit first; averaged weights come after the network's own.
_WRAPPERS = (
    *("model_state_dict", "state_dict", "model_state", "net_state_dict", "model", "net", "network", "module"),
    *("weights", "params", "parameters", "checkpoint", "models", "state_dicts", "checkpoints"),
)
_AVERAGED = re.compile(r"(^|[_.])(ema|swa|averaged?|shadow)([_.]|$)", re.IGNORECASE)
_OTHERS = re.compile(  # parts of a training that hold tensors and are no networks
    r"optim|sched|scaler|callback|loops$|hparam|hyper_par|rng|random|metric|criterion|loss|history|^amp$|masks?$|"
    r"^buffers$|batch_stats|config|args$|^cuda|grads?$|momentum",
    re.IGNORECASE,
)
_DEPTH = 5
_ITEMS = 100_000  # looked at in a file
_LARGEST_EPOCH = 10**9
_SHOWN = 6
_QUANTISED = re.compile(
    r"(^|[._])(_?packed_params|qweight|qzeros|scb|quant_map|quant_state|absmax|weight_scale|weight_scale_inv|"
    r"weight_zero_point)([._]|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Choice:
    """Which networks of a file are wanted.

    Attributes:
        key: where the weights are, as keys with dots between them; found by their names if None.
        lists: whether a list of networks is read.
    """

    key: str | None = None
    lists: bool = False


@dataclass(frozen=True)
class State:
    """The named tensors of one network, and its epoch if the file says it."""

    tensors: dict[str, Tensor]
    epoch: int | None = None


@dataclass(frozen=True)
class _Found:
    """A state dict, and the keys that lead to it."""

    path: tuple[str, ...]
    state: State
    place: int | None = None  # in a list


def find_states(loaded: Any, choice: Choice | None = None) -> list[State]:
    """Return the state dicts in a loaded file: one, or as many as its list has.

    Raises:
        ConfigError: there are none, or several of which none is chosen.
    """
    choice = choice or Choice()
    search = _Search()
    found = search.run(loaded, (), None, 0) if choice.key is None else search.follow(loaded, choice.key)
    if not found:
        raise ConfigError(f"no tensors: the file holds {_show(loaded)}")
    if len(found) > 1 and any(one.place is None for one in found):
        names = ", ".join(".".join(one.path) for one in found[:_SHOWN])[:160] + (", ..." if len(found) > _SHOWN else "")
        raise ConfigError(f"several networks: the file has {names}: set key to the one that is wanted")
    if len(found) > 1 and not choice.lists:
        raise ConfigError(
            f"several networks: the file holds a list of {len(found)}: set lists to epochs if they are one model's, "
            "or to models"
        )
    for one in found:
        _check(one.state.tensors)
    return [State(strip_wrappers(one.state.tensors), one.state.epoch) for one in found]


def is_plain(value: Tensor) -> bool:
    """Tell whether a tensor is numbers in memory."""
    return (
        value.layout == torch.strided
        and not value.is_quantized
        and not value.is_complex()
        and value.device.type == "cpu"
    )


class _Search:
    """Looks through what a file holds, each object once."""

    def __init__(self) -> None:
        self._items = 0
        self._open: set[int] = set()

    def run(self, value: Any, path: tuple[str, ...], epoch: int | None, depth: int) -> list[_Found]:
        """Return the state dicts in a value."""
        if depth > _DEPTH or not isinstance(value, Mapping | list | tuple) or id(value) in self._open:
            return []
        self._items += len(value)
        if self._items > _ITEMS:
            raise ConfigError(f"too large: the file holds more than {_ITEMS} objects, lists within lists included")
        self._open.add(id(value))
        try:
            if isinstance(value, Mapping):
                return self._search_dict(value, path, _read_epoch(value, epoch), depth)
            return self._search_list(value, path, depth)
        finally:
            self._open.discard(id(value))

    def follow(self, loaded: Any, key: str) -> list[_Found]:
        """Return the state dicts below keys with dots between them, or the tensors whose names begin so.

        Raises:
            ConfigError: there is no such key.
        """
        value, rest, epoch = loaded, key, None
        for _ in range(_DEPTH + 1):
            if isinstance(value, Mapping):
                epoch = _read_epoch(value, epoch)
            name, inner = _enter(value, rest)
            if name is None:
                break
            value, rest = inner, rest.removeprefix(name).removeprefix(".")
            if not rest:
                return self.run(value, (key,), epoch, 0)
        if isinstance(value, Mapping):
            named = {str(name): item for name, item in value.items() if isinstance(item, Tensor)}
            if below := {n.removeprefix(f"{rest}."): v for n, v in named.items() if n.startswith(f"{rest}.")}:
                return [_Found((key,), State(below, epoch))]
        raise ConfigError(f"no tensors: the file has no {key[:80]}, which key asks for; it holds {_show(value)}")

    def _search_list(self, value: Sequence[Any], path: tuple[str, ...], depth: int) -> list[_Found]:
        found = [self.run(item, (*path, str(place)), None, depth + 1) for place, item in enumerate(value)]
        # A list with something else in it is no list of state dicts: an epoch's number would then be wrong.
        if not found or any(len(states) != 1 for states in found):
            return []
        if len(found) == 1:
            return found[0]
        return [_Found(states[0].path, states[0].state, place) for place, states in enumerate(found)]

    def _search_dict(
        self, value: Mapping[Any, Any], path: tuple[str, ...], epoch: int | None, depth: int
    ) -> list[_Found]:
        named = {key: item for key, item in value.items() if isinstance(key, str)}
        tensors = {key: item for key, item in named.items() if isinstance(item, Tensor)}
        inner: dict[str, list[_Found]] = {}
        if "param_groups" not in named:
            for key, item in named.items():
                if found := self.run(item, (*path, key), epoch, depth + 1):
                    inner[key] = found
                elif isinstance(item, tuple | list) and _QUANTISED.search(key):
                    raise ConfigError(f"{QUANTISED} (seen in {key[:80]})")
        own = next((key for key in _WRAPPERS if key in inner), None)
        own = own or next((key for key in inner if _AVERAGED.search(key)), None)
        others = [key for key in inner if not _OTHERS.search(key) and not _AVERAGED.search(key) and key != own]
        others = [key for key in others if any(_looks_trained(one.state.tensors) for one in inner[key])]
        if own is not None and not others:
            return inner[own]
        if others:
            several = [one for key in [*([own] if own else []), *others] for one in inner[key]]
            if tensors and own is None:
                loose = ", ".join(list(tensors)[:3])[:80]
                names = ", ".join(".".join(one.path) for one in several[:_SHOWN])[:120]
                raise ConfigError(
                    f"several networks: the file has {names} and, beside them, the tensors {loose}: set key to the "
                    "part that is wanted"
                )
            return several if len(several) > 1 else [_Found(several[0].path, several[0].state, several[0].place)]
        return [_Found(path, State(tensors, epoch))] if tensors else []


def _enter(value: Any, rest: str) -> tuple[str | None, Any]:
    """Return the longest key that the rest of a path begins with, and what is there."""
    if isinstance(value, Mapping):
        keys = [key for key in value if isinstance(key, str | int) and f"{rest}.".startswith(f"{key}.")]
        if keys:
            key = max(keys, key=lambda name: len(str(name)))
            return str(key), value[key]
    elif isinstance(value, list | tuple):
        place = rest.partition(".")[0]
        if place.isdecimal() and len(place) < 9 and int(place) < len(value):
            return place, value[int(place)]
    return None, None


def _read_epoch(value: Mapping[Any, Any], epoch: int | None) -> int | None:
    said = value.get("epoch")
    if not isinstance(said, int) or isinstance(said, bool) or said < 0:
        return epoch
    if said > _LARGEST_EPOCH:
        raise ConfigError(f"no epoch: the file says {said}, and epochs are at most {_LARGEST_EPOCH}")
    return said


def _looks_trained(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.rpartition(".")[2] in ("weight", "kernel") or value.dim() > 1 for name, value in tensors.items())


def _check(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what is no set of weights although it has names.

    Raises:
        ConfigError: the values are quantised, sharded flat, or only single numbers.
    """
    for name, value in tensors.items():
        whole = value.dtype in (torch.int8, torch.uint8) and value.dim() > 1 and name.endswith("weight")
        if value.is_quantized or whole or _QUANTISED.search(name):
            raise ConfigError(f"{QUANTISED} (seen in {name[:80]})")
        if name.endswith(("_flat_param", "flat_param_0")):
            raise ConfigError("a part of FSDP's: its parameters lie flat: save a full state dict of the module")
    if all(value.dim() == 0 for value in tensors.values()):
        raise ConfigError(
            f"no tensors: only single numbers, {', '.join(list(tensors)[:3])[:80]}; no weights of a network"
        )


def _show(loaded: Any) -> str:
    if isinstance(loaded, Mapping):
        return f"keys {', '.join(str(key)[:40] for key in list(loaded)[:5])}"[:120]
    return type(loaded).__name__
