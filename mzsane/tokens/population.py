"""The networks that the models of a zoo are: each with its own activation, and with the buffers that all have.

Buffers (moving averages, spectral norm's vectors, constants, masks) are sorted by what the models of the zoo have in
them: what all share is kept once, real numbers that differ become weights, and what differs besides is lost. What
differs without a difference to any output, such as a counter, is none of these.

Suffixes: N checkpoints and images, C channels, H height, W width, K classes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import polars as pl
import torch
from torch import Tensor, nn

from mzsane.config import AnyImagesConfig, NetworkConfig
from mzsane.errors import ConfigError
from mzsane.layout.buffers import StoredBuffer, list_buffers, same_values
from mzsane.layout.running import find_buffers, share_buffers
from mzsane.layout.token_layout import Statistics, TokenLayout
from mzsane.networks.build import build_network, choose_network
from mzsane.problems.images.dataset import load_images
from mzsane.store.artifacts import Artifact
from mzsane.symmetry.derive.trace import Symmetry, derive_groups
from mzsane.symmetry.groups import intersect_groups
from mzsane.tokens.subject import read_activations
from mzsane.zoo.shards import read_shard

_TRIED = 8  # values of a buffer by which it is found out whether it matters
_IMAGES = 128  # that this is tried on


class Values(TypedDict):
    """What the models of a shard have in a buffer.

    Attributes:
        rows: hashes of the first different values, and the first row with each.
        limits: the least and the largest finite number, where there are any.
    """

    rows: dict[str, int]
    limits: tuple[float, float] | None


@dataclass(frozen=True)
class BufferJob:
    """A shard of a zoo and the buffers that are looked at."""

    zoo: Artifact
    shard: str
    names: tuple[str, ...]


def list_values(job: BufferJob) -> bytes:
    """Return what is in each buffer of a shard (`Values`), by name, as JSON."""
    found: dict[str, Values] = {}
    tensors = read_shard(job.zoo, job.shard)
    for name in job.names:
        if name not in tensors:
            continue
        rows: dict[str, int] = {}
        for row, value in enumerate(tensors[name]):
            stored = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            rows.setdefault(hashlib.sha256(stored).hexdigest(), row)
            if len(rows) == _TRIED:
                break
        limits = None
        if tensors[name].is_floating_point():
            finite = tensors[name][tensors[name].isfinite()]
            limits = (float(finite.min()), float(finite.max())) if len(finite) else None
        found[name] = {"rows": rows, "limits": limits}
    return json.dumps(found).encode()


class Population:
    """The networks of a zoo.

    Args:
        network: the architecture.
        images: what the models were trained on.
        index: the rows of the zoo.

    Attributes:
        activations: of each model what its recipe says.
        buffers: names of buffers that have to be looked at.
    """

    def __init__(self, network: NetworkConfig, images: AnyImagesConfig, index: pl.DataFrame) -> None:
        self.config, self.dataset, self._index = network, load_images(images), index
        self.activations: dict[str, str | None] = dict(zip(index["model"], read_activations(index), strict=True))
        chosen = {told: choose_network(network, told) for told in dict.fromkeys(self.activations.values())}
        self.unknown = [str(told) for told, known in chosen.items() if known is None]
        self._configs = {told: known for told, known in chosen.items() if known is not None}
        self.network = self.build(network)
        self.buffers = tuple(list_buffers(self.network))

    def build(self, config: NetworkConfig) -> nn.Module:
        """Build a network for the images."""
        return build_network(config, self.dataset.channels, self.dataset.classes, self.dataset.size).eval()

    def check_flags(self, signs: bool, scales: bool) -> None:
        """Check that signs and scales can be made canonical, if that is wanted.

        Raises:
            ConfigError: models have an activation that is not known.
        """
        if (signs or scales) and self.unknown:
            raise ConfigError(
                f"tokens.{'signs' if signs else 'scales'} needs the activation of every model, and this zoo has models "
                f"with {', '.join(self.unknown)}: leave it out, or leave these models out"
            )

    def find_network(self, layout: TokenLayout, model: str) -> nn.Module | None:
        """Return a network that a model's weights can be loaded into; None if there is none.

        That is where its activation is not known, or what models of its zoo differ in is lost.
        """
        config = self._configs.get(self.activations[model])
        if config is None or layout.lost:
            return None
        network = self.build(config)
        share_buffers(layout, network)
        return network

    def lay_out(
        self, token_dim: int, statistics: Statistics, source: Artifact, values: Mapping[str, Mapping[str, Values]]
    ) -> TokenLayout:
        """Return the layout of the models.

        Args:
            token_dim: width of a token.
            statistics: what becomes of running means and variances.
            source: the zoo.
            values: by shard, of the buffers that have to be looked at.
        """
        laid_out = find_buffers(TokenLayout.from_network(self.network, token_dim, statistics), self.network)
        shared, ranges, lost = [], dict[str, tuple[float, float]](), []
        for name, fresh in list_buffers(self.network).items():
            known = {shard: of[name] for shard, of in values.items() if name in of}
            places = {digest: (shard, row) for shard, found in known.items() for digest, row in found["rows"].items()}
            if not places or name in laid_out:
                continue
            if len(places) == 1:
                ((shard, row),) = places.values()
                value = read_shard(source, shard)[name][row]
                if not same_values(value, fresh.to(value.dtype)):
                    shared.append(StoredBuffer.from_tensor(name, value))
            elif self._matters(source, name, list(places.values())[:_TRIED]):
                limits = [found["limits"] for found in known.values() if found["limits"] is not None]
                if limits:
                    ranges[name] = (min(low for low, _ in limits), max(high for _, high in limits))
                else:
                    lost.append(f"{name}, {str(fresh.dtype).removeprefix('torch.')}")
        layout = TokenLayout.from_network(self.network, token_dim, statistics, ranges)
        return layout.model_copy(update={"shared": tuple(shared), "lost": tuple(lost), "ranges": ranges})

    def derive_symmetry(self, layout: TokenLayout) -> Symmetry:
        """Return the permutation groups that all networks of the zoo have; signs and scales where all allow them."""
        if layout.lost:
            return Symmetry((), (f"models differ in {'; '.join(layout.lost)}, so no unit moves",))
        example_NCHW = self.dataset.splits["train"].images_NCHW[:1]
        found = []
        for config in dict.fromkeys(self._configs.values()) or [self.config]:
            network = self.build(config)
            share_buffers(layout, network)
            found.append(derive_groups(network, example_NCHW, find_buffers(layout, network)))
        notes = tuple(dict.fromkeys(note for symmetry in found for note in symmetry.notes))
        return Symmetry(intersect_groups([symmetry.groups for symmetry in found]), notes)

    @torch.no_grad()
    def _matters(self, source: Artifact, name: str, places: Sequence[tuple[str, int]]) -> bool:
        """Tell whether outputs of some models change when they get the first one's values of a buffer."""
        images_NCHW = self.dataset.splits["train"].images_NCHW[:_IMAGES]
        first: Tensor | None = None
        for shard, row in places:
            state = {key: value[row] for key, value in read_shard(source, shard).items()}
            if first is None:
                first = state[name]
                continue
            model = self._index.filter(shard=shard, row=row)["model"][0]
            config = self._configs.get(self.activations[model])
            if config is None:
                continue
            network = self.build(config)
            network.load_state_dict(state, strict=False)
            own_NK = network(images_NCHW)
            network.load_state_dict({name: first}, strict=False)
            if not same_values(own_NK, network(images_NCHW)):
                return True
        return False
