"""Validation during pre-training: what a backbone makes of models that it was not trained on.

Numbers by slice of the composition, from the validation split of its zoo's models and of its images alone; nothing of
a test split is read, no metric of test images either (`test_...` columns, `generalisation_gap`), so that training may
be stopped or a backbone chosen by these numbers.

Suffixes: B models, P weights of a model, T tokens, L latent width, N images, C weights of a kind, E checkpoints,
F features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import polars as pl
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from torch import Tensor

from mzsane.appearance import COLORS, INK, MUTED, create_figure, create_message, quote, style_axes, to_png
from mzsane.backbone.autoencoder import Autoencoder
from mzsane.backbone.inference import decode_models, encode_models
from mzsane.backbone.loss import explained_variance
from mzsane.backbone.validation.judge import Judge
from mzsane.backbone.validation.linear_probes import LEAST_FITTED, LEAST_SCORED, Probes, pool_latents
from mzsane.composition import ChosenSlice
from mzsane.config import BackboneConfig
from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.randomness import make_generator
from mzsane.tokens.store import TokenTable
from mzsane.tokens.subject import read_activations

_VALIDATED = 48  # models of a zoo that are reconstructed
_JUDGED = 8  # models of a zoo that are run on images, of each sort: reconstructed, sampled
_IMAGES = 500  # images that they are run on, and as many training images for running statistics
_SET_BYTES = 256 * 2**20  # of each set of models of a zoo, as many as fit
_TOKENS_AT_ONCE = 2**14
_BANDWIDTH = 0.2  # noise of the samples, in deviations of each latent number over the anchors
_PROBED = 400  # training checkpoints of a zoo that a probe is fitted on; half as many to score it
_SHOWN_ZOOS = 6
_BINS = 90


class Validator:
    """Measures a backbone in training on models that it does not see, by slice of the composition.

    All models, images and the originals' predictions are loaded once; a measurement reads no file and draws from no
    global generator, and the same backbone gives the same numbers again.

    Args:
        chosen: the slices, as they are trained on.
        config: the backbone's settings; its window is the one that models are encoded in.
        seed: which models, checkpoints and noise are drawn, where there are more than are used.
        names: names of the slices' zoos for notes and pictures; their numbers alone if not given.
        device: where the backbone is.

    Attributes:
        notes: which metrics are left out for which slice, and why, a line each.
    """

    def __init__(
        self,
        chosen: Sequence[ChosenSlice],
        config: BackboneConfig,
        seed: int,
        names: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        labels = [f"slice {number}" for number in range(len(chosen))]
        if names is not None:
            labels = [f"{label} ({name})" for label, name in zip(labels, names, strict=True)]
        self._zoos = [
            _Zoo(part, config.window, label, (seed, "validation", number), self.device)
            for number, (part, label) in enumerate(zip(chosen, labels, strict=True))
        ]
        self.notes = [f"{zoo.label}: {note}" for zoo in self._zoos for note in zoo.notes]

    @torch.no_grad()
    def measure(self, model: Autoencoder) -> dict[str, float]:
        """Measure a backbone, in float32; `n` is the number of a slice.

        Not a number stands for what a backbone with infinite or undefined weights does not have.

        Returns:
            `val_r2/n`: R2 over all weights of at most 48 validation models at their last epoch, in canonical form.
            `val_r2_KIND/n`: the same of the layers of a kind (conv, linear, norm, ...).
            `val_accuracy/n`: mean accuracy on at most 500 validation images of at most 8 of them, reconstructed.
            `val_accuracy_gap/n`: mean accuracy of their originals on these images, less `val_accuracy/n`.
            `val_agreement/n`: share of these images and models where reconstruction and original agree on the class.
            `val_sample_accuracy/n`: mean accuracy on these images of at most 8 training models, each decoded from its
            latents plus Gaussian noise of 0.2 deviations of each latent number over these models.
            `probe_r2_PROPERTY/n`: R2, on the validation models' checkpoints, of a ridge regression that was fitted on
            at most 400 training checkpoints; from the mean and the deviation over tokens of a checkpoint's latents to a
            number of the index (epoch, losses and accuracies but those of test images, factors).
        """
        with _frozen(model, self.device):
            return {
                f"{name}/{number}": value
                for number, zoo in enumerate(self._zoos)
                for name, value in zoo.measure(model).items()
            }

    @torch.no_grad()
    def draw(self, model: Autoencoder) -> bytes:
        """Draw reconstructed against original weights of a few validation models, by slice and kind of layer; a PNG."""
        zoos = [zoo for zoo in self._zoos if len(zoo.originals_BP)][:_SHOWN_ZOOS]
        if not zoos:
            return to_png(create_message("There are no validation models to reconstruct."))
        columns = max(len(zoo.kinds) for zoo in zoos)
        figure = create_figure(
            max(7.0, 0.6 + 3.3 * columns),
            1.5 + 3.2 * len(zoos),
            "Weights of validation models, reconstructed",
            f"Up to {_JUDGED} models a zoo, each weight once; the darker, the more weights, on a logarithmic scale. "
            "On the line is perfect, a flat cloud no better than the mean; what lies outside is drawn at the edge.",
        )
        grid = figure.subplots(len(zoos), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for line, zoo in enumerate(zoos):
            originals_BP = zoo.originals_BP[:_JUDGED]
            with _frozen(model, self.device):
                decoded_BP = zoo.decode(model, zoo.encode(model, originals_BP))
            for axes, (kind, index_C) in zip(grid[line], zoo.kinds.items(), strict=False):
                axes.set_visible(True)
                _draw_panel(axes, originals_BP[:, index_C], decoded_BP[:, index_C], f"{zoo.label}, {kind}")
            grid[line, 0].set_ylabel("reconstructed", fontsize=9.5, color=MUTED)
        return to_png(figure)


@contextmanager
def _frozen(model: Autoencoder, device: torch.device) -> Iterator[None]:
    """Run a block with a model in evaluation mode, in which all is float32, whatever the training around it has set."""
    training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        model.train(training)


class _Zoo:
    """What is measured on the zoo of one slice."""

    def __init__(
        self, part: ChosenSlice, window: int, label: str, seed: tuple[int, str, int], device: torch.device
    ) -> None:
        table = part.table
        self.layout, self.window, self.label, self.seed, self.device = table.layout, window, label, seed, device
        self.notes: list[str] = []
        fitting = max(1, _SET_BYTES // (4 * self.layout.weights))
        validated = self._draw_rows("models", table.pick_rows("val", last_epochs=1), min(_VALIDATED, fitting))
        anchors = self._draw_rows("anchors", _find_last(table, part.rows_N), min(_JUDGED, fitting))
        self.originals_BP = table.load(validated).to(device)
        self.anchors_BP = table.load(anchors).to(device)
        self.kinds = _list_kinds(self.layout, self.originals_BP)
        if not len(validated):
            self.notes.append("its zoo has no validation models: val_r2 and all that is measured on them is left out")
        self.judge: Judge | None = None
        try:
            judge = Judge(table, "val", _IMAGES, device)
            self.judged_as, self.sampled_as = (
                judge.check_activations(read_activations(table.index, rows[:_JUDGED].tolist()))
                for rows in (validated, anchors)
            )
        except ConfigError as error:
            self.notes.append(f"val_accuracy, val_agreement and val_sample_accuracy are left out: {error}")
        else:
            self.judge = judge
            self.original_classes_BN = judge.classify(self.originals_BP[:_JUDGED], self.judged_as)
        self.probes = Probes(
            table,
            self._draw_rows("fitted", part.rows_N, min(_PROBED, fitting)),
            self._draw_rows("scored", _match_epochs(table, part.rows_N), min(_PROBED // 2, fitting)),
        )
        if len(validated) and not self.probes.properties:
            self.notes.append(
                f"probes are left out: they need {LEAST_FITTED} training and {LEAST_SCORED} validation checkpoints "
                "with a number in the index that varies"
            )

    def measure(self, model: Autoencoder) -> dict[str, float]:
        """Return all metrics that can be had, without the slice's number."""
        values: dict[str, float] = {}
        if len(self.originals_BP):
            decoded_BP = self.decode(model, self.encode(model, self.originals_BP))
            values["val_r2"] = _score_r2(decoded_BP, self.originals_BP)
            for kind, index_C in self.kinds.items():
                values[f"val_r2_{kind}"] = _score_r2(decoded_BP[:, index_C], self.originals_BP[:, index_C])
            if self.judge is not None:
                values |= self._compare(self.judge, decoded_BP[:_JUDGED])
        if self.judge is not None and len(self.anchors_BP) > 1:
            classes_BN = self.judge.classify(self.decode(model, self._sample(model)), self.sampled_as)
            values["val_sample_accuracy"] = self.judge.score(classes_BN)
        if self.probes.properties:
            features = [pool_latents(self.encode(model, flat_EP.to(self.device))) for flat_EP in self.probes.flat]
            values |= self.probes.score(*features)
        return values

    def encode(self, model: Autoencoder, flat_BP: Tensor) -> Tensor:
        """Return the latents of models, (B, T, L)."""
        pieces = [encode_models(model, self.layout, some, self.window) for some in flat_BP.split(self._models_at_once)]
        return torch.cat(pieces)

    def decode(self, model: Autoencoder, latents_BTL: Tensor) -> Tensor:
        """Return the flat weights of latents, (B, P)."""
        pieces = latents_BTL.split(self._models_at_once)
        return torch.cat([decode_models(model, self.layout, some, self.window) for some in pieces])

    @property
    def _models_at_once(self) -> int:
        return max(1, _TOKENS_AT_ONCE // min(self.layout.length, self.window))

    def _compare(self, judge: Judge, decoded_BP: Tensor) -> dict[str, float]:
        classes_BN = judge.classify(decoded_BP, self.judged_as)
        accuracy = judge.score(classes_BN)
        return {
            "val_accuracy": accuracy,
            "val_accuracy_gap": judge.score(self.original_classes_BN) - accuracy,
            "val_agreement": float((classes_BN == self.original_classes_BN).double().mean()),
        }

    def _sample(self, model: Autoencoder) -> Tensor:
        """Return a sample around each anchor: fresh Gaussian noise for each latent number of the whole model."""
        latents_BTL = self.encode(model, self.anchors_BP)
        noise_BTL = torch.randn(latents_BTL.shape, generator=make_generator(*self.seed, "noise")).to(self.device)
        return latents_BTL + _BANDWIDTH * latents_BTL.std(dim=0, correction=0) * noise_BTL

    def _draw_rows(self, purpose: str, rows_N: Tensor, count: int) -> Tensor:
        """Draw some rows, in their order."""
        order = torch.randperm(len(rows_N), generator=make_generator(*self.seed, purpose))
        return rows_N[order[:count].sort().values]


def _score_r2(decoded_BC: Tensor, originals_BC: Tensor) -> float:
    return explained_variance(decoded_BC, originals_BC, torch.ones_like(originals_BC, dtype=torch.bool))


def _list_kinds(layout: TokenLayout, originals_BP: Tensor) -> dict[str, Tensor]:
    """Return for each kind of layer the places of its weights in the flat vector, if they vary over the models."""
    if not len(originals_BP):
        return {}
    pieces: dict[str, list[Tensor]] = {}
    for layer in layout.layers:
        index_TD = layout.gather_TD[layer.first : layer.first + layer.tokens]
        pieces.setdefault(layer.kind, []).append(index_TD[index_TD >= 0])
    kinds = {kind: torch.cat(found).to(originals_BP.device) for kind, found in pieces.items()}
    return {kind: index_C for kind, index_C in kinds.items() if float(originals_BP[:, index_C].var(correction=0)) > 0}


def _find_last(table: TokenTable, rows_N: Tensor) -> Tensor:
    """Return of some rows the last epoch's of each model."""
    rows = table.index.with_row_index("row")[rows_N.tolist()]
    last = rows.filter(pl.col("epoch") == pl.col("epoch").max().over("model"))
    return torch.tensor(last["row"].to_list(), dtype=torch.int64)


def _match_epochs(table: TokenTable, rows_N: Tensor) -> Tensor:
    """Return the validation rows of the epochs that some training rows have."""
    epochs = table.index["epoch"][rows_N.tolist()].unique().to_list()
    rows = table.index.with_row_index("row").filter(pl.col("split") == "val", pl.col("epoch").is_in(epochs))
    return torch.tensor(rows["row"].to_list(), dtype=torch.int64)


def _draw_panel(axes: Axes, originals_BC: Tensor, decoded_BC: Tensor, title: str) -> None:
    """Draw a histogram of the weights of a kind of layer: original across, reconstructed upwards."""
    across, upwards = (values.flatten().float().cpu().nan_to_num().numpy() for values in (originals_BC, decoded_BC))
    limit = float(np.quantile(np.abs(across), 0.999)) or 1.0
    edges = np.linspace(-limit, limit, _BINS + 1)
    axes.hist2d(
        across.clip(-limit, limit), upwards.clip(-limit, limit), bins=[edges, edges], norm=LogNorm(), cmap="Blues"
    )
    axes.plot([-limit, limit], [-limit, limit], color=COLORS[1], linewidth=0.8, linestyle="--")
    style_axes(axes)
    axes.grid(visible=False)
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
    axes.set_title(f"{quote(title)}: R2 {_score_r2(decoded_BC, originals_BC):.3f}", loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel("original", fontsize=9.5, color=MUTED)
