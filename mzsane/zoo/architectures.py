"""The networks that zoos are made of, named as in the published zoos."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mzsane.config import NetworkConfig

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}
_INITIALISERS: dict[str, Callable[..., Tensor]] = {
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
}
_INITIAL_BIAS = 0.01


class Cnn(nn.Module):
    """A chain of layers under the name that the published zoos give it, `module_list`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.module_list = nn.Sequential(*layers)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits, shape (N, classes)."""
        logits_NK: Tensor = self.module_list(images_NCHW)
        return logits_NK


def build_network(config: NetworkConfig, channels: int, classes: int) -> Cnn:
    """Build a network with undefined weights; no global random state is touched.

    `cnn-s` takes 28x28 images and has 2,464 weights at one channel and ten classes ("Model Zoos", arXiv 2209.14764).
    """
    act = _ACTIVATIONS[config.activation]
    with torch.device("meta"):
        network = Cnn(
            nn.Conv2d(channels, 8, 5),
            nn.MaxPool2d(2),
            act(),
            nn.Conv2d(8, 6, 5),
            nn.MaxPool2d(2),
            act(),
            nn.Conv2d(6, 4, 2),
            act(),
            nn.Flatten(),
            nn.Linear(36, 20),
            act(),
            nn.Linear(20, classes),
        )
    return network.to_empty(device="cpu")


def initialise_network(network: nn.Module, initialisation: str, generator: torch.Generator) -> None:
    """Draw a network's initial weights in place from an explicit generator; biases become 0.01."""
    initialise = _INITIALISERS[initialisation]
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                initialise(parameter, generator=generator)
            else:
                parameter.fill_(_INITIAL_BIAS)
