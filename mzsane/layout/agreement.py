"""What several architectures agree on: a token width that suits all, or one layout."""

import math
from collections.abc import Iterable, Sequence

from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout

_NARROWEST, _WIDEST = 32, 512  # token widths that are tried


def choose_token_dim(layouts: Sequence[TokenLayout]) -> int:
    """Return the token width, from 32 to 512, at which a set of architectures has the least padding.

    Each architecture counts the same, whatever its size. Of equally good widths the widest is returned.

    Raises:
        ConfigError: there is no layout.
    """
    if not layouts:
        raise ConfigError("token_dim cannot be chosen without an architecture: give one")

    def count_places(width: int) -> float:
        shares = [
            sum(layer.rows * math.ceil(layer.row_length / width) * width for layer in layout.layers) / layout.weights
            for layout in layouts
        ]
        return sum(shares)

    return min(range(_WIDEST, _NARROWEST - 1, -1), key=count_places)


def check_same_layout(layouts: Iterable[TokenLayout], purpose: str) -> TokenLayout:
    """Return the layout that all of some models have.

    Raises:
        ConfigError: there is none, or they have different ones.
    """
    found = {layout.digest: layout for layout in layouts}
    if len(found) != 1:
        sizes = ", ".join(f"{layout.weights} weights in tokens of {layout.token_dim}" for layout in found.values())
        raise ConfigError(f"{purpose} needs models of one layout, not of {len(found)}: {sizes or 'none'}")
    return next(iter(found.values()))
