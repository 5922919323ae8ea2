"""From flat weights to networks that run: a model's weights, and what its zoo shares besides them.

Suffixes: P weights of a model.
"""

from torch import Tensor, nn

from mzsane.errors import ConfigError
from mzsane.layout.buffers import copy_buffers
from mzsane.layout.token_layout import TokenLayout


def fits_network(layout: TokenLayout, network: nn.Module) -> bool:
    """Tell whether a layout is that of a network's models."""
    buffers = find_buffers(layout, network)
    own = TokenLayout.from_network(network, layout.token_dim, layout.running_statistics, buffers)
    return own.digest == layout.digest


def find_buffers(layout: TokenLayout, network: nn.Module) -> set[str]:
    """Return the buffers of a network that are weights in a layout."""
    return {name for name, _ in network.named_buffers(remove_duplicate=False)} & layout.names


def read_weights(layout: TokenLayout, network: nn.Module) -> Tensor:
    """Return a network's weights as a flat vector, (P)."""
    state = network.state_dict()
    return layout.flatten({name: state[name] for name in layout.names})


def name_weights(layout: TokenLayout, flat_P: Tensor) -> dict[str, Tensor]:
    """Cut flat vectors, (P) or (B, P), into named weights as networks use them: buffers in their zoo's range.

    Raises:
        ConfigError: the vectors have another length than the layout.
    """
    named = layout.unflatten(flat_P)
    return named | {name: named[name].clamp(*limits) for name, limits in layout.ranges.items()}


def load_weights(layout: TokenLayout, network: nn.Module, flat_P: Tensor) -> None:
    """Give a network a model's weights, and the buffers that all models of its zoo have.

    Raises:
        ConfigError: the weights have another length than the layout, or as `share_buffers`.
    """
    share_buffers(layout, network)
    network.load_state_dict(name_weights(layout, flat_P), strict=False)


def share_buffers(layout: TokenLayout, network: nn.Module) -> None:
    """Give a network the buffers that all models of the zoo have.

    Raises:
        ConfigError: models of the zoo differ in what is not among their weights.
    """
    if layout.lost:
        raise ConfigError(
            f"the models of this zoo cannot be run: they differ in buffers that are no weights "
            f"({', '.join(layout.lost)}), which tokens do not hold; work these into the weights, or leave the zoo out"
        )
    copy_buffers(network, {stored.name: stored.to_tensor() for stored in layout.shared})
