"""The pipeline as a library: what a comparison holds, that it can be trusted, and that no work is done twice."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
import pytest

from mzsane.config import AblationConfig, ExecutionConfig, SliceConfig
from mzsane.metrics import NO_SINK
from mzsane.plan import ArmPlan, Stage, find_arm, plan_ablation, plan_comparison_stage
from mzsane.store.artifacts import ArtifactStore
from tests.pipeline.harness import (
    MINI,
    REPOSITORY,
    clean_environment,
    have_equal_rows,
    list_files,
    read_comparison,
    run_library,
    write_config,
)

COLUMNS = (
    "arm composition seed target in_distribution models datasets architectures method sees generator_sees ensemble "
    "finetune_epochs learning_rate images_per_class gradient_steps image_passes seconds n clusters chosen_of "
    "accuracy_mean accuracy_std accuracy_interval loss_mean calibration_mean novelty_mean sampling_novelty_mean "
    "norm_ratio_mean outside_norms_share error_overlap_mean disagreement_mean spread_mean coverage copying_z"
)
TUNED = {"zoo", "transfer", "samples", "selected", "anchors", "decoded_noise", "average", "random_init", "best_model"}
METHODS = TUNED | {"reconstruction", "best_anchor", "layer_noise", "flat_noise", "interpolation", "statistics"}
LABELLED = {"selected", "best_anchor", "best_model"}

ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("prefect", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from pathlib import Path
from mzsane.store.artifacts import ArtifactStore
from mzsane.config import AblationConfig, ExecutionConfig, load_config
from mzsane.metrics import NO_SINK
from mzsane.plan import plan_ablation

config = load_config(AblationConfig, Path(sys.argv[1]))
store = ArtifactStore(sys.argv[2])
for stage in plan_ablation(config):
    stage.make(store, ExecutionConfig(processes=1, chunk_models=3, checkpoint_steps=7), NO_SINK)
assert not {"prefect", "mlflow"} & {name.partition(".")[0] for name in sys.modules}
"""


@pytest.fixture(scope="module")
def rows(reference_run, tiny) -> pl.DataFrame:
    return read_comparison(tiny, reference_run)


def test_comparison_has_the_promised_columns_and_methods(rows):
    assert rows.columns == COLUMNS.split()
    keys = ("arm", "target")
    for _, part in rows.group_by(keys):
        distilled = {"distilled_init"} if part["target"][0] == "digits" else set()  # towards the target's own zoo
        assert set(part["method"]) == METHODS | distilled
    assert set(rows.select(keys).iter_rows()) == {
        (arm, target) for arm in ("digits-s0", "both-s0") for target in ("digits", "font-digits")
    }
    measurement = ["arm", "target", "method", "sees", "ensemble", "finetune_epochs", "gradient_steps"]
    assert not rows.select(measurement).is_duplicated().any()


def test_comparison_counts_the_models_it_averages(rows, tiny):
    drawn, kept, tuned = tiny.sampling.samples, tiny.sampling.keep, tiny.evaluation.finetune_models
    held_out = tiny.tokens.count_split(tiny.zoos[0].models)["test"]
    zero_shot = {
        ("zoo", "none"): held_out,
        ("reconstruction", "none"): held_out,
        ("samples", "none"): drawn,
        ("selected", "labels"): kept,
        ("anchors", "none"): tiny.sampling.anchors,
        **dict.fromkeys(((name, "none") for name in ("decoded_noise", "layer_noise", "flat_noise")), drawn),
        **dict.fromkeys(((name, "labels") for name in ("decoded_noise", "layer_noise", "flat_noise")), kept),
        ("flat_noise", "images"): drawn,
        ("best_anchor", "labels"): 1,
        ("best_model", "labels"): 1,
        ("interpolation", "none"): drawn,
        ("average", "none"): 1,
        ("statistics", "none"): drawn,
        ("random_init", "none"): tiny.evaluation.random_models,
    }
    distilled = {("distilled_init", sees): 2 for sees in ("none", "statistics", "images")}
    # Without a zoo of its own, a target borrows the held-out models of its anchors' zoos.
    for target in ("digits", "font-digits"):
        part = rows.filter(pl.col("target") == target, pl.col("arm") == "digits-s0")
        zero_shot["transfer", "none"] = held_out if target == "digits" else 2 * held_out  # of letters, or of both
        at_once = part.filter(pl.col("finetune_epochs") == 0)
        for size in (1, *tiny.evaluation.ensembles):
            of_size = at_once.filter(ensemble=size)
            assert {(row["method"], row["sees"]): row["n"] for row in of_size.iter_rows(named=True)} == {
                key: count // size
                for key, count in (zero_shot | (distilled if target == "digits" else {})).items()
                if count >= size
            }
        later = part.filter(pl.col("finetune_epochs") == 1)
        assert {row["method"]: row["n"] for row in later.iter_rows(named=True)} == {
            method: min(tuned, zero_shot.get((method, "none"), kept))
            for method in TUNED - {"random_init", "best_model"}
        } | {"random_init": tiny.evaluation.random_models, "best_model": 1}


def test_comparison_admits_every_look_at_labels(rows):
    trained = rows.filter(pl.col("finetune_epochs") > 0)
    assert set(trained["sees"]) == {"labels"}
    assert set(rows.filter(pl.col("method") == "selected")["sees"]) == {"labels"}
    blind = rows.filter(pl.col("sees") == "none")
    assert set(blind["method"]) == METHODS - LABELLED | {"distilled_init"}


def test_comparison_is_plausible(rows):
    for column in ("accuracy_mean", "loss_mean"):
        assert rows[column].is_finite().all()
    assert rows["accuracy_mean"].is_between(0, 1).all()
    assert rows["loss_mean"].min() > 0
    assert (rows["accuracy_std"].is_null() == (rows["n"] == 1)).all()
    known = rows.filter(finetune_epochs=0, ensemble=1).filter(~pl.col("method").is_in(["transfer", "random_init"]))
    assert known.filter(target="digits")["novelty_mean"].is_finite().all()
    assert known.filter(method="best_anchor")["novelty_mean"].max() < 1e-3  # it is a training model
    assert rows.filter(pl.col("finetune_epochs") > 0)["novelty_mean"].is_null().all()
    inside = dict(rows.select("target", "in_distribution").unique().iter_rows())
    assert inside == {"digits": True, "font-digits": False}
    # Trained models know their images, untrained ones do not; training helps both.
    digits = rows.filter(target="digits", arm="digits-s0", ensemble=1)
    accuracy = {(row["method"], row["finetune_epochs"]): row["accuracy_mean"] for row in digits.iter_rows(named=True)}
    assert accuracy["zoo", 0] > 0.5 > 0.25 > accuracy["random_init", 0]
    assert accuracy["random_init", 1] > accuracy["random_init", 0]


def test_comparison_has_size_and_diversity_of_each_arm(rows):
    counts = rows.select("arm", "models", "datasets", "architectures").unique().sort("arm")
    assert counts.rows() == [("both-s0", 4, 2, 1), ("digits-s0", 4, 1, 1)]


def test_comparison_has_the_shares_of_novel_and_accurate_models(reference_run, tiny):
    comparison = reference_run.open(plan_comparison_stage(tiny).work.ref)
    shares = pl.read_parquet(comparison.path("shares.parquet"))
    assert set(shares["target"]) == {"digits"}  # font-digits has no zoo of its own
    plan = ArmPlan(tiny, find_arm(tiny, "both", 0))
    stages = (plan.baselines(tiny.targets[0]), plan.scores(tiny.targets[0]))
    baselines, scores = (pl.read_parquet(reference_run.open(stage.work.ref).path("scores.parquet")) for stage in stages)
    assert baselines.filter(method="zoo", finetune_epochs=0).is_empty()  # arms score it beside their own backbones
    least = scores.filter(method="zoo", ensemble=1, finetune_epochs=0)["accuracy"].quantile(0.25, "linear")
    between = scores.filter(method="interpolation", ensemble=1)
    judged = between.select("accuracy", "novelty", "outside_norms").iter_rows()
    worth = [a >= least and n >= 0.1 and not outside for a, n, outside in judged]
    found = shares.filter(arm="both-s0", method="interpolation", threshold=0.1)["share"].item()
    assert found == sum(worth) / len(worth)


def test_comparison_maps_held_out_checkpoints_of_one_arm_a_diversity(reference_run, tiny):
    comparison = reference_run.open(plan_comparison_stage(tiny).work.ref)
    latents = pl.read_parquet(comparison.path("latents.parquet"))
    held_out = tiny.tokens.count_split(8)["test"] * 2  # epochs
    counts = latents.group_by("arm", "zoo", maintain_order=True).len().rows()
    places = (("digits-s0", "digits"), ("both-s0", "digits"), ("both-s0", "letters"))
    assert counts == [(*place, held_out) for place in places]


def test_baselines_are_the_same_for_all_arms(rows):
    baselines = rows.filter(pl.col("target") == "digits", pl.col("method").is_in(["distilled_init", "random_init"]))
    of_arm = ("arm", "composition", "models", "datasets", "architectures")
    by_arm = [part.drop(of_arm) for _, part in baselines.group_by("arm", maintain_order=True)]
    assert len(by_arm) == 2
    assert by_arm[0].equals(by_arm[1])


def test_json_says_what_parquet_says(reference_run, tiny, rows):
    comparison = reference_run.open(plan_comparison_stage(tiny).work.ref)

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    records = json.loads(comparison.path("comparison.json").read_bytes(), parse_constant=refuse)
    assert records == rows.to_dicts()
    assert [list(record) for record in records[:1]] == [COLUMNS.split()]


def test_second_run_does_no_work(reference_run, tiny):
    def look() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in list_files(reference_run.root)}

    before = look()
    run_library(tiny, reference_run)
    assert look() == before


def test_finished_store_holds_nothing_unfinished(reference_run):
    assert list_files(f"{reference_run.root}/partial") == []
    assert [path for path in list_files(reference_run.root) if path.name.startswith(".")] == []


def test_library_runs_alone_and_gives_the_same_numbers(tiny, rows, tmp_path):
    """In a process without Prefect and MLflow, with other chunks and checkpoints, in a store of its own."""
    path = write_config(tiny, tmp_path / "tiny.yaml")
    root = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(path), str(root)],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert have_equal_rows(read_comparison(tiny, ArtifactStore(str(root))), rows)


def test_other_seed_gives_other_numbers(reference_run, tiny, rows, tmp_path):
    other = tiny.model_copy(update={"seeds": (1,), "compositions": tiny.compositions[:1], "targets": tiny.targets[:1]})
    shutil.copytree(reference_run.root, tmp_path / "store")
    store = ArtifactStore(str(tmp_path / "store"))
    run_library(other, store)
    found = read_comparison(other, store)
    key = ["composition", "target", "method", "sees", "ensemble", "finetune_epochs", "gradient_steps"]
    both = found.join(rows, on=key, suffix="_before", nulls_equal=True)
    assert len(both) == len(found)
    both = both.filter(
        ~pl.col("method").is_in(["best_anchor", "best_model", "transfer"])
    )  # which may be the same models
    moved = both.filter(pl.col("loss_mean") != pl.col("loss_mean_before"))
    # The held-out models of the zoo are the same; what chance has a part in is not.
    still = both.filter(pl.col("method") == "zoo", pl.col("finetune_epochs") == 0)
    assert len(moved) == len(both) - len(still)


def list_works(config: AblationConfig, *kinds: str) -> set[str]:
    return {str(stage.work.ref) for stage in plan_ablation(config) if not kinds or stage.work.kind in kinds}


def test_names_and_order_are_not_part_of_the_work(tiny):
    renamed = tiny.model_copy(
        update={
            "name": "another",
            "zoos": tuple(zoo.model_copy(update={"name": f"my-{zoo.name}"}) for zoo in tiny.zoos),
            "compositions": tuple(
                composition.model_copy(
                    update={
                        "name": f"my-{composition.name}",
                        "slices": tuple(
                            part.model_copy(update={"zoo": f"my-{part.zoo}"}) for part in composition.slices
                        ),
                    }
                )
                for composition in reversed(tiny.compositions)
            ),
            "targets": tuple(
                target.model_copy(update={"name": f"my-{target.name}", "zoo": target.zoo and f"my-{target.zoo}"})
                for target in reversed(tiny.targets)
            ),
        }
    )
    AblationConfig.model_validate(renamed.model_dump(mode="json"))
    fresh = list_works(renamed) - list_works(tiny)
    assert {work.split("/")[0] for work in fresh} == {"comparison"}


def test_changed_composition_keeps_what_it_does_not_touch(tiny):
    digits, both = tiny.compositions
    smaller = both.model_copy(update={"slices": (both.slices[0], SliceConfig(zoo="letters", models=1))})
    changed = tiny.model_copy(update={"compositions": (digits, smaller)})
    shared = ("zoo", "tokens", "baselines")
    assert list_works(changed, *shared) == list_works(tiny, *shared)
    assert len(list_works(changed, "backbone") & list_works(tiny, "backbone")) == 1


class Meanwhile:
    """Does something once, from inside a running stage: what another process may do at that time."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def progress(self, done: int, total: int, note: str = "") -> None:
        if done > 0 and self.action:
            action, self.action = self.action, None
            action()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Ignore metrics."""


@pytest.mark.parametrize("kind", ["zoo", "tokens", "backbone", "samples", "scores"])
def test_two_at_once_do_not_disturb_each_other(kind, tmp_path):
    """Another writer starts, finishes and tidies up while this one is in the middle of the same stage."""
    config = AblationConfig.model_validate(MINI)
    store = ArtifactStore(str(tmp_path / "store"))
    execution = ExecutionConfig(processes=1, chunk_models=2, checkpoint_steps=10)

    def run(stage: Stage) -> None:
        stage.make(store, execution, NO_SINK)

    for stage in plan_ablation(config):
        if stage.work.kind != kind:
            run(stage)
            continue
        sink = Meanwhile(lambda stage=stage: run(stage))
        made = stage.make(store, execution, sink)
        assert sink.action is None
        assert made.ref == stage.work.ref
        for name in made.manifest.files:
            made.path(name)
        break
    files = list_files(f"{store.root}/{made.ref}")
    assert {path.name for path in files} == {entry.path for entry in made.manifest.files.values()} | {"manifest.json"}
    assert list_files(f"{store.root}/partial") == []
