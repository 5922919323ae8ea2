"""What networks of a zoo do on images: whether reconstructed weights are still those networks.

Suffixes: B models, P weights of a model, N images, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mzsane.errors import ConfigError
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.origin import find_origin
from mzsane.tokens.store import TokenTable
from mzsane.zoo.architectures import build_network
from mzsane.zoo.conditioning import condition_statistics
from mzsane.zoo.images import load_images


class Judge:
    """Runs models of a zoo on its images.

    Args:
        table: the zoo's tokens.
        split: which images: val or test.
        images: how many of them, and of the training images for running statistics; all if there are fewer.
        device: where the models are.

    Raises:
        ConfigError: what the models are is not known, their images cannot be loaded, or their tokens are of another
            network.
    """

    def __init__(self, table: TokenTable, split: str, images: int, device: torch.device | str = "cpu") -> None:
        origin = find_origin(table.artifact)
        if origin is None:
            raise ConfigError("the network and the images of its zoo are not known")
        dataset = load_images(origin.images)
        self.layout, self.device = table.layout, device
        self.images_NCHW = dataset.splits[split].images_NCHW[:images].to(device)
        self.labels_N = dataset.splits[split].labels_N[:images].to(device)
        self.unlabelled_NCHW = dataset.splits["train"].images_NCHW[:images].to(device)
        self.config = origin.network
        self.sizes = (dataset.channels, dataset.classes, dataset.size)
        expected = TokenLayout.from_network(self._build(None), self.layout.token_dim, self.layout.running_statistics)
        if expected.digest != self.layout.digest:
            raise ConfigError(f"the tokens are not those of the zoo's network, {origin.network.architecture}")

    @torch.no_grad()
    def classify(self, flat_BP: Tensor, activations: Sequence[str | None]) -> Tensor:
        """Return the classes that models predict for the images, (B, N).

        Args:
            flat_BP: the models.
            activations: the activation of each, where the zoo's models differ in it, else None.
        """
        classes_BN = torch.empty(len(flat_BP), len(self.labels_N), dtype=torch.int64, device=self.device)
        for place, (flat_P, activation) in enumerate(zip(flat_BP, activations, strict=True)):
            network = self._build(activation)
            network.load_state_dict(self.layout.unflatten(flat_P), strict=False)
            if self.layout.running_statistics == "conditioned":
                condition_statistics(network, self.unlabelled_NCHW)
            classes_BN[place] = network(self.images_NCHW).argmax(dim=1)
        return classes_BN

    def score(self, classes_BN: Tensor) -> float:
        """Return the mean accuracy of predicted classes, 0 to 1."""
        return float((classes_BN == self.labels_N).double().mean())

    def _build(self, activation: str | None) -> nn.Module:
        config = self.config if activation is None else self.config.model_copy(update={"activation": activation})
        return build_network(config, *self.sizes).to(self.device).eval()


def read_activations(table: TokenTable, rows_B: Tensor) -> list[str | None]:
    """Return the activation of each model where it is a factor of the zoo, else None."""
    if "factor_activation" not in table.index.columns:
        return [None] * len(rows_B)
    return table.index["factor_activation"][rows_B.tolist()].to_list()
