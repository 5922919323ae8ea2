"""What networks of a zoo do on images: whether reconstructed weights are still those networks.

Suffixes: B models, P weights of a model, N images, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mzsane.errors import ConfigError
from mzsane.layout.running import fits_network, load_weights, share_buffers
from mzsane.networks.build import build_network, choose_network
from mzsane.networks.conditioning import condition_statistics
from mzsane.problems.images.dataset import load_images
from mzsane.tokens.store import TokenTable
from mzsane.tokens.subject import find_subject


class Judge:
    """Runs models of a zoo on its images.

    Args:
        table: the zoo's tokens.
        split: which images: val or test.
        images: how many of them, and of the training images for running statistics; all if there are fewer.
        device: where the models are.

    Raises:
        ConfigError: what the models are is not known, their images cannot be loaded, their tokens are of another
            network, or are not all that the models need.
    """

    def __init__(self, table: TokenTable, split: str, images: int, device: torch.device | str = "cpu") -> None:
        origin = find_subject(table.artifact)
        if origin is None:
            raise ConfigError("the network and the images of its zoo are not known")
        dataset = load_images(origin.images)
        self.layout, self.device = table.layout, device
        self.images_NCHW = dataset.splits[split].images_NCHW[:images].to(device)
        self.labels_N = dataset.splits[split].labels_N[:images].to(device)
        self.unlabelled_NCHW = dataset.splits["train"].images_NCHW[:images].to(device)
        self.config = origin.network
        self.sizes = (dataset.channels, dataset.classes, dataset.size)
        network = self._build(None)
        share_buffers(self.layout, network)
        if not fits_network(self.layout, network):
            raise ConfigError(f"the tokens are not those of the zoo's network, {origin.network.architecture}")

    def check_activations(self, activations: list[str | None]) -> list[str | None]:
        """Return what recipes say of the activations of some models.

        Raises:
            ConfigError: one is none that is known.
        """
        for activation in activations:
            if choose_network(self.config, activation) is None:
                raise ConfigError(f"models have the activation {activation}, which is not known")
        return activations

    @torch.no_grad()
    def classify(self, flat_BP: Tensor, activations: Sequence[str | None]) -> Tensor:
        """Return the classes that models predict for the images, (B, N).

        Args:
            flat_BP: the models.
            activations: what the recipe of each says of its activation (see `check_activations`), else None.
        """
        classes_BN = torch.empty(len(flat_BP), len(self.labels_N), dtype=torch.int64, device=self.device)
        for place, (flat_P, activation) in enumerate(zip(flat_BP, activations, strict=True)):
            network = self._build(activation)
            load_weights(self.layout, network, flat_P)
            if self.layout.running_statistics == "conditioned":
                condition_statistics(network, self.unlabelled_NCHW)
            classes_BN[place] = network(self.images_NCHW).argmax(dim=1)
        return classes_BN

    def score(self, classes_BN: Tensor) -> float:
        """Return the mean accuracy of predicted classes, 0 to 1."""
        return float((classes_BN == self.labels_N).double().mean())

    def _build(self, activation: str | None) -> nn.Module:
        config = choose_network(self.config, activation)
        assert config is not None
        return build_network(config, *self.sizes).to(self.device).eval()
