"""The figures show every number once, where a reader looks for it."""

import math

import polars as pl
from matplotlib.colors import to_hex

from mzsane.appearance import assign_styles, to_png, to_svg
from mzsane.report.figures.plots import plot_accuracy, plot_curves, plot_finetuning


def list_markers(axes):
    """The panel's markers as (x, y, edge colour, filled)."""
    lines = [line for line in axes.lines if line.get_marker() not in ("None", "", "|", "_", None)]
    return [
        (line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_markeredgecolor()), line.get_markerfacecolor())
        for line in lines
        if len(line.get_xdata()) == 1
    ]


def test_accuracy_has_a_panel_a_target_and_a_line_a_method(rows):
    figure = plot_accuracy(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["target: digits", "target: fonts"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "zoo",
        "reconstruction",
        "samples",
        "selected (labels)",
        "anchors",
        "layer_noise",
        "average",
        "random_init",
    ]


def test_accuracy_draws_the_mean_over_seeds_in_the_composition_s_colour(rows):
    figure = plot_accuracy(rows)
    looks = assign_styles(["digits", "letters", "both"])
    samples = {color: (x, face) for x, y, color, face in list_markers(figure.axes[0]) if round(y) == 2}
    inside, outside = samples[looks["digits"].color.lower()], samples[looks["letters"].color.lower()]
    assert math.isclose(inside[0], 0.805)
    assert math.isclose(outside[0], 0.605)
    assert inside[1] == looks["digits"].color
    assert outside[1] == "white"


def test_error_bars_are_as_long_as_the_interval(row):
    figure = plot_accuracy(pl.DataFrame([row("a", "t", "samples", 0.5, spread=0.1)]))
    (bars,) = figure.axes[0].collections[-1].get_segments()
    assert [round(x, 6) for x in bars[:, 0]] == [0.4, 0.6]


def test_methods_with_gradient_steps_have_a_line_for_each_number(row):
    rows = [row("a", "t", "distilled_init", 0.1 * place, steps=steps) for place, steps in enumerate((30, 1000))]
    labels = plot_accuracy(pl.DataFrame(rows)).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["distilled_init, 30 steps", "distilled_init, 1,000 steps"]


def test_what_was_not_measured_is_not_drawn_as_zero(rows):
    figure = plot_accuracy(rows)
    assert not [marker for marker in list_markers(figure.axes[1]) if round(marker[1]) == 0]


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
    looks = assign_styles(rows["composition"])
    colors = {line.get_color() for line in plot_curves(curves, looks).axes[0].lines}
    assert colors == {looks["digits"].color, looks["both"].color}


def test_compositions_differ_in_look_beyond_the_number_of_colours():
    looks = assign_styles(f"composition {i}" for i in range(25))
    assert len(set(looks.values())) == 25


def test_empty_curves_and_rows_give_a_message():
    assert plot_curves(pl.DataFrame()).texts[0].get_text() == "No training curves."
    assert plot_accuracy(pl.DataFrame()).texts[0].get_text() == "No zero-shot accuracy in these rows."


def test_names_with_dollars_are_no_formulas(row):
    figure = plot_accuracy(pl.DataFrame([row(r"$\bad$", r"$\frac$", "samples", 0.5)]))
    assert to_png(figure).startswith(b"\x89PNG")


def test_svg_is_the_same_each_time(rows):
    first = to_svg(plot_accuracy(rows))
    assert first == to_svg(plot_accuracy(rows))
    assert "<svg" in first
    assert "<text" not in first
