"""What networks of a zoo do on images: whether reconstructed weights are still those networks.

Suffixes: B models, P weights of a model, N images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.layout.running import fits_network, share_buffers
from mzsane.networks.build import build_network, choose_network
from mzsane.networks.run import ModelSet, run_models
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
        self.device = torch.device(device)
        self.images_NCHW = dataset.splits[split].images_NCHW[:images].to(device)
        self.labels_N = dataset.splits[split].labels_N[:images].to(device)
        self.unlabelled_NCHW = dataset.splits["train"].images_NCHW[:images].to(device)
        self._dataset = dataset
        self._models = ModelSet(origin.network, origin.images, table.layout, torch.empty(0, table.layout.weights))
        network = build_network(origin.network, dataset.channels, dataset.classes, dataset.size)
        share_buffers(table.layout, network)
        if not fits_network(table.layout, network):
            raise ConfigError(f"the tokens are not those of the zoo's network, {origin.network.architecture}")

    def check_activations(self, activations: list[str | None]) -> list[str | None]:
        """Return what recipes say of the activations of some models.

        Raises:
            ConfigError: one is none that is known.
        """
        for activation in activations:
            if choose_network(self._models.network, activation) is None:
                raise ConfigError(f"models have the activation {activation}, which is not known")
        return activations

    def classify(self, flat_BP: Tensor, activations: Sequence[str | None]) -> Tensor:
        """Return the classes that models predict for the images, (B, N).

        Args:
            flat_BP: the models.
            activations: what the recipe of each says of its activation (see `check_activations`), else None.
        """
        models = replace(self._models, flat_NP=flat_BP, activations=tuple(activations))
        logits_BNK = run_models(models, self._dataset, self.images_NCHW, self.device, self.unlabelled_NCHW)
        return logits_BNK.argmax(dim=2)

    def score(self, classes_BN: Tensor) -> float:
        """Return the mean accuracy of predicted classes, 0 to 1."""
        return float((classes_BN == self.labels_N).double().mean())
