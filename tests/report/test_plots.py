"""The figures show every number once, where a reader looks for it."""

import math

import polars as pl
from matplotlib.colors import to_hex

from mzsane.appearance import assign_looks
from mzsane.report.plots import plot_accuracy, plot_curves, plot_finetuning, plot_provenance, to_png, to_svg


def list_texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def list_markers(axes):
    """The panel's markers as (x, y, edge colour, filled)."""
    lines = [line for line in axes.lines if line.get_marker() not in ("None", "", "|", "_", None)]
    return [
        (line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_markeredgecolor()), line.get_markerfacecolor())
        for line in lines
        if len(line.get_xdata()) == 1
    ]


def test_accuracy_has_a_panel_a_target_and_a_place_a_method(rows):
    figure = plot_accuracy(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["target: digits", "target: fonts"]
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == [
        "zoo\nsees none",
        "reconstruction\nsees none",
        "samples\nsees none",
        "selected\nsees labels",
        "anchors\nsees none",
        "anchor_noise\nsees none",
        "average\nsees none",
        "random_init\nsees none",
    ]


def test_accuracy_draws_the_mean_over_seeds_in_the_composition_s_colour(rows):
    figure = plot_accuracy(rows)
    looks = assign_looks(["digits", "letters", "both"])
    samples = {color: (y, face) for x, y, color, face in list_markers(figure.axes[0]) if round(x) == 2}
    inside, outside = samples[looks["digits"].color.lower()], samples[looks["letters"].color.lower()]
    assert math.isclose(inside[0], 0.805)
    assert math.isclose(outside[0], 0.605)
    assert inside[1] == looks["digits"].color
    assert outside[1] == "white"


def test_error_bars_are_as_long_as_the_interval(row):
    figure = plot_accuracy(pl.DataFrame([row("a", "t", "samples", 0.5, spread=0.1)]))
    (bars,) = figure.axes[0].collections[-1].get_segments()
    assert [round(y, 6) for y in bars[:, 1]] == [0.4, 0.6]
    assert "Error bar is the 95 % confidence interval over the models" in figure.get_supxlabel()


def test_what_was_not_measured_is_said_and_not_drawn_as_zero(rows):
    figure = plot_accuracy(rows)
    assert list_texts(figure) == ["not\nmeasured"]
    assert not [marker for marker in list_markers(figure.axes[1]) if round(marker[0]) == 0]


def test_chance_is_drawn_only_when_given(rows):
    assert "chance" not in list_texts(plot_accuracy(rows))
    figure = plot_accuracy(rows, chance=0.1)
    assert list_texts(figure).count("chance") == 2
    assert any(list(line.get_ydata()) == [0.1, 0.1] for line in figure.axes[0].lines)


def test_finetuning_has_a_row_a_method_and_training_from_scratch_in_each_panel(rows):
    figure = plot_finetuning(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["samples on digits", "samples on fonts"]
    for axes in figure.axes:
        (scratch,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert [round(y, 6) for y in scratch.get_ydata()] == [0.1, 0.7, 0.7]
        assert list(scratch.get_xdata()) == [0, 1, 3]


def test_finetuning_keeps_lines_apart_that_see_different_things(row):
    rows = [
        row("a", "t", "samples", accuracy, sees=sees, epochs=epochs)
        for sees, accuracies in {"none": (0.2, 0.5), "images": (0.3, 0.6)}.items()
        for epochs, accuracy in enumerate(accuracies)
    ]
    titles = [axes.get_title(loc="left") for axes in plot_finetuning(pl.DataFrame(rows)).axes]
    assert titles == ["samples (sees none) on t", "samples (sees images) on t"]


def test_without_fine_tuning_the_figure_says_so(row):
    figure = plot_finetuning(pl.DataFrame([row("a", "t", "samples", 0.5)]))
    assert "No method was scored at more than one number" in figure.texts[0].get_text()


def test_curves_have_a_panel_a_metric_and_skip_what_is_not_finite(curves):
    figure = plot_curves(curves)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "loss_contrast", "val_r2/digits"]
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[0, 2, 3]] * 2


def test_curves_and_accuracy_agree_on_colours(rows, curves):
    looks = assign_looks(rows["composition"])
    colors = {line.get_color() for line in plot_curves(curves, looks).axes[0].lines}
    assert colors == {looks["digits"].color, looks["both"].color}


def test_compositions_differ_in_look_beyond_the_number_of_colours():
    looks = assign_looks(f"composition {i}" for i in range(25))
    assert len(set(looks.values())) == 25


def test_empty_curves_and_rows_give_a_message():
    assert plot_curves(pl.DataFrame()).texts[0].get_text() == "No training curves."
    assert plot_accuracy(pl.DataFrame()).texts[0].get_text() == "No zero-shot accuracy in these rows."
    assert plot_provenance([]).texts[0].get_text() == "No provenance."


def test_provenance_draws_every_artifact_once_with_its_fingerprint(provenance):
    texts = list_texts(plot_provenance(provenance))
    names = {entry["name"] for entry in provenance}
    assert len(names) == 8
    for entry in provenance:
        assert texts.count(entry["name"]) == 1
        assert sum(text.startswith(entry["fingerprint"][:8]) for text in texts) == 1
    assert sum(text.endswith(" · 2 arms") for text in texts) == 2


def test_provenance_goes_from_left_to_right_with_a_line_for_each_read(provenance):
    figure = plot_provenance(provenance)
    places = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
    stages = ["zoo", "tokens", "backbone", "samples", "scores"]
    assert [places[stage] for stage in stages] == [0, 1, 2, 3, 4]
    assert places["digits canonical"] == 1
    assert places["scores both-s0"] == 4
    curves = [patch for patch in figure.axes[0].patches if type(patch).__name__ == "PathPatch"]
    assert len(curves) == 1 + 2 * (1 + 2 + 2)
    assert sum(patch.get_alpha() < 0.5 for patch in curves) == 4


def test_provenance_says_what_it_does_not_show(artifact):
    entry = artifact("a-s0", "tokens", "digits", reads=[("zoo", "elsewhere")])
    assert "Not shown: 1 input from elsewhere." in plot_provenance([entry]).get_supxlabel()


def test_names_with_dollars_are_no_formulas(row):
    figure = plot_accuracy(pl.DataFrame([row(r"$\bad$", r"$\frac$", "samples", 0.5)]))
    assert to_png(figure).startswith(b"\x89PNG")


def test_svg_is_the_same_each_time(rows):
    first = to_svg(plot_accuracy(rows))
    assert first == to_svg(plot_accuracy(rows))
    assert "<svg" in first
    assert "<text" not in first
