"""What the measurements say beyond the answers, in short sentences; what nobody asked before the run is exploratory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from mzsane.config import QuestionConfig
from mzsane.report.answers import (
    Answer,
    describe_adjusted,
    describe_effect,
    describe_leader,
    format_interval,
    format_points,
    name_best,
)
from mzsane.report.cells import join_names
from mzsane.report.statistics.duels import COPIES, find_strongest
from mzsane.report.statistics.effects import ADJUSTED, FACTORS, Effect, name_place

_EXPLORATORY = "Exploratory:"


@dataclass(frozen=True)
class Findings:
    """The summary of an ablation.

    Attributes:
        overall: The answers, then sentences on all targets together.
        by_target: Sentences on each target.
    """

    overall: list[str]
    by_target: dict[str, list[str]]


def find_findings(
    questions: Sequence[QuestionConfig],
    answers: Sequence[Answer],
    effects: Sequence[Effect],
    duels: pl.DataFrame,
    summary: pl.DataFrame,
    leaders: pl.DataFrame,
    rows: pl.DataFrame,
) -> Findings:
    """Say in sentences what was found.

    Args:
        questions: What was asked before the run.
        answers: The answers to that.
        effects: All effects on samples.
        duels: The duels.
        summary: The duels, pooled (`SUMMARY_SCHEMA`).
        leaders: The best compositions.
        rows: All measurements (`cells.ROW_SCHEMA`).
    """
    overall = [answer.text for answer in answers]
    if questions and not leaders.is_empty():
        overall.append(f"{_EXPLORATORY} {name_best(leaders).sentence}")
    overall += [f"{_EXPLORATORY} {text}" for text in _describe_effects(questions, effects)]
    overall += [f"{_EXPLORATORY} {text}" for text in _describe_summary(summary)]
    return Findings(overall + _describe_unknown(rows), _describe_targets(duels, leaders))


def _describe_unknown(rows: pl.DataFrame) -> list[str]:
    """Say what is left out because nothing tells which dataset or architecture is which."""
    sentences = []
    pairs = rows.filter(pl.col("in_distribution").is_null()).select("composition", "target").unique(maintain_order=True)
    if len(pairs):
        named = [f"{target} for {composition}" for composition, target in pairs.rows()[:3]]
        more = f", and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        sentences.append(
            f"It is not known whether targets are in distribution: {'; '.join(named)}{more}. They count in no effect "
            "and in neither average; the label of images, or the dataset of a zoo that is read, can say it."
        )
    for factor in FACTORS:
        unknown = rows.filter(pl.col(factor).is_null())["composition"].unique(maintain_order=True).to_list()
        if unknown:
            left_out = "" if len(unknown) == rows["composition"].n_unique() else ", which count in no effect"
            shown = join_names(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
            sentences.append(f"The number of {factor} is not known of {shown}{left_out}.")
    return sentences


def _describe_effects(questions: Sequence[QuestionConfig], effects: Sequence[Effect]) -> list[str]:
    """Say what was estimated and not asked, each total effect with the adjusted one behind it."""
    sentences: list[str] = []
    asked = False
    for effect in effects:
        if effect.kind == ADJUSTED:
            if not asked and effect.estimate is not None:
                sentences[-1] += f" {describe_adjusted(effect)}"
            continue
        asked = any(_asks(question, effect) for question in questions)
        if not asked and effect.estimate is not None:
            sentences.append(describe_effect(effect))
    return sentences


def _asks(question: QuestionConfig, effect: Effect) -> bool:
    stage = (question.factor, question.epochs, question.method) == (effect.factor, effect.epochs, "samples")
    return stage and not question.targets and question.in_distribution in (None, effect.in_distribution)


def _describe_summary(summary: pl.DataFrame) -> list[str]:
    """Say how generated ones compare with all opponents, and with the strongest: one sentence a stage and place."""
    sentences = []
    names = ("method", "finetune_epochs", "in_distribution")
    for (method, epochs, inside), group in summary.group_by(names, maintain_order=True):
        counts = group["verdict"].value_counts().rows()
        verdicts: dict[str, int] = dict(counts)
        stage = f"after {epochs} epoch{'s' * (epochs != 1)} of fine-tuning" if epochs else "zero-shot"
        allowed = "trained as long" if epochs else "that saw and paid no more"
        parts = [
            f"{words} {verdicts[verdict]}"
            for verdict, words in (
                ("win", "ahead of"),
                ("tie", "level with"),
                ("loss", "behind"),
                ("untested", "not tested against"),
            )
            if verdict in verdicts
        ]
        # A copy is as accurate as its original, which says nothing of generation; fine-tuned it is an opponent as any.
        rivals = group if epochs else group.filter(~pl.col("opponent").is_in(COPIES))
        text = f"{str(method).capitalize()}, {stage} and {name_place(inside)}, are {', '.join(parts)} of "
        text += f"{len(group)} opponent{'s' * (len(group) > 1)} {allowed}"
        if rivals.is_empty():
            sentences.append(f"{text}.")
            continue
        strongest = rivals.sort("difference").row(0, named=True)
        sentences.append(
            f"{text}; the strongest{' that is no copy' * (not epochs)} is {_name_opponent(strongest)}: "
            f"{format_points(strongest['difference'])} points "
            f"{format_interval(strongest['low'], strongest['high'], strongest['units'], strongest['unit_kind'])}, "
            f"better in {strongest['units_better']} of {strongest['units']} {strongest['unit_kind']}."
        )
    return sentences


def _name_opponent(row: dict[str, Any]) -> str:
    steps = f", {row['opponent_steps']} steps" if row["opponent_steps"] else ""
    return f"{row['opponent']} (sees {row['opponent_sees']}{steps})"


def _describe_targets(duels: pl.DataFrame, leaders: pl.DataFrame) -> dict[str, list[str]]:
    """Say of each target which composition leads, and how samples compare with the strongest baseline as new."""
    found: dict[str, list[str]] = {}
    for leader in leaders.filter(finetune_epochs=0).to_dicts():
        text = f"Zero-shot {leader['method']}: {describe_leader(leader)}."
        found.setdefault(leader["target"], []).append(text)
    for (target,), group in find_strongest(duels).group_by("target", maintain_order=True):
        verdicts = group["verdict"].to_list()
        won, level, lost = (verdicts.count(verdict) for verdict in ("win", "tie", "loss"))
        found.setdefault(str(target), []).append(
            "Against the strongest baseline that saw and paid no more and is as new, zero-shot samples win with "
            f"{won}, tie with {level} and lose with {lost} of {len(group)} compositions."
        )
    return found
