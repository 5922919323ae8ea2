"""What the models of a TOKENS artifact were trained for, as far as it is known."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from mzsane.config import AnyImagesConfig, NetworkConfig
from mzsane.errors import StoreError
from mzsane.layout.token_layout import TokenLayout
from mzsane.store.artifacts import Artifact, ArtifactRef
from mzsane.tokens.store import TokenTable
from mzsane.zoo.subject import read_subject


@dataclass(frozen=True)
class Origin:
    """The architecture of a zoo's models and the images that they were trained on."""

    network: NetworkConfig
    images: AnyImagesConfig


def find_subject(tokens: Artifact) -> Origin | None:
    """Find what the models of a TOKENS artifact are; None if the zoo is not there or does not tell."""
    if "zoo" not in tokens.manifest.inputs:
        return None
    try:
        zoo = tokens.store.find(ArtifactRef.parse(tokens.manifest.inputs["zoo"]))
    except StoreError:
        return None
    if zoo is None:
        return None
    network, images = read_subject(zoo)
    return None if network is None or images is None else Origin(network, images)


def read_activations(index: pl.DataFrame, rows: Sequence[int] | None = None) -> list[str | None]:
    """Return the activation of each checkpoint of an index, or of some rows: what its recipe says, else None.

    It is in the words of whoever wrote the recipe (see `choose_network`).
    """
    if "recipe" not in index.columns:
        return [None] * (len(index) if rows is None else len(rows))
    recipes = index["recipe"] if rows is None else index["recipe"][list(rows)]
    told = {text: json.loads(text).get("activation") for text in recipes.drop_nulls().unique()}
    return [told.get(text) for text in recipes]


def name_activations(tables: Mapping[int, TokenTable], names: Sequence[str], layout: TokenLayout) -> list[str | None]:
    """Return the activations of training models that are called `number of the table/model`.

    None for those of another layout: their weights stand for those of another network.
    """
    told = {
        f"{number}/{model}": activation if table.layout.digest == layout.digest else None
        for number, table in tables.items()
        for model, activation in zip(table.index["model"], read_activations(table.index), strict=True)
    }
    return [told[name] for name in names]
