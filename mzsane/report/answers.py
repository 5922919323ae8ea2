"""The answers to what an ablation asked: one sentence a person can repeat, with its interval."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import polars as pl

from mzsane.config import QuestionConfig
from mzsane.report.cells import join_names
from mzsane.report.statistics.convergence import describe_convergence, describe_failed, list_failed
from mzsane.report.statistics.duels import classify_difference, describe_difference
from mzsane.report.statistics.effects import ADJUSTED, CHANGES, Effect, estimate_effects, name_place
from mzsane.report.statistics.leaders import find_contrast, find_leaders

DEFAULT_QUESTION = "What should the zoo be made of?"
_MOST_TARGETS = 3  # that one sentence compares compositions on


@dataclass(frozen=True)
class Answer:
    """What the measurements say to a question.

    Attributes:
        question: The question in words.
        sentence: The answer with its interval; before it, in a sentence of its own, which backbones have failed.
        estimate: The effect or difference, of accuracies from 0 to 1; None if there is none, or several.
        low: Lower end of its 95 % interval; None without one.
        high: Upper end.
        verdict: `win` (the change helps, the first composition is better), `tie`, `loss` or `untested`.
        notes: What stands beside it: how far backbones were trained, the effect given novelty.
    """

    question: str
    sentence: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = "untested"
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The sentence and what stands beside it."""
        return " ".join((self.sentence, *self.notes))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return asdict(self) | {"notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Answer":
        """Return the answer that became this data."""
        return cls(**(data | {"notes": tuple(data["notes"])}))


def answer_questions(
    questions: Sequence[QuestionConfig],
    rows: pl.DataFrame,
    models: pl.DataFrame,
    convergence: pl.DataFrame,
    missing: Sequence[str] = (),
) -> list[Answer]:
    """Answer the questions of an ablation, or, if there are none, which composition is best.

    Arms whose backbone has failed are left out; what an effect would be with them is said in a note.

    Args:
        questions: What was asked before the run.
        rows: One measurement a row (`ROW_SCHEMA`).
        models: A row a single model (`models.parquet`).
        convergence: A row an arm (`CONVERGENCE_SCHEMA`).
        missing: Arms that failed before they were scored.

    Returns:
        One answer a question; two, in and out of distribution, for a factor where the question leaves that open.
    """
    failed = list_failed(convergence)
    sound = models.filter(~pl.col("arm").is_in(failed))
    answers: list[Answer] = []
    for question in questions:
        if question.factor is not None:
            answers += _answer_factor(question, rows, convergence, failed)
        else:
            answers.append(_answer_contrast(question, sound, convergence))
    warning = describe_gaps(missing, convergence)
    answers = answers or [name_best(find_leaders(sound))]
    return [replace(answer, sentence=f"{warning} {answer.sentence}".strip()) for answer in answers]


def describe_gaps(missing: Sequence[str], convergence: pl.DataFrame) -> str:
    """Say which arms are missing and which backbones have failed, before all else; empty if none."""
    sentences = [describe_failed(convergence)] if len(convergence) else []
    if missing:
        arms = f"{len(missing)} of {len(missing) + len(convergence)} arms {'is' if len(missing) == 1 else 'are'}"
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        sentences.insert(0, f"{arms} missing ({', '.join(missing[:3])}{more}): all that follows is of the others.")
    return " ".join(filter(None, sentences))


def format_points(change: float) -> str:
    """Return a change of accuracy in percentage points, such as `+1.2`."""
    points = 100 * change
    return f"{points:+.1f}" if abs(points) >= 0.095 else f"{points:+.2f}".replace("-0.00", "+0.00")


def format_interval(low: float | None, high: float | None, units: int, over: str) -> str:
    """Return `(95 %: -0.1 to +0.9, 21 compositions)`, or that there is none."""
    if low is None or high is None:
        return "(no interval: fewer than three independent units)"
    return f"(95 %: {format_points(low)} to {format_points(high)}, {units} {over})"


def name_accuracy(method: str, epochs: int) -> str:
    """Return whose accuracy it is: `the zero-shot accuracy of samples`."""
    if epochs == 0:
        return f"the zero-shot accuracy of {method}"
    return f"the accuracy of {method} after {epochs} epoch{'s' * (epochs > 1)} of fine-tuning"


def describe_effect(effect: Effect, method: str = "samples", where: str = "", smallest: float = 0.0) -> str:
    """Say in a sentence what a factor does in all.

    Args:
        effect: A total effect.
        method: Whose accuracy it is about.
        where: Which targets, in words; of all if empty.
        smallest: The smallest effect worth having, in percentage points; 0 if that was not asked.
    """
    what = f"{name_accuracy(method, effect.epochs)} {name_place(effect.in_distribution)}{where}"
    change = CHANGES[effect.factor]
    if effect.estimate is None:
        return f"What {change} does to {what} cannot be estimated: {effect.reason}."
    interval = format_interval(effect.low, effect.high, effect.units, effect.over)
    text = f"{change.capitalize()} changes {what} by {format_points(effect.estimate)} points {interval}: "
    text += "it cannot be told from chance" if effect.low is None else effect.verdict
    return f"{text}{_weigh(effect.low, effect.high, smallest)}."


def describe_adjusted(effect: Effect) -> str:
    """Say in a sentence that follows the total effect what the adjusted one is."""
    if effect.estimate is None:
        return f"The {effect.label}, cannot be estimated: {effect.reason}."
    interval = format_interval(effect.low, effect.high, effect.units, effect.over)
    return (
        f"Another question is the {effect.label}, which is a consequence of it: "
        f"{format_points(effect.estimate)} points {interval}."
    )


def describe_leader(leader: dict[str, Any]) -> str:
    """Say in a clause which composition is best on a target, and whether that is told from the next."""
    best, target = f"{leader['best']} ({leader['accuracy']:.3f})", leader["target"]
    if leader["next"] is None:
        return f"{target} has been tried with {best} alone"
    lead = f"{format_points(leader['difference'])} points"
    interval = format_interval(leader["low"], leader["high"], leader["units"], leader["unit_kind"])
    if leader["verdict"] == "win":
        return f"{best} is best on {target}, by {lead} before {leader['next']} {interval}"
    return f"on {target} {best} cannot be told from {leader['next']}: {lead} {interval}"


def name_best(leaders: pl.DataFrame) -> Answer:
    """Answer what the zoo should be made of, by the best composition on each target (`LEADER_SCHEMA`)."""
    leaders = leaders.filter(finetune_epochs=0)
    methods = [name for name in ("samples", "selected") if name in leaders["method"]]
    if not methods:
        return Answer(DEFAULT_QUESTION, "There is no finite accuracy of samples to compare.")
    found = leaders.filter(method=methods[0]).to_dicts()
    by = f"By {name_accuracy(methods[0], 0)}"
    if len(found) <= _MOST_TARGETS:
        answer = Answer(DEFAULT_QUESTION, f"{by} {'; '.join(describe_leader(leader) for leader in found)}.")
        if len(found) > 1:
            return answer
        lead = found[0]
        return replace(answer, estimate=lead["difference"], low=lead["low"], high=lead["high"], verdict=lead["verdict"])
    won: dict[str, list[str]] = {}
    for leader in found:
        if leader["verdict"] == "win":
            won.setdefault(leader["best"], []).append(leader["target"])
    names = [f"{name} on {join_names(targets)}" for name, targets in won.items()]
    shown = f": {join_names(names[:3])}" if names else ""
    count = sum(map(len, won.values()))
    sentence = f"{by} one composition can be told from the next on {count} of {len(found)} targets{shown}."
    return Answer(DEFAULT_QUESTION, sentence)


def _answer_factor(
    question: QuestionConfig, rows: pl.DataFrame, convergence: pl.DataFrame, failed: Sequence[str]
) -> list[Answer]:
    chosen = {"method": question.method, "epochs": question.epochs, "targets": question.targets}
    effects = _pick(question, estimate_effects(rows, failed=failed, **chosen))  # type: ignore[arg-type]
    with_failed = _pick(question, estimate_effects(rows, **chosen)) if failed else []  # type: ignore[arg-type]
    levels = rows.select("composition", pl.col(str(question.factor)).alias("level")).drop_nulls().unique().sort("level")
    trained = _describe_levels(levels, str(question.factor), convergence)
    answers: list[Answer] = []
    for effect in effects:
        if effect.kind == ADJUSTED:
            answers[-1] = replace(answers[-1], notes=(*answers[-1].notes, describe_adjusted(effect)))
            continue
        where = f" on {join_names(question.targets)}" if question.targets else ""
        notes = [trained] if trained and not answers else []  # once a question
        for other in with_failed:
            if (other.kind, other.in_distribution) == (effect.kind, effect.in_distribution) and other.estimate:
                notes.append(f"With the failed backbones it would be {format_points(other.estimate)} points.")
        answers.append(
            Answer(
                question.text,
                describe_effect(effect, question.method, where, question.smallest),
                effect.estimate,
                effect.low,
                effect.high,
                classify_difference(effect.low, effect.high),
                notes=tuple(notes),
            )
        )
    return answers


def _pick(question: QuestionConfig, effects: Sequence[Effect]) -> list[Effect]:
    places = (True, False) if question.in_distribution is None else (question.in_distribution,)
    return [effect for effect in effects if effect.factor == question.factor and effect.in_distribution in places]


def _describe_levels(levels: pl.DataFrame, factor: str, convergence: pl.DataFrame) -> str:
    """Say how far the backbones of the least and of the most of a factor were trained."""
    parts = []
    for level in dict.fromkeys((levels["level"][0], levels["level"][-1])):
        text = describe_convergence(convergence, levels.filter(level=level)["composition"])
        if text:
            parts.append(f"those of {level} {factor if level != 1 else factor.removesuffix('s')} {text}")
    return f"How far backbones were trained: {'; '.join(parts)}." if parts else ""


def _answer_contrast(question: QuestionConfig, models: pl.DataFrame, convergence: pl.DataFrame) -> Answer:
    assert question.contrast is not None
    first, second = question.contrast
    where = "" if question.in_distribution is None else f" {name_place(question.in_distribution)}"
    where += f" on {join_names(question.targets)}" if question.targets else ""
    what = f"{name_accuracy(question.method, question.epochs)}{where}"
    compared = find_contrast(
        models, question.contrast, question.method, question.epochs, question.in_distribution, question.targets
    )
    if compared is None:
        return Answer(question.text, f"{first} and {second} cannot be compared by {what}: they share no target.")
    difference = describe_difference(compared[0])
    low, high = difference["low"], difference["high"]
    words = {"win": f"{first} is better", "loss": f"{second} is better", "tie": "no difference can be told from chance"}
    sentence = (
        f"{first} instead of {second} changes {what} by {format_points(difference['difference'])} points "
        f"{format_interval(low, high, difference['units'], compared[1])}: "
        f"{words.get(difference['verdict'], 'it cannot be told from chance')}{_weigh(low, high, question.smallest)}."
    )
    trained = [(name, describe_convergence(convergence, [name])) for name in question.contrast]
    parts = [f"that of {name} {text}" for name, text in trained if text]
    notes = (f"How far backbones were trained: {'; '.join(parts)}.",) if parts else ()
    return Answer(question.text, sentence, difference["difference"], low, high, difference["verdict"], notes=notes)


def _weigh(low: float | None, high: float | None, smallest: float) -> str:
    """Say what an interval excludes of the effects that are worth having."""
    if low is None or high is None or smallest == 0:
        return ""
    size = f"{smallest:g} point{'s' * (smallest != 1)}"
    loss, gain = 100 * low <= -smallest, 100 * high >= smallest
    if low > 0 or high < 0:
        return "" if loss or gain else f", but by less than the {size} that would be worth having"
    if not loss and not gain:
        return f", and an effect of {size} or more is excluded"
    return f", but {'an effect' if loss and gain else 'a gain' if gain else 'a loss'} of {size} or more is not excluded"
