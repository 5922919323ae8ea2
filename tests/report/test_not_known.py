"""Where it is not known whether a target is in distribution, everything says so and no average counts it."""

import polars as pl
import pytest

from mzsane.appearance import assign_styles
from mzsane.config import AblationConfig, validate_config
from mzsane.plan import ArmPlan, list_arms
from mzsane.report.analysis import analyse
from mzsane.report.cells import average_seeds
from mzsane.report.figures.pictures import plot_pictures
from mzsane.report.findings import find_findings
from mzsane.report.gather import name_measurement
from mzsane.report.page.tables import list_effects
from mzsane.report.statistics.duel_summary import SUMMARY_SCHEMA
from mzsane.report.statistics.effects import estimate_effects, to_frame
from mzsane.report.statistics.leaders import LEADER_SCHEMA
from mzsane.report.table import comparison_markdown, comparison_table
from tests.report.made_models import make_models
from tests.report.made_up import make_small
from tests.report.page.test_page import render

UNKNOWN = "not known whether in distribution"


@pytest.fixture(scope="module")
def made():
    """An ablation in which it is not known of one target, for the compositions of two datasets."""
    made = make_small()
    hidden = pl.col("composition").str.contains("letters-") & (pl.col("target") == "digits")
    for name in ("rows", "duels", "shares"):
        known = pl.when(hidden).then(None).otherwise("in_distribution")
        made[name] = made[name].with_columns(in_distribution=known)
    return made


def test_page_tables_and_pictures_say_so(made):
    page = render(made)
    assert f"digits+letters-equal on digits, {UNKNOWN}" in page
    rows = made["rows"].filter(method="samples", finetune_epochs=0, ensemble=1)
    body = page.split('id="accuracy"')[1].split("</tbody>")[0]
    assert body.count('class="accuracy inside"') == rows["in_distribution"].sum()
    leaders = pl.DataFrame(schema=LEADER_SCHEMA)
    markdown = comparison_markdown([], made["rows"], made["duels"], leaders)
    assert f"~: {UNKNOWN}" in markdown
    assert markdown.count("~") - 1 == rows["in_distribution"].null_count()
    assert UNKNOWN in str(comparison_table(made["rows"], made["duels"], leaders).caption)
    looks = assign_styles(made["rows"]["composition"].unique(maintain_order=True).to_list())
    frames = {name: made[name] for name in ("effects", "shares", "latents", "curves", "probes")}
    assert {"accuracy.png", "shares.png", "novelty.png"} <= set(plot_pictures(made["rows"], looks=looks, **frames))


def test_cells_keep_what_is_not_known(made):
    found = {cell.in_distribution for cell in average_seeds(made["rows"]) if cell.composition == "digits+letters-equal"}
    assert found == {True, False, None}


def test_arms_of_which_it_is_known_and_not_have_one_column():
    images = {"source": "npz", "train": "a.npz", "classes": 10}
    zoos = [{"name": "digits", "images": {"source": "digits"}}, {"name": "own", "images": images}]
    compositions = [{"name": zoo["name"], "slices": [{"zoo": zoo["name"], "models": 20}]} for zoo in zoos]
    data = {"name": "a", "zoos": zoos, "compositions": compositions, "targets": [{"name": "t", "zoo": "digits"}]}
    config = validate_config(AblationConfig, data, "the test")
    frames = [
        pl.DataFrame({"n": [1]}).select(*name_measurement(config, ArmPlan(config, arm).parts(), config.targets[0]))
        for arm in list_arms(config)
    ]
    assert pl.concat(frames)["in_distribution"].to_list() == [True, None]


def test_effects_leave_it_out(made):
    """What is not known counts in neither place: the effects are those without these rows."""
    effects = estimate_effects(made["rows"])
    assert effects == estimate_effects(made["rows"].drop_nulls("in_distribution"))
    assert effects != estimate_effects(make_small()["rows"])
    assert {row[2].text if hasattr(row[2], "text") else row[2] for row in list_effects(to_frame(effects)).rows} <= {
        "in distribution",
        "out of distribution",
    }


def test_a_count_that_is_not_known_leaves_its_composition_out_and_no_other():
    rows = make_small()["rows"]
    some = pl.when(pl.col("composition") != "digits").then("datasets")
    assert estimate_effects(rows.with_columns(datasets=some)) == estimate_effects(
        rows.filter(pl.col("composition") != "digits")
    )
    nothing = rows.with_columns(architectures=pl.lit(None, pl.Int64))
    assert estimate_effects(nothing) == estimate_effects(rows)


def test_findings_say_what_is_left_out(made):
    rows = made["rows"].with_columns(
        datasets=pl.when(pl.col("composition") != "letters").then("datasets"), architectures=pl.lit(None, pl.Int64)
    )
    frames = (made["duels"], pl.DataFrame(schema=SUMMARY_SCHEMA), pl.DataFrame(schema=LEADER_SCHEMA), rows)
    overall = find_findings([], [], [], *frames).overall
    assert overall[0].startswith(
        "It is not known whether targets are in distribution: digits for digits+letters-equal; digits for "
        "digits+letters-double. They count in no effect and in neither average"
    )
    assert overall[1] == "The number of datasets is not known of letters, which count in no effect."
    assert overall[2].startswith("The number of architectures is not known of digits, letters and ")
    assert overall[2].endswith(".")
    assert "no effect" not in overall[2]
    assert find_findings([], [], [], *frames[:3], make_small()["rows"]).overall == []


def test_duels_are_pooled_apart(made):
    models = [
        model
        for inside, place in ((True, "x"), (None, "y"))
        for number, name in enumerate("abc")
        for method, level in (("samples", 0.8), ("random_init", 0.1))
        for model in make_models(
            method, [level + 0.01 * number, level, level - 0.02], name, target=place, inside=inside
        )
    ]
    found = analyse([], made["rows"], pl.DataFrame(models, infer_schema_length=None), made["convergence"])
    assert set(found.duel_summary["in_distribution"].to_list()) == {True, None}
    assert any(UNKNOWN in sentence for sentence in found.findings.overall)
