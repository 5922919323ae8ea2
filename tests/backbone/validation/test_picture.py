"""The pictures of a pre-training: what is in them, by looking into the figures."""

import math
import statistics
from collections.abc import Iterable

import numpy as np
import polars as pl
import pytest
import torch
from matplotlib.colors import same_color, to_hex
from matplotlib.figure import Figure

from mzsane.appearance import to_png
from mzsane.backbone.validation import picture
from mzsane.backbone.validation.picture import TokenScales, collect_scales, plot_curves, plot_histograms, plot_scales
from mzsane.composition import ChosenSlice
from mzsane.config import BackboneConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.tokens.store import TokenTable

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return a list that the figures that are drawn are put on."""
    drawn: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        drawn.append(figure)
        return to_png(figure)

    monkeypatch.setattr(picture, "to_png", keep)
    return drawn


def make_curves(rows: Iterable[tuple[int, str, float]]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema={"step": pl.Int64, "metric": pl.String, "value": pl.Float64}, orient="row")


def list_lines(figure: Figure) -> dict[str, dict[str, list[float]]]:
    """Return the values of each line of each panel."""
    return {
        axes.get_title(loc="left"): {
            str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()
        }
        for axes in figure.axes
    }


def test_scales_are_by_kind_of_layer(tiny_table: TokenTable) -> None:
    layout, flat = tiny_table.layout, tiny_table.load(tiny_table.pick_rows("train"))
    scales = collect_scales(layout, flat)
    tokens = layout.tokenize(flat)
    for kind, of_kind in scales.by_kind_X.items():
        expected = [
            statistics.pstdev(tokens[model, number][layout.mask_TD[number]].tolist())
            for layer in layout.layers
            if layer.kind == kind
            for model in range(len(flat))
            for number in range(layer.first, layer.first + layer.tokens)
        ]
        torch.testing.assert_close(of_kind.sort().values, of_kind.new_tensor(sorted(expected)), rtol=1e-5, atol=1e-9)
    assert sum(len(of_kind) for of_kind in scales.by_kind_X.values()) == len(flat) * layout.length
    assert scales.model == pytest.approx(statistics.median_low([statistics.pstdev(model.tolist()) for model in flat]))


def test_a_weight_alone_in_its_token_has_no_deviation(tiny_table: TokenTable) -> None:
    longest = max(layer.row_length for layer in tiny_table.layout.layers)
    layout = TokenLayout(token_dim=longest - 1, tensors=tiny_table.layout.tensors)
    scales = collect_scales(layout, tiny_table.load(tiny_table.pick_rows("train")))
    alone = int((layout.mask_TD.sum(dim=1) == 1).sum())
    assert alone > 0
    assert sum(int((of_kind == 0).sum()) for of_kind in scales.by_kind_X.values()) == alone * len(
        tiny_table.pick_rows("train")
    )


def test_histograms_show_all_tokens_and_the_floors(figures: list[Figure]) -> None:
    conv = torch.tensor([0.0, 0.02, 0.021, 0.5])
    scales = {
        "digits": TokenScales({"conv": conv, "linear": torch.full((4,), 0.3)}, 0.25),
        "price of $ and $": TokenScales({"linear": torch.tensor([1.5])}, 1.0),
    }
    assert plot_histograms(scales, 1e-3, 0.1).startswith(PNG)
    digits, letters = figures[0].axes
    for axes, zoo in ((digits, scales["digits"]), (letters, scales["price of $ and $"])):
        bars = [bar for container in axes.containers for bar in container]
        assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
        lines = sorted(10 ** np.asarray(line.get_xdata())[0] for line in axes.get_lines())
        assert lines == pytest.approx(sorted([1e-3, 0.1 * zoo.model, zoo.model]))
    # Of eight tokens one has no deviation: it stands at the tick named 0, with its share in words.
    assert [text.get_text() for text in digits.texts] == ["12 %"]
    assert [text.get_text() for text in letters.texts] == []
    first = max((bar for bar in digits.containers[0]), key=lambda bar: -bar.get_x())
    assert first.get_height() == pytest.approx(12.5)
    tick = letters.get_xticks()[[label.get_text() for label in letters.get_xticklabels()].index("0")]
    assert first.get_x() + first.get_width() / 2 == pytest.approx(tick)
    # A kind has one colour in all panels.
    assert same_color(digits.containers[1][0].get_facecolor(), letters.containers[0][0].get_facecolor())
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == [
        "conv",
        "linear",
        "all weights of a model",
        "floor, added: 0.001",
        "least that counts: 0.1 of a model's",
    ]


def test_histograms_of_models_without_variance() -> None:
    assert plot_histograms({"zeros": TokenScales({"conv": torch.zeros(3)}, 0.0)}, 1e-4, 0.1).startswith(PNG)


def test_the_scales_of_a_composition_have_a_panel_a_slice(figures: list[Figure], tiny_table: TokenTable) -> None:
    chosen = [
        ChosenSlice(tiny_table, tiny_table.pick_rows("train"), 1.0),
        ChosenSlice(tiny_table, tiny_table.pick_rows("val"), 0.5),
    ]
    assert plot_scales(chosen, BackboneConfig(deviation_floor=0.01)).startswith(PNG)
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["slice 0", "slice 1"]
    assert "floor, added: 0.01" in [text.get_text() for text in figures[0].legends[0].get_texts()]


def test_curves_are_together_by_what_they_measure(figures: list[Figure]) -> None:
    names = [
        *("loss", "loss_contrast", "loss_latent_norm", "r2", "r2/0", "r2/1", "r2_conv", "val_r2/0", "val_r2_conv/1"),
        *("val_accuracy/0", "val_sample_accuracy/0", "val_accuracy_gap/0", "probe_r2_epoch/0", "gradient_norm"),
        *("learning_rate", "waiting_share", "val_r2/glyphs", "memory_gib", "odd/name+"),
    ]
    curves = make_curves((step, name, step / 10 + place) for step in (2, 1) for place, name in enumerate(names))
    assert plot_curves(curves).startswith(PNG)
    panels = list_lines(figures[0])
    assert {title: list(lines) for title, lines in panels.items()} == {
        "Loss and its terms, unweighted": ["all", "contrast", "latent norm"],
        "R² in training": ["all", "slice 0", "slice 1"],
        "R² in training, by layer": ["conv"],
        "R² in validation": ["slice 0", "glyphs"],
        "R² in validation, by layer": ["conv, slice 1"],
        "Networks in validation": ["accuracy, slice 0", "sample accuracy, slice 0"],
        "Accuracy lost": ["slice 0"],
        "Probes of the latents": ["epoch, slice 0"],
        "Gradient norm, before clipping": ["all"],
        "Learning rate": ["all"],
        "Waiting for data": ["all"],
        "memory gib": ["all"],
        "odd/name+": ["all"],
    }
    # In the order of the steps, whatever that of the rows.
    assert panels["R² in training"]["slice 1"] == pytest.approx([names.index("r2/1") + step / 10 for step in (1, 2)])
    colors = {
        (axes.get_title(loc="left"), str(line.get_label())): to_hex(line.get_color())
        for axes in figures[0].axes
        for line in axes.get_lines()
    }
    assert colors["R² in training", "slice 0"] != colors["R² in training", "slice 1"]
    assert colors["R² in training", "all"] == colors["Learning rate", "all"]


def test_curves_with_gaps_and_none_at_all(figures: list[Figure]) -> None:
    rows = [(1, "loss", 2.0), (2, "loss", math.nan), (3, "loss", 1.0), (3, "val_accuracy/0", math.inf)]
    assert plot_curves(make_curves(rows)).startswith(PNG)
    assert list_lines(figures[0]) == {"Loss and its terms, unweighted": {"all": [2.0, 1.0]}}
    assert plot_curves(make_curves([(0, "learning_rate", 0.0), (1, "loss", -1.0)])).startswith(PNG)
    assert plot_curves(make_curves([])).startswith(PNG)


def test_the_way_to_a_good_r2_can_be_seen(figures: list[Figure]) -> None:
    plot_curves(make_curves([(1, "r2", -1e6), (2, "r2", 0.5), (1, "r2_conv", 0.9), (2, "r2_conv", 0.95)]))
    assert [axes.get_ylim() for axes in figures[0].axes] == [(-0.25, 1.03), (-0.05, 1.03)]
