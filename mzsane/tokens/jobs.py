"""What is done to one shard of a zoo, or one part of its tokens, in a process of its own.

Suffixes: N checkpoints, P weights of a model.
"""

import json
from dataclasses import dataclass
from functools import partial

import polars as pl
import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.layout.buffers import same_values
from mzsane.layout.token_layout import DTYPES, TokenLayout
from mzsane.store.artifacts import Artifact, ArtifactStore, Work
from mzsane.store.serialisation import save_tensors
from mzsane.symmetry.align.canonical import Matching, apply_matching, match_population
from mzsane.symmetry.groups import PermutationGroup
from mzsane.tokens.store import name_part, write_weights
from mzsane.zoo.shards import read_shard


@dataclass(frozen=True)
class ShardWeights:
    """The weights of one shard of a zoo as flat vectors.

    Attributes:
        zoo: the ZOO artifact.
        shard: name of the shard.
        layout: what its weights must be.
        dtype: type in which they are stored as tokens.
        buffers: names of tensors that are no weights.
    """

    zoo: Artifact
    shard: str
    layout: TokenLayout
    dtype: str
    buffers: frozenset[str]

    def load(self, dtype: str | None = None) -> Tensor:
        """Return the flat weights of the shard's checkpoints, (N, P).

        Raises:
            ConfigError: they do not fit the layout.
        """
        tensors = read_shard(self.zoo, self.shard)
        named = {name: value for name, value in tensors.items() if name not in self.buffers}
        # Where tied tensors differ, `find_untied` says it of the checkpoint: one does not stop the others.
        for entry in self.layout.tensors:
            named |= {other: named[entry.name] for other in entry.tied if entry.name in named and other in named}
        try:
            return self.layout.flatten(named).to(DTYPES[dtype or self.dtype])
        except ConfigError as error:
            raise ConfigError(
                f"{self.zoo.address}, shard {self.shard}: {error}; tokens need one architecture"
            ) from None

    def find_untied(self) -> list[str | None]:
        """Return for each checkpoint a tensor that differs from the one that it is tied to, or None."""
        tied = [(entry.name, other) for entry in self.layout.tensors for other in entry.tied]
        tensors = read_shard(self.zoo, self.shard)
        found: list[str | None] = [None] * len(next(iter(tensors.values())))
        for name, other in tied:
            for row, (one, two) in enumerate(zip(tensors[name], tensors[other], strict=True)):
                if not same_values(one, two):
                    found[row] = found[row] or f"{other} is tied to {name} in the zoo's network but differs"
        return found


@dataclass(frozen=True)
class AlignmentJob:
    """Models of one shard to align, by the rows of one epoch of each, and the place of what to align them with."""

    shard: ShardWeights
    rows: tuple[int, ...]
    groups: tuple[PermutationGroup, ...]
    reference: tuple[ShardWeights, int]
    signs: bool
    scales: bool


@dataclass(frozen=True)
class PartJob:
    """The rows of one part: their index, where they come from, and what brings each to canonical form."""

    work: Work
    store: ArtifactStore
    number: int
    index: pl.DataFrame
    pieces: tuple[tuple[ShardWeights, tuple[int, ...]], ...]
    groups: tuple[PermutationGroup, ...]
    matching: Matching | None


def scan_shard(shard: ShardWeights) -> bytes:
    """Return for each checkpoint why it cannot be used, or null, as JSON."""
    finite_N = shard.load("float32").isfinite().all(dim=1).tolist()
    fits_N = finite_N if shard.dtype == "float32" else shard.load().isfinite().all(dim=1).tolist()
    reasons = [
        "weights that are not finite" if not finite else None if fits else f"weights beyond the range of {shard.dtype}"
        for finite, fits in zip(finite_N, fits_N, strict=True)
    ]
    if any(entry.tied for entry in shard.layout.tensors):
        reasons = [reason or untied for reason, untied in zip(reasons, shard.find_untied(), strict=True)]
    return json.dumps(reasons).encode()


def align_models(job: AlignmentJob) -> bytes:
    """Return what brings the models to canonical form, as the bytes of safetensors."""
    flat_NP = job.shard.load()[list(job.rows)].float()
    layout, reference_P = job.shard.layout, _load_reference(job.reference)
    matching = match_population(layout, job.groups, flat_NP, reference_P, signs=job.signs, scales=job.scales)
    return save_tensors(matching.to_tensors())


def write_part(job: PartJob) -> bytes:
    """Write one part to the store; return its entry for the manifest, as JSON."""
    flat_NP = torch.cat([shard.load()[list(rows)] for shard, rows in job.pieces])
    if job.matching is not None:
        flat_NP = apply_matching(job.pieces[0][0].layout, job.groups, flat_NP, job.matching)
    entry = job.store.upload(job.work, name_part(job.number), partial(write_weights, job.index, flat_NP))
    return entry.model_dump_json().encode()


_reference: dict[tuple[str, str, int, str], Tensor] = {}  # the last one that this process has read


def _load_reference(place: tuple[ShardWeights, int]) -> Tensor:
    """Return the weights that all models are aligned with, (P,): read once a process, as they may be large to send."""
    shard, row = place
    key = shard.zoo.address, shard.shard, row, shard.layout.digest
    if key not in _reference:
        flat_P = shard.load("float32")[row].clone()
        _reference.clear()
        _reference[key] = flat_P
    return _reference[key]
