"""The comparison table says what was measured, and says how."""

import io
import math

import polars as pl
import pytest
from rich.console import Console

from mzsane.errors import ConfigError
from mzsane.report.cells import average_seeds
from mzsane.report.table import comparison_markdown, comparison_table, samples_table


def print_table(rows, lay_out=comparison_table):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(lay_out(rows))
    return console.export_text()


def find_line(text, *words):
    (line,) = [line for line in text.splitlines() if all(word in line.split() for word in words)]
    return line


def test_interval_is_over_seeds_when_there_are_several(row):
    rows = [row("a", "t", "samples", accuracy, seed=seed) for seed, accuracy in enumerate((0.86, 0.88, 0.87))]
    text = print_table(pl.DataFrame(rows))
    assert "0.870 ±.025" in text  # 0.01 / sqrt(3) times 4.303, Student's for two degrees of freedom
    assert "± is the 95 % confidence interval over seeds." in " ".join(text.split())


def test_interval_is_over_models_with_one_seed(row):
    text = print_table(pl.DataFrame([row("a", "t", "samples", 0.876, spread=0.043)]))
    assert "0.876 ±.043" in text
    assert "over the models (one seed each)" in " ".join(text.split())


def test_caption_tells_when_intervals_differ_in_kind(row):
    rows = [row("a", "t", "samples", 0.8), row("a", "t", "samples", 0.9, seed=1), row("b", "t", "samples", 0.7)]
    assert "over seeds where a composition has several, else over the models" in comparison_markdown(pl.DataFrame(rows))


def test_selection_always_says_from_how_many(row):
    rows = [row("a", "t", "selected", 0.9, sees="labels", chosen_of=200), row("a", "t", "samples", 0.5)]
    lines = comparison_markdown(pl.DataFrame(rows)).splitlines()
    assert "| t | selected (10 of 200) | labels | **0.900 ±.020 •★** |" in lines
    assert "| t | samples | none | **0.500 ±.020 •** |" in lines


def test_ensembles_are_a_block_of_their_own_with_their_own_best(row):
    rows = [row("a", "t", "samples", 0.5), row("a", "t", "samples", 0.9, ensemble=5)]
    text = comparison_markdown(pl.DataFrame(rows))
    assert [line for line in text.splitlines() if line.startswith("###")] == ["### zero-shot", "### ensemble of 5"]
    assert "| t | samples | none | **0.500 ±.020 •★** |" in text
    assert "| t | samples | none | **0.900 ±.020 •★** |" in text
    assert average_seeds(pl.DataFrame(rows))[0].accuracy == 0.5  # figures and findings are about single models


def test_in_distribution_is_marked_and_bold(row):
    rows = pl.DataFrame([row("a", "t", "samples", 0.5, inside=True), row("b", "t", "samples", 0.4, inside=False)])
    text = comparison_markdown(rows)
    assert "| **0.500 ±.020 •★** | 0.400 ±.020 |" in text
    table = comparison_table(rows)
    assert [column._cells[0].style for column in table.columns[4:]] == ["bold", ""]


def test_best_is_marked_once_a_target_and_never_the_zoo(rows):
    text = comparison_markdown(rows.filter(pl.col("finetune_epochs") == 0))
    best = [line for line in text.splitlines() if line.startswith("|") and "★" in line]
    assert [line.split(" | ")[:2] for line in best] == [["| digits", "selected"], ["| fonts", "layer_noise"]]
    assert all(line.count("★") == 1 for line in best)


def test_zoo_is_not_the_best_even_when_level(row):
    rows = pl.DataFrame([row("a", "t", "zoo", 0.9), row("a", "t", "samples", 0.9)])
    lines = comparison_markdown(rows).splitlines()
    assert "| t | zoo | none | **0.900 ±.020 •** |" in lines
    assert "| t | samples | none | **0.900 ±.020 •★** |" in lines


def test_a_line_never_mixes_what_scores_see(row):
    rows = pl.DataFrame([row("a", "t", "samples", 0.5, sees="none"), row("b", "t", "samples", 0.7, sees="images")])
    lines = comparison_markdown(rows).splitlines()
    assert "| t | samples | none | **0.500 ±.020 •** | – |" in lines
    assert "| t | samples | images | – | **0.700 ±.020 •★** |" in lines


def test_lines_are_in_the_order_of_the_methods(rows):
    text = comparison_markdown(rows)
    methods = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| digits")]
    zero_shot = ["zoo", "reconstruction", "samples", "selected", "anchors", "layer_noise", "average", "random_init"]
    assert methods == zero_shot + ["samples", "random_init"] * 2


def test_each_number_of_epochs_is_a_block(rows):
    text = comparison_markdown(rows)
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### zero-shot",
        "### 1 epoch",
        "### 3 epochs",
    ]


def test_four_compositions_fit_120_columns_unbroken(row):
    compositions = ["digits", "letters", "both-equal", "both-double"]
    rows = [row(name, "font-digits", "reconstruction", 0.9, sees="labels") for name in compositions]
    text = print_table(pl.DataFrame(rows))
    assert max(map(len, text.splitlines())) <= 120
    assert find_line(text, "font-digits", "reconstruction", "labels").count("0.900 ±.020 •★") == 4
    assert find_line(text, "fine-tuned").split()[-4:] == compositions


def test_many_compositions_have_a_line_each(row):
    names = [f"mix-{number}" for number in range(9)]
    rows = pl.DataFrame(
        [
            row(name, target, method, accuracy, epochs=epochs, inside=name == "mix-3")
            for number, name in enumerate(names)
            for target in ("digits", "fonts")
            for method, accuracy in (("samples", 0.1 * number), ("zoo", 0.95))
            for epochs in (0, 2)
        ]
    )
    lines = print_table(rows, samples_table).strip().splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].split() == ["fine-tuned", "sees", "composition", "digits", "fonts"]
    shown = [line for line in lines if "mix-" in line]
    assert [line[: line.index("mix-")].split() for line in shown[::9]] == [
        ["zero-shot", "none"],
        ["2", "epochs", "none"],
    ]
    assert [line[line.index("mix-") :].split()[0] for line in shown] == names * 2
    assert all(line.count("0.300 ±.020 •") == 2 for line in shown if "mix-3" in line)
    assert "0.950" not in "".join(lines)
    assert samples_table(rows.filter(method="zoo")).row_count == 0


def test_accuracy_that_is_not_finite_is_shown_and_counted(row):
    rows = [row("a", "t", "samples", math.nan), row("b", "t", "samples", 0.4), row("b", "t", "samples", None, seed=1)]
    text = comparison_markdown(pl.DataFrame(rows))
    assert "| **n/a •** | **0.400 ±.020 •★** |" in text
    assert "Left out: 2 measurements without a finite accuracy." in text


def test_names_are_text_and_no_markup(row):
    rows = pl.DataFrame([row("a|b", "[red]t[/red]", "samples", 0.5)])
    assert "[red]t[/red]" in print_table(rows)
    assert "| target | method | sees | a\\|b |" in comparison_markdown(rows)


def test_missing_column_is_named(rows):
    with pytest.raises(ConfigError, match="accuracy_std"):
        comparison_table(rows.drop("accuracy_std"))


def test_no_rows_is_an_empty_table():
    assert comparison_table(pl.DataFrame()).row_count == 0
