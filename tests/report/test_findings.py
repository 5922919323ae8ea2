"""The summary says what the measurements show, also where that is no good news."""

import math

import polars as pl

from mzsane.report.findings import find_findings


def test_best_composition_of_each_target_and_what_it_sees(rows):
    by_target = find_findings(rows).by_target
    assert by_target["digits"][0] == (
        "Best composition by selected (sees labels): both, 0.955 ±.064 (in distribution), 0.050 ahead of digits; "
        "best out of distribution: letters, 0.705 ±.064."
    )
    fonts = by_target["fonts"][1]
    assert fonts.startswith("Best composition by reconstruction (sees none): both, 0.705 ±.064 (out of distribution)")
    assert fonts.endswith("0.050 ahead of digits.")


def test_size_and_diversity_come_first(rows):
    assert find_findings(rows).overall[0].startswith("Size and diversity of the composition: all compositions have 40")


def test_overall_names_the_winner_of_each_target(rows):
    assert "Best composition by selected (sees labels): both on digits and fonts." in find_findings(rows).overall


def test_samples_worse_than_a_trivial_baseline_are_said_to_be(rows):
    findings = find_findings(rows)
    (digits,) = [text for text in findings.by_target["digits"] if "samples against trivial" in text]
    (fonts,) = [text for text in findings.by_target["fonts"] if "samples against trivial" in text]
    assert "better than anchor_noise with all 3 compositions" in digits
    assert "worse than anchor_noise with all 3 compositions" in fonts
    assert "worse than anchors with all 3 compositions" in digits
    (overall,) = [text for text in findings.overall if "samples beat every one" in text]
    assert "in 0 of 6 pairs" in overall
    assert "(anchors in 0 of 6, anchor_noise in 3 of 6, average in 6 of 6)" in overall


def test_baselines_that_see_more_or_less_are_not_compared(row):
    rows = [
        row("a", "t", "samples", 0.5, sees="images"),
        row("a", "t", "anchor_noise", 0.9, sees="none"),
        row("a", "t", "average", 0.3, sees="images"),
    ]
    findings = find_findings(pl.DataFrame(rows))
    assert findings.by_target["t"] == [
        "Zero-shot samples against trivial baselines that see as much (images): better than average with a."
    ]
    assert "none sees as much" in " ".join(find_findings(pl.DataFrame(rows[:2])).overall)


def test_fine_tuned_samples_are_compared_with_training_as_long(rows):
    findings = find_findings(rows)
    expected = (
        "Fine-tuned samples (sees labels): after 1 epoch better than random_init with digits and both (2 of 3); "
        "worse than random_init with letters (1 of 3); after 3 epochs"
    )
    assert any(text.startswith(expected) for text in findings.by_target["fonts"])
    overall = "samples beat random_init trained as long in 4 of 4 in distribution and 6 of 8 out of distribution"
    assert any(overall in text for text in findings.overall)


def test_a_lead_within_the_spread_over_seeds_is_no_lead(row):
    rows = [
        row(name, "t", "selected", accuracy, seed=seed, sees="labels")
        for name, accuracies in {"a": (0.70, 0.80), "b": (0.72, 0.76)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    findings = find_findings(pl.DataFrame(rows))
    assert "0.010 ahead of b, which is within the spread over seeds" in findings.by_target["t"][0]
    assert findings.overall[1].endswith("a on t (level with b).")


def test_one_seed_is_warned_about(row, rows):
    one = find_findings(pl.DataFrame([row("a", "t", "selected", 0.8)])).overall
    assert any("One seed" in text for text in one)
    assert not any("one seed" in text.lower() for text in find_findings(rows).overall)


def test_nothing_finite_is_said(row):
    findings = find_findings(pl.DataFrame([row("a", "t", "samples", math.nan)]))
    assert findings.overall == ["There is no finite accuracy to compare."]
    assert findings.by_target == {}
