"""All that is computed from the measurements of an ablation, in one call: effects, duels, answers, findings."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from mzsane.config import QuestionConfig
from mzsane.report.answers import Answer, answer_questions
from mzsane.report.findings import Findings, find_findings
from mzsane.report.statistics.convergence import list_failed
from mzsane.report.statistics.duel_summary import summarise_duels
from mzsane.report.statistics.duels import match_duels
from mzsane.report.statistics.effects import estimate_effects, to_frame
from mzsane.report.statistics.leaders import find_leaders


@dataclass(frozen=True)
class Analysis:
    """What the measurements say.

    Attributes:
        answers: To the questions, or to which composition is best.
        findings: In sentences, beyond the answers.
        effects: With the columns of `EFFECT_SCHEMA`.
        duels: With those of `DUEL_SCHEMA`.
        duel_summary: With those of `SUMMARY_SCHEMA`.
        leaders: With those of `LEADER_SCHEMA`.
    """

    answers: list[Answer]
    findings: Findings
    effects: pl.DataFrame
    duels: pl.DataFrame
    duel_summary: pl.DataFrame
    leaders: pl.DataFrame


def analyse(
    questions: Sequence[QuestionConfig],
    rows: pl.DataFrame,
    models: pl.DataFrame,
    convergence: pl.DataFrame,
    missing: Sequence[str] = (),
) -> Analysis:
    """Compute effects, duels and answers. Arms whose backbone has failed count in none of them but the duels.

    Args:
        questions: What was asked before the run.
        rows: One measurement a row (`ROW_SCHEMA`).
        models: A row a single model: `MODEL_LABELS` and the columns of a score.
        convergence: A row an arm (`CONVERGENCE_SCHEMA`).
        missing: Arms that failed before they were scored.

    Raises:
        ConfigError: A column is missing.
    """
    failed = list_failed(convergence)
    effects = estimate_effects(rows, failed=failed)
    duels = match_duels(models)
    summary = summarise_duels(models, duels)
    leaders = find_leaders(models.filter(~pl.col("arm").is_in(failed)))
    answers = answer_questions(questions, rows, models, convergence, missing)
    findings = find_findings(questions, answers, effects, duels, summary, leaders, rows)
    return Analysis(answers, findings, to_frame(effects), duels, summary, leaders)
