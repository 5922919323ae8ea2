"""The token width that suits a set of architectures."""

import math
from collections.abc import Sequence

from mzsane.errors import ConfigError
from mzsane.tokens.layout import TokenLayout

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
