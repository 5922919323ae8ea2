"""From latents to models of a target: its layout, its positions, and a new head where its classes are others.

Suffixes: B models, P weights of a model, T tokens, L latent width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.config import ImagesConfig, NetworkConfig
from mzsane.config.zoo import OWN
from mzsane.layout.running import find_buffers
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network, start_network
from mzsane.networks.conditioning import has_statistics
from mzsane.problems.images.dataset import load_images
from mzsane.randomness import make_generator
from mzsane.store.artifacts import Artifact
from mzsane.tokens.transfer import needs_head
from mzsane.windows.windows import check_positions

INITIALISATION = "kaiming_uniform"


class Decoder:
    """A backbone that makes models of a target.

    Args:
        backbone: the BACKBONE artifact.
        network: the target's architecture.
        images: the target's images.
        known: layouts of models to start from; the target is laid out as one of them where its tensors are the same.
        seed: of new heads.
        device: where the backbone computes; what goes in and comes out is where it was.

    Attributes:
        device: where the backbone computes.
        layout: the target's layout.
        image_shape: channels, height and width of the target's images.
        mapped: whether models to start from are of another layout.
        new_head: whether the head, the last layer, is initialised anew, since models to start from have other classes.
        conditioned: whether running statistics are computed on unlabelled images of the target.
    """

    def __init__(
        self,
        backbone: Artifact,
        network: NetworkConfig,
        images: ImagesConfig,
        known: Sequence[TokenLayout],
        seed: int,
        device: torch.device = torch.device("cpu"),
    ) -> None:
        dataset = load_images(images)
        self.seed, self.device = seed, device
        self.model, self.config = load_backbone(backbone, device)
        self.latent_dim = self.config.latent_dim
        self.architecture, self.classes = network, dataset.classes
        self.network = build_network(network, dataset.channels, dataset.classes, dataset.size)
        self.image_shape = (dataset.channels, dataset.size, dataset.size)
        self.layout = lay_out_target(self.network, known, known[0])
        check_positions([self.layout], self.config.position_limits)
        self.mapped = any(layout.digest != self.layout.digest for layout in known)
        self.new_head = any(needs_head(layout, self.layout, dataset.classes) for layout in known)
        self.conditioned = self.layout.running_statistics == "conditioned" and has_statistics(self.network)

    def encode(self, flat_BP: Tensor, layout: TokenLayout | None = None) -> Tensor:
        """Return the latents of whole models of a layout, the target's if None: (B, T, L)."""
        return encode_models(self.model, layout or self.layout, flat_BP, self.config.window)

    def decode(self, latents_BTL: Tensor) -> Tensor:
        """Return the weights that latents of the target's tokens stand for, (B, P)."""
        return decode_models(self.model, self.layout, latents_BTL, self.config.window)

    def renew_heads(self, flat_BP: Tensor, *names: int | str) -> Tensor:
        """Give each model a freshly initialised head where the target's classes ask for one, (B, P).

        The names say what the models are: others get other heads.
        """
        if not self.new_head:
            return flat_BP
        head = self.layout.layers[-1]
        generator = make_generator(self.seed, "samples", "head", *names)
        flat_BP = flat_BP.clone()
        for flat_P in flat_BP:
            if self.architecture.is_factory:
                channels, _, size = self.image_shape
                fresh = start_network(self.architecture, channels, self.classes, size, OWN, generator)
            else:
                fresh = self.network
                initialise_network(self.network.get_submodule(head.name), INITIALISATION, generator)
            for entry in head.entries:
                offset = self.layout.offsets[entry.name]
                value = fresh.state_dict()[entry.name]
                flat_P[offset : offset + entry.size] = value.flatten()
        return flat_BP

    @property
    def body_P(self) -> Tensor:
        """Where weights are that are not of a new head, bool."""
        body_P = torch.ones(self.layout.weights, dtype=torch.bool)
        for entry in self.layout.layers[-1].entries if self.new_head else ():
            offset = self.layout.offsets[entry.name]
            body_P[offset : offset + entry.size] = False
        return body_P


def lay_out_target(network: nn.Module, known: Sequence[TokenLayout], like: TokenLayout) -> TokenLayout:
    """Lay out a target's network as one of the known layouts where its tensors are the same, else by itself.

    Args:
        network: the target's.
        known: layouts of models that there are.
        like: the layout whose width of a token and way with running statistics it has.
    """
    for layout in known:
        own = TokenLayout.from_network(network, like.token_dim, like.running_statistics, find_buffers(layout, network))
        if _list_shapes(layout) == _list_shapes(own):
            return layout
    return TokenLayout.from_network(network, like.token_dim, like.running_statistics)


def choose_initialisation(network: NetworkConfig) -> str:
    """Return how new networks of an architecture start."""
    return OWN if network.is_factory else INITIALISATION


def _list_shapes(layout: TokenLayout) -> set[tuple[str, tuple[int, ...]]]:
    return {(entry.name, entry.shape) for entry in layout.tensors}
