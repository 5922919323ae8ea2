"""An answer is a sentence that a person can repeat: the estimate, its interval, and what that excludes."""

import math

import numpy as np
import polars as pl
import pytest

from mzsane.config import QuestionConfig
from mzsane.report.analysis import analyse
from mzsane.report.answers import Answer, answer_questions
from mzsane.report.statistics.convergence import CONVERGENCE_SCHEMA
from mzsane.report.statistics.effects import estimate_effects
from tests.report.made_models import make_models

NOTHING = pl.DataFrame(schema=CONVERGENCE_SCHEMA)
NO_MODELS = pl.DataFrame(make_models("samples", [0.5])).clear()


@pytest.fixture
def ablate(row):
    """The maker of rows of twelve compositions of two sizes on one target, out of distribution, with three seeds."""

    def ablate(doubling, noise):
        random = np.random.default_rng(0)
        return pl.DataFrame(
            [
                row(
                    f"c{number}-{models}",
                    "t",
                    "samples",
                    0.5 + doubling * math.log2(models) + luck,
                    seed=seed,
                    inside=False,
                    models=models,
                    novelty=0.2 + random.uniform(0, 0.1),
                )
                for models in (25, 50)
                for number in range(6)
                for luck in [random.normal(0, noise)]
                for seed in range(3)
            ]
        )

    return ablate


def ask(rows, convergence=NOTHING, models=NO_MODELS, **question):
    asked = {"text": "Are more models better?", "factor": "models", "in_distribution": False} | question
    return answer_questions([QuestionConfig(**asked)], rows, models, convergence)


@pytest.mark.parametrize(
    ("doubling", "noise", "smallest", "end"),
    [
        (0.03, 0.002, 1, "12 compositions): it helps."),
        (-0.03, 0.002, 1, "12 compositions): it harms."),
        (0.005, 0.001, 1, "it helps, but by less than the 1 point that would be worth having."),
        (0.0, 0.002, 1, "no effect can be told from chance, and an effect of 1 point or more is excluded."),
        (0.0, 0.05, 1.5, "no effect can be told from chance, but an effect of 1.5 points or more is not excluded."),
        (0.0, 0.05, 0, "no effect can be told from chance."),
    ],
)
def test_the_sentence_says_what_the_interval_does(ablate, doubling, noise, smallest, end):
    (answer,) = ask(ablate(doubling, noise), smallest=smallest)
    start = "Doubling the models changes the zero-shot accuracy of samples out of distribution by "
    assert answer.sentence.startswith(start)
    assert answer.sentence.endswith(end)
    assert f"points (95 %: {100 * answer.low:+.1f} to {100 * answer.high:+.1f}, " in answer.sentence
    assert answer.verdict == {"helps": "win", "harms": "loss"}.get(end.split("it ")[-1][:5], "tie")


def test_the_effect_given_novelty_stands_beside_the_total_one(ablate):
    rows = ablate(0.03, 0.002)
    (answer,) = ask(rows)
    total, adjusted = (effect for effect in estimate_effects(rows) if not effect.in_distribution)
    assert answer.estimate == total.estimate
    (note,) = answer.notes
    assert note.startswith("Another question is the direct effect of doubling the models, given novelty, which is a ")
    assert f"consequence of it: {100 * adjusted.estimate:+.1f} points" in note


def test_both_places_are_answered_apart_where_the_question_leaves_that_open(ablate):
    inside, outside = ask(ablate(0.03, 0.002), in_distribution=None)
    assert inside.sentence.endswith("in distribution cannot be estimated: no target is scored there.")
    assert (inside.verdict, outside.verdict) == ("untested", "win")


def test_one_seed_of_two_compositions_is_not_told_from_chance(ablate):
    rows = ablate(0.03, 0.0).filter(pl.col("composition").is_in(["c0-25", "c0-50"]), pl.col("seed") == 0)
    (answer,) = ask(rows)
    assert answer.sentence.endswith(
        "by +3.0 points (no interval: fewer than three independent units): it cannot be told from chance."
    )


def converge(failed=()):
    return pl.DataFrame(
        [
            {
                "arm": f"c{number}-{models}-s{seed}",
                "composition": f"c{number}-{models}",
                "seed": seed,
                "steps": 600,
                "passes": 2400 / models,
                "val_r2": 0.7,
                "gain_last_quarter": 0.01,
                "reconstruction_loss_of_accuracy": 0.6,
                "failed": f"c{number}-{models}-s{seed}" in failed,
            }
            for models in (25, 50)
            for number in range(6)
            for seed in range(3)
        ],
        schema=CONVERGENCE_SCHEMA,
    )


def test_convergence_stands_beside_the_effect(ablate):
    (answer,) = ask(ablate(0.03, 0.002), converge())
    assert answer.notes[0].startswith(
        "How far backbones were trained: those of 25 models saw each checkpoint 96 times, reached a validation R2 of "
        "0.70, gained +0.010 of it in the last quarter of training; those of 50 models saw each checkpoint 48 times"
    )


def test_a_failed_backbone_is_the_first_sentence_and_counts_in_no_effect(ablate):
    rows = ablate(0.03, 0.0)
    rows = rows.with_columns(
        accuracy_mean=pl.when(pl.col("arm") == "c3-50-s1").then(0.1).otherwise(pl.col("accuracy_mean"))
    )
    (answer,) = ask(rows, converge(["c3-50-s1"]))
    assert answer.sentence.startswith("The backbone of c3-50-s1 has failed")
    assert "its numbers say nothing of what a zoo should be made of. Doubling the models" in answer.sentence
    assert answer.estimate == pytest.approx(0.03)
    assert any(note.startswith("With the failed backbones it would be -0.") for note in answer.notes)


def test_a_contrast_is_paired_over_seeds_with_their_means_over_targets():
    means = {"both": ((0.80, 0.62), (0.81, 0.60), (0.83, 0.61)), "one": ((0.78, 0.60), (0.80, 0.57), (0.80, 0.60))}
    models = pl.DataFrame(
        [
            model
            for name, of in means.items()
            for seed, of_seed in enumerate(of)
            for target, mean in zip(("t", "u"), of_seed, strict=True)
            for model in make_models("samples", [mean - 0.1, mean + 0.1], name, target, seed)
        ],
        infer_schema_length=None,
    )
    question = QuestionConfig(text="Are two better than one?", contrast=("both", "one"), smallest=5)
    (answer,) = answer_questions([question], pl.DataFrame(), models, NOTHING)
    half = 4.302653 * np.std([0.02, 0.02, 0.02], ddof=1) / math.sqrt(3)
    assert answer.estimate == pytest.approx(0.02)
    assert answer.low == pytest.approx(0.02 - half)
    assert answer.sentence.endswith(
        "3 seeds): both is better, but by less than the 5 points that would be worth having."
    )
    assert answer.sentence.startswith("both instead of one changes the zero-shot accuracy of samples by +2.0 points")
    nothing = QuestionConfig(text="?", contrast=("both", "one"), targets=("w",))
    (lost,) = answer_questions([nothing], pl.DataFrame(), models, NOTHING)
    assert (lost.estimate, lost.verdict) == (None, "untested")


def test_without_a_question_a_winner_is_named_only_where_it_is_told_from_the_next(rows):
    def lead(names):
        return [
            model
            for target, gap in names.items()
            for name, mean in (("a", 0.8 + gap), ("b", 0.8))
            for seed in range(3)
            for model in make_models("samples", [mean + 0.01 * seed * (name == "a")] * 2, name, target, seed)
        ]

    models = pl.DataFrame(lead({"t": 0.1, "u": 0.001}), infer_schema_length=None)
    (answer,) = answer_questions([], rows, models, NOTHING)
    assert answer.question == "What should the zoo be made of?"
    assert "a (0.910) is best on t, by +11.0 points before b (95 %:" in answer.sentence
    assert "on u a (0.811) cannot be told from b: +1.1 points" in answer.sentence
    many = pl.DataFrame(lead({"t": 0.1, "u": 0.001, "v": 0.2, "w": 0.0}), infer_schema_length=None)
    (answer,) = answer_questions([], rows, many, NOTHING)
    assert answer.sentence.endswith("can be told from the next on 2 of 4 targets: a on t and v.")


def test_an_answer_survives_json(ablate):
    (answer,) = ask(ablate(0.03, 0.002))
    assert Answer.from_json(answer.to_json()) == answer


def test_what_was_not_asked_is_called_exploratory(ablate):
    rows = ablate(0.03, 0.002)
    models = pl.DataFrame(
        [
            model
            for name in ("c0-25", "c0-50")
            for seed in range(3)
            for method, mean in (("samples", 0.7 + 0.01 * seed), ("layer_noise", 0.6))
            for model in make_models(method, [mean] * 3, name, seed=seed, inside=False)
        ],
        infer_schema_length=None,
    )
    asked = QuestionConfig(text="Are more models better?", factor="models", in_distribution=False)
    found = analyse([asked], rows, models, NOTHING)
    assert found.findings.overall[0] == found.answers[0].text
    rest = found.findings.overall[1:]
    assert rest
    assert all(text.startswith("Exploratory: ") for text in rest)
    assert not any("Doubling the models" in text for text in rest)
    assert any("Doubling the models" in text for text in analyse([], rows, models, NOTHING).findings.overall[1:])
    (duels,) = [text for text in rest if "opponent" in text]
    assert "zero-shot and out of distribution, are ahead of 1 of 1 opponent that saw and paid no more" in duels
    assert "the strongest that is no copy is layer_noise (sees none): +11.0 points" in duels
