"""The checkpoints of a pre-training: the whole state of its loop, in the store, the newest ones and the best."""

from functools import partial
from typing import Any

import torch

from mzsane.errors import CorruptArtifactError
from mzsane.store.partial import Partial
from mzsane.store.serialisation import load_torch

_KEPT = 2
_BEST = "best.pt"


class Checkpoints:
    """The checkpoints of one piece of work; each is seen whole or not at all."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after a step, and remove all but the newest."""
        self.partial.write(f"step-{step:08d}.pt", partial(torch.save, state))
        for old in self._list()[_KEPT:]:
            self.partial.remove(old)

    def load(self) -> dict[str, Any] | None:
        """Read the newest state that can be read, or None; a damaged one costs only time."""
        for name in self._list():
            try:
                with self.partial.fetch(name) as path:
                    state: dict[str, Any] = load_torch(path)
            except CorruptArtifactError:
                continue
            return state
        return None

    def save_best(self, weights: dict[str, torch.Tensor]) -> None:
        """Keep the weights that are the best so far."""
        self.partial.write(_BEST, partial(torch.save, weights))

    def load_best(self) -> dict[str, torch.Tensor]:
        """Read the best weights.

        Raises:
            CorruptArtifactError: they were damaged.
        """
        with self.partial.fetch(_BEST) as path:
            weights: dict[str, torch.Tensor] = load_torch(path)
        return weights

    def _list(self) -> list[str]:
        return sorted((name for name in self.partial.names() if name != _BEST), reverse=True)
