"""The table of a terminal and of Prefect's page says what samples reach, and marks what a test has told."""

import io
import math

import polars as pl
import pytest
from rich.console import Console

from mzsane.errors import ConfigError
from mzsane.report.answers import Answer
from mzsane.report.cells import average_seeds, explain_interval
from mzsane.report.statistics.duels import DUEL_SCHEMA
from mzsane.report.statistics.leaders import LEADER_SCHEMA
from mzsane.report.table import comparison_markdown, comparison_table

NO_DUELS, NO_LEADERS = pl.DataFrame(schema=DUEL_SCHEMA), pl.DataFrame(schema=LEADER_SCHEMA)


def print_table(rows, duels=NO_DUELS, leaders=NO_LEADERS):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table(pl.DataFrame(rows), duels, leaders))
    return console.export_text()


def make_duel(composition, target, opponent, verdict, difference, novelty=0.5):
    named = {"composition": composition, "target": target, "opponent": opponent, "verdict": verdict}
    named |= {"difference": difference, "novelty": 0.5, "opponent_novelty": novelty}
    return named | {"method": "samples", "sees": "none", "finetune_epochs": 0}


def make_leader(target, best, verdict):
    return {"target": target, "best": best, "verdict": verdict, "method": "samples", "finetune_epochs": 0}


def test_interval_is_over_seeds_from_three_on(row):
    rows = [row("a", "t", "samples", accuracy, seed=seed) for seed, accuracy in enumerate((0.86, 0.88, 0.87))]
    text = print_table(rows)
    assert "0.870 ±.025" in text  # 0.01 / sqrt(3) times 4.303, Student's for two degrees of freedom
    assert "± is the 95 % confidence interval over seeds." in " ".join(text.split())
    (two,) = average_seeds(pl.DataFrame(rows[:2]))
    assert two.interval == pytest.approx(0.02 / math.sqrt(2))  # that of the anchors of both, not one of 12.7 errors


def test_interval_is_over_anchors_with_one_seed_and_missing_below_three(row):
    rows = [row("a", "t", "samples", 0.876, spread=0.043), row("b", "t", "samples", 0.5, spread=math.nan)]
    text = print_table(rows)
    assert "0.876 ±.043" in text
    assert "0.500 •" in text
    assert "over anchors (for these seeds)" in " ".join(text.split())
    mixed = [row("c", "t", "samples", 0.5, seed=seed) for seed in range(3)] + rows[:1]
    assert "over seeds where there are three" in explain_interval(average_seeds(pl.DataFrame(mixed)))


def test_a_star_is_only_for_what_a_test_has_told(row):
    rows = [row(name, target, "samples", 0.5) for name in "ab" for target in ("t", "u")]
    leaders = pl.DataFrame([make_leader("t", "a", "win"), make_leader("u", "b", "tie")], schema=LEADER_SCHEMA)
    text = print_table(rows, leaders=leaders)
    lines = [line for line in text.splitlines() if "0.500" in line]
    assert ["★" in line for line in lines] == [True, False]
    assert lines[0].count("★") == 1
    assert "told from the next composition by a test" in " ".join(text.split())
    assert "★" not in print_table(rows)


def test_the_verdict_is_against_the_strongest_opponent_that_is_as_new(row):
    rows = [row(name, "t", "samples", 0.5, inside=name == "a") for name in "abcd"]
    duels = [
        make_duel("a", "t", "anchors", "loss", -0.3, novelty=0.0),
        make_duel("a", "t", "layer_noise", "win", 0.2),
        make_duel("a", "t", "flat_noise", "tie", 0.01),
        make_duel("b", "t", "layer_noise", "win", 0.2),
        make_duel("c", "t", "layer_noise", "untested", 0.2),
    ]
    text = print_table(rows, pl.DataFrame(duels, schema=DUEL_SCHEMA))
    lines = [" ".join(line.split()) for line in text.splitlines() if "0.500" in line]
    assert lines == ["a 0.500 ±.020 • tie", "b 0.500 ±.020 win", "c 0.500 ±.020 ?", "d 0.500 ±.020"]
    caption = " ".join(text.split())
    assert "saw and paid no more and is as new, mostly layer_noise, flat_noise." in caption
    assert "?: too few independent units for a test." in caption


@pytest.mark.parametrize(("targets", "compositions"), [(4, 21), (9, 4), (2, 3)])
def test_it_fits_a_hundred_columns_unbroken(row, targets, compositions):
    names = [f"mnist-fashion-{number}" for number in range(compositions)]
    rows = [row(name, f"target-{t}", "samples", 0.9) for name in names for t in range(targets)]
    duels = [make_duel(name, f"target-{t}", "distilled_init", "loss", -0.1) for name in names for t in range(targets)]
    text = print_table(rows, pl.DataFrame(duels, schema=DUEL_SCHEMA))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("0.900 ±.020 •  loss") == targets * compositions


def test_names_of_forty_letters_fit_too(row):
    name, target = "c" * 40, "t" * 40
    text = print_table([row(name, f"{target[:-1]}{n}", "samples", 0.9) for n in range(6)])
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("0.900 ±.020") == 6


def test_only_single_zero_shot_samples_are_in_it(row):
    rows = [
        row("a", "t", "samples", 0.5),
        row("a", "t", "samples", 0.6, ensemble=5),
        row("a", "t", "samples", 0.7, epochs=1, sees="labels"),
        row("a", "t", "selected", 0.8, sees="labels"),
        row("a", "t", "zoo", 0.9),
    ]
    text = print_table(rows)
    assert "0.500" in text
    assert not any(number in text for number in ("0.600", "0.700", "0.800", "0.900"))


def test_accuracy_that_is_not_finite_is_shown_and_counted(row):
    rows = [row("a", "t", "samples", math.nan), row("b", "t", "samples", 0.4), row("b", "u", "samples", 0.3)]
    text = print_table(rows)
    assert "n/a" in text
    assert "–" in text
    assert "Left out: 1 measurement without a finite accuracy." in " ".join(text.split())


def test_markdown_has_the_answer_and_the_same_cells(row):
    rows = pl.DataFrame([row("a|b", "t", "samples", 0.5), row("c", "t", "samples", 0.4, inside=False)])
    duels = pl.DataFrame([make_duel("c", "t", "layer_noise", "loss", -0.1)], schema=DUEL_SCHEMA)
    text = comparison_markdown([Answer("Are two better?", "Yes, by *1* point.")], rows, duels, NO_LEADERS)
    lines = text.splitlines()
    assert lines[0] == "**Are two better?** Yes, by \\*1\\* point."
    assert "| composition | t |" in lines
    assert "| a\\|b | **0.500 ±.020 •** |" in lines
    assert "| c | 0.400 ±.020 loss |" in lines


def test_names_are_text_and_no_markup(row):
    assert "[red]t[/red]" in print_table([row("a", "[red]t[/red]", "samples", 0.5)])


def test_missing_column_is_named(rows):
    with pytest.raises(ConfigError, match="accuracy_std"):
        comparison_table(rows.drop("accuracy_std"), NO_DUELS, NO_LEADERS)


def test_no_rows_is_an_empty_table():
    assert comparison_table(pl.DataFrame(), NO_DUELS, NO_LEADERS).row_count == 0
    assert comparison_markdown([], pl.DataFrame(), NO_DUELS, NO_LEADERS) == "\n"
