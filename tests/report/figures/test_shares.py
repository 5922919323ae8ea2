"""The share of models that are novel and as accurate as the zoo."""

import polars as pl
import pytest

from mzsane.report.figures.shares import SHARE_SCHEMA, THRESHOLDS, measure_shares, plot_shares


def make_scores(method, models, chosen_of=None, epochs=0, ensemble=1, outside=False):
    """Rows of models, given as (accuracy, novelty)."""
    columns = {"method": method, "ensemble": ensemble, "chosen_of": chosen_of, "finetune_epochs": epochs}
    columns["outside_norms"] = outside
    return [columns | {"accuracy": accuracy, "novelty": novelty} for accuracy, novelty in models]


ZOO = pl.DataFrame(make_scores("zoo", [(0.80, None), (0.90, None), (0.92, None), (0.94, None), (0.96, None)]))


def find_shares(rows, method, thresholds):
    shares = measure_shares(pl.DataFrame(rows), ZOO).filter(method=method)
    return [shares.filter(threshold=threshold)["share"].item() for threshold in thresholds]


def test_a_model_counts_when_it_is_both_novel_and_accurate():
    # 0.90 is the zoo's lower quartile.
    rows = make_scores("samples", [(0.90, 0.50), (0.95, 0.20), (0.89, 1.40), (0.10, 1.40)])
    assert find_shares(rows, "samples", (0.0, 0.2, 0.25, 0.5, 0.55)) == [0.5, 0.5, 0.25, 0.25, 0]


def test_models_that_failed_count_as_not_generated():
    rows = make_scores("samples", [(0.95, float("nan")), (float("nan"), 0.6), (0.95, 0.6), (0.95, 0.6)])
    assert find_shares(rows, "samples", (0.0, 0.5)) == [0.5, 0.5]


def test_distance_bought_by_larger_weights_does_not_count():
    rows = make_scores("samples", [(0.95, 0.6)]) + make_scores("samples", [(0.95, 1.2)] * 3, outside=True)
    assert find_shares(rows, "samples", (0.0, 0.5, 1.0)) == [0.25, 0.25, 0]


def test_selection_and_fine_tuning_stay_out():
    rows = make_scores("samples", [(0.10, 0.5)]) + make_scores("samples", [(0.95, 0.5)], chosen_of=9)
    rows += make_scores("samples", [(0.95, 0.5)], epochs=1) + make_scores("samples", [(0.95, None)], ensemble=5)
    rows += make_scores("layer_noise", [(0.95, 0.5)], chosen_of=9) + make_scores("zoo", [(0.95, 1.0)])
    shares = measure_shares(pl.DataFrame(rows), ZOO)
    assert set(shares["method"]) == {"samples"}
    assert shares["share"].max() == 0


def test_figure_has_the_mean_over_compositions_and_each_composition():
    of = {"a": 0.2, "b": 0.6}
    shares = pl.DataFrame(
        [
            (f"{name}-s0", name, 0, "t", True, method, threshold, value if method == "samples" else 0.1)
            for name, value in of.items()
            for method in ("samples", "average")
            for threshold in THRESHOLDS
        ],
        schema=SHARE_SCHEMA,
        orient="row",
    )
    (axes,) = plot_shares(shares).axes
    assert axes.get_title(loc="left") == "t, in distribution"
    levels = sorted((round(line.get_linewidth(), 1), round(float(line.get_ydata()[0]), 3)) for line in axes.lines)
    assert levels == [(0.7, 0.2), (0.7, 0.6), (2.2, 0.1), (2.2, pytest.approx(0.4))]
    assert "No target has a zoo" in plot_shares(pl.DataFrame(schema=SHARE_SCHEMA)).texts[0].get_text()


def test_ensembles_of_the_zoo_do_not_raise_the_mark():
    zoo = pl.concat([ZOO, pl.DataFrame(make_scores("zoo", [(0.99, None)] * 9, ensemble=5))])
    shares = measure_shares(pl.DataFrame(make_scores("samples", [(0.90, 0.5)])), zoo)
    assert shares["share"].max() == 1
