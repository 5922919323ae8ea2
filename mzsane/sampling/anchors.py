"""Anchors: the training models of a composition that a sampler starts from, and what choosing them looked at.

Suffixes: A anchors, P weights of a model, T tokens, L latent width, N images, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from mzsane.backbone.refinement import refine_latents
from mzsane.composition import TokenSlice, list_trained
from mzsane.config import AnyImagesConfig, FilesConfig, GlyphsConfig, ImagesConfig, SamplingConfig
from mzsane.errors import ConfigError
from mzsane.metrics import MetricSink
from mzsane.networks.behaviour import NetworkBehaviour
from mzsane.problems.images.noise import draw_noise_images
from mzsane.randomness import make_generator
from mzsane.sampling.decoding import Decoder
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.subject import find_subject, read_activations
from mzsane.tokens.transfer import fit_weights, map_tokens

_METRIC = "val_accuracy"
_BEHAVIOUR = 0.3  # weight of the behavioural loss in refinement, if the backbone has none
_NOISE_IMAGES = 500
_PRIOR_MODELS = 100  # training models whose latents stand for all where a sampler starts from no anchor


@dataclass(frozen=True)
class ChosenModels:
    """Models of a composition, each at the last checkpoint that the backbone was trained on.

    Attributes:
        names: slice/model.
        rows: of each its slice and its row in the slice's tokens.
        labelled: whether labels of the target were, or may have been, looked at to choose them.
    """

    names: list[str]
    rows: list[tuple[int, int]]
    labelled: bool


def choose_anchors(
    config: SamplingConfig,
    backbone: Artifact,
    slices: Sequence[TokenSlice],
    tables: Mapping[int, TokenTable],
    images: ImagesConfig,
    seed: int,
) -> ChosenModels:
    """Choose training models: at random, the best on their own zoo's validation images, or those that are given.

    The best are chosen by labels of the target if their zoo's images are the target's, or if it is not known what they
    are. What somebody chose the given ones by cannot be known, so that they count as chosen by labels.

    Args:
        config: how they are chosen, and how many; if none, those whose latents stand for all are drawn.
        backbone: the BACKBONE artifact.
        slices: the composition.
        tables: tokens by number of the slice.
        images: the target's.
        seed: of the draw.

    Raises:
        ConfigError: a model that is given was not trained on, or the zoo does not say how accurate its models are.
    """
    models = _list_models(backbone, tables)
    if config.anchor_choice == "given":
        chosen = [_find_given(models, slices, name) for name in config.anchor_models]
        labelled = True
    elif config.anchor_choice == "best":
        if models[_METRIC].null_count():
            raise ConfigError(
                f"sampling.anchor_choice best needs {_METRIC} of every model, which the zoos of the anchors do not all "
                "have: choose random"
            )
        order = models.with_row_index("at").sort(_METRIC, descending=True, maintain_order=True)["at"].to_list()
        chosen = sorted(order[: config.anchors])
        used = {models["slice"][at] for at in chosen}
        labelled = any(share_images(tables[number], images) for number in used)
    else:
        order = torch.randperm(len(models), generator=make_generator(seed, "samples", "anchors")).tolist()
        chosen = sorted(order[: config.anchors or _PRIOR_MODELS])
        labelled = False
    picked = models[chosen].select("slice", "model", "row").rows()
    return ChosenModels(
        [f"{number}/{model}" for number, model, _ in picked], [(number, row) for number, _, row in picked], labelled
    )


def resolve_given(config: SamplingConfig, slices: Sequence[TokenSlice]) -> list[str]:
    """Return the given anchors as slice/model: names of zoos are people's own and shape no result."""
    numbers = {item.part.zoo: number for number, item in enumerate(slices)}
    named = [name.partition("/") for name in config.anchor_models]
    return [f"{numbers.get(zoo, zoo)}/{model}" for zoo, _, model in named]


def load_anchors(chosen: ChosenModels, tables: Mapping[int, TokenTable], decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Return the weights and the latents of chosen models in the target's layout, (A, P) and (A, T, L).

    Models of another architecture lend their tokens and their latents to the target's places (`map_tokens`).
    """
    layout = decoder.layout
    flat_AP = torch.empty(len(chosen.rows), layout.weights)
    latents_ATL = torch.empty(len(chosen.rows), layout.length, decoder.latent_dim)
    for number, table in tables.items():
        places = [at for at, (own, _) in enumerate(chosen.rows) if own == number]
        if places:
            loaded_AP = table.load(torch.tensor([chosen.rows[at][1] for at in places]))
            flat_AP[places] = fit_weights(table.layout, layout, loaded_AP)
            latents_ATL[places] = decoder.encode(loaded_AP, table.layout)[:, map_tokens(table.layout, layout)]
    return flat_AP, latents_ATL


def refine_anchors(decoder: Decoder, flat_AP: Tensor, latents_ATL: Tensor, seed: int, sink: MetricSink) -> Tensor:
    """Return latents, (A, T, L), that decode to networks nearer to the anchors than the encoder's do.

    They are moved down the backbone's own loss (`refine_latents`), where networks look at noise in the place of images:
    no data is seen. What a backbone that was trained without the behavioural loss leaves out is given some weight.
    """
    config = decoder.config
    if not config.behaviour:
        config = config.model_copy(update={"behaviour": _BEHAVIOUR})
    noise_NCHW = draw_noise_images(_NOISE_IMAGES, decoder.image_shape, make_generator(seed, "samples", "noise images"))
    behaviour = NetworkBehaviour(
        decoder.network, decoder.layout, noise_NCHW, config.behaviour_images, config.behaviour_output
    )
    there = flat_AP.to(decoder.device), latents_ATL.to(decoder.device)
    refined_ATL = refine_latents(decoder.model, config, decoder.layout, *there, behaviour, seed=seed, sink=sink)
    return refined_ATL.to(latents_ATL.device)


def load_held_out(
    own: ArtifactRef | None, tables: Mapping[int, TokenTable], decoder: Decoder, store: ArtifactStore
) -> tuple[Tensor, list[str | None]]:
    """Return the test models of the target's own zoo, or of the anchors' zoos when it has none, at their last epoch.

    With them what their recipes say of their activations; nothing of those that are fitted to another architecture.
    """
    sources = [read_tokens(store.open(own))] if own is not None else list(tables.values())
    held_out, activations = [], list[str | None]()
    for table in sources:
        rows = table.pick_rows("test", last_epochs=1)
        held_out.append(fit_weights(table.layout, decoder.layout, table.load(rows)))
        alike = table.layout.digest == decoder.layout.digest
        activations += read_activations(table.index, rows.tolist()) if alike else [None] * len(rows)
    joined = torch.cat(held_out)
    return (joined if own is not None else decoder.renew_heads(joined, "originals")), activations


def _list_models(backbone: Artifact, tables: Mapping[int, TokenTable]) -> pl.DataFrame:
    """Return the models that the backbone was trained on: slice, model, row of the last checkpoint, its accuracy."""
    used = pl.read_parquet(backbone.path("composition.parquet"))
    frames = []
    for number, table in sorted(tables.items()):
        rows = list_trained(used, number, table).tolist()
        accuracy = table.index[_METRIC] if _METRIC in table.index.columns else pl.Series([None] * len(table.index))
        frame = pl.DataFrame(
            {
                "slice": [number] * len(rows),
                "model": table.index["model"][rows],
                "row": rows,
                _METRIC: accuracy[rows].cast(pl.Float64),
            }
        )
        frames.append(frame.group_by("slice", "model", maintain_order=True).last())
    return pl.concat(frames)


def _find_given(models: pl.DataFrame, slices: Sequence[TokenSlice], name: str) -> int:
    zoo, _, model = name.partition("/")
    fitting = [
        at
        for at, (number, known) in enumerate(models.select("slice", "model").rows())
        if slices[number].part.zoo == zoo and known == model
    ]
    if not fitting:
        raise ConfigError(
            f"sampling.anchor_models has {name!r}, which the backbone was not trained on: of zoo {zoo} these were "
            + ", ".join(
                known for number, known in models.select("slice", "model").rows() if slices[number].part.zoo == zoo
            )
        )
    return fitting[0]


def share_images(table: TokenTable, images: ImagesConfig) -> bool:
    """Tell whether a zoo may have been judged by images of the target: by any of its dataset, however it is split."""
    origin = find_subject(table.artifact)
    return origin is None or _name_dataset(origin.images) & _name_dataset(images) != set()


def _name_dataset(images: AnyImagesConfig) -> set[str]:
    """Return what datasets have in common when they have images or classes of images in common."""
    if isinstance(images, GlyphsConfig):
        return {f"glyph {character}" for character in images.characters}
    if isinstance(images, FilesConfig):
        return {path for path in (images.train, images.test) if path is not None}
    return {images.source}
