"""The state dicts inside what a checkpoint file holds: wrappers, lists and prefixes are seen through."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mzsane.errors import ConfigError

# Keys that weights are kept under, the most explicit first; averaged weights come after the network's own.
_WRAPPERS = (
    "model_state_dict",
    "state_dict",
    "model_state",
    "net_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "parameters",
    "checkpoint",
    "models",
    "state_dicts",
    "checkpoints",
    "model_ema",
    "ema",
)
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_DEPTH = 4


@dataclass(frozen=True)
class State:
    """The named tensors of one network, and its epoch if the file says it."""

    tensors: dict[str, Tensor]
    epoch: int | None = None


def find_states(loaded: Any) -> list[State]:
    """Return the state dicts in a loaded file: one, or as many as its list has.

    Raises:
        ConfigError: there are none.
    """
    states = _search(loaded, None, 0)
    if not states:
        what = f"keys {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ConfigError(f"no tensors: the file holds {what[:120]}")
    return [State(_strip(state.tensors), state.epoch) for state in states]


def _search(value: Any, epoch: int | None, depth: int) -> list[State]:
    if depth > _DEPTH:
        return []
    if isinstance(value, list | tuple):
        found = [_search(item, None, depth + 1) for item in value]
        # A list with something else in it is no list of state dicts: an epoch's number would then be wrong.
        return [states[0] for states in found] if found and all(len(states) == 1 for states in found) else []
    if not isinstance(value, Mapping):
        return []
    said = value.get("epoch")
    epoch = said if isinstance(said, int) and not isinstance(said, bool) and said >= 0 else epoch
    for key in _WRAPPERS:
        if isinstance(value.get(key), Mapping | list | tuple) and (states := _search(value[key], epoch, depth + 1)):
            return states
    tensors = {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}
    return [State(tensors, epoch)] if tensors else []


def _strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that all names share."""
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
