"""The populations of a SAMPLES artifact, which `mzsane.evaluation.selection` describes."""

import polars as pl
from torch import Tensor

from mzsane.layout.token_layout import TokenLayout
from mzsane.store.artifacts import Artifact
from mzsane.store.serialisation import load_tensors


def read_populations(samples: Artifact) -> tuple[dict[str, Tensor], pl.DataFrame, TokenLayout]:
    """Read a SAMPLES artifact: flat weights by population, the records, and the layout."""
    populations, notes = load_tensors(samples.path("populations.safetensors").read_bytes())
    records = pl.read_parquet(samples.path("samples.parquet"))
    return populations, records, TokenLayout.model_validate(notes["layout"])
