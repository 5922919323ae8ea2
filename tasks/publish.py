"""Show results on Prefect's pages: a comparison's table and figure, a zoo's card."""

import base64
import os
import re
from typing import Any

import polars as pl
from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from mzsane.addresses import show_address
from mzsane.report.compare import read_answers
from mzsane.report.table import comparison_markdown
from mzsane.store.artifacts import Artifact

# What people look for first: the page cuts off what does not fit.
_TABLE_COLUMNS = (
    *("arm", "target", "method", "sees", "finetune_epochs", "accuracy_mean", "accuracy_interval", "n"),
    *("ensemble", "chosen_of", "in_distribution", "loss_mean", "composition", "seed"),
)

_FIGURES = {
    "effects": "Effects of size and diversity on the accuracy of samples",
    "heatmap": "Accuracy of samples by composition and target",
    "accuracy": "Accuracy by arm and target",
    "novelty": "Accuracy against novelty by arm and target",
    "shares": "Share of models that are novel and as accurate as the zoo",
    "finetuning": "Accuracy while fine-tuning",
    "latents": "Latents of held-out models by zoo and by accuracy",
    "probes": "What the latents tell of a model",
}


def show_comparison(name: str, comparison: Artifact, tracking_run: str | None) -> None:
    """Create the artifacts of an ablation's flow run.

    Args:
        name: the ablation's name.
        comparison: the COMPARISON artifact.
        tracking_run: its MLflow run, if it is tracked.
    """
    rows = pl.read_parquet(comparison.path("comparison.parquet"))
    create_table_artifact(
        table=_list_rows(rows),
        key="comparison",
        description=f"Every measurement of ablation {name}; {comparison.address}",
    )
    answers, findings = read_answers(comparison)
    for sentence in findings.overall:
        get_run_logger().info(sentence)
    duels, leaders = (pl.read_parquet(comparison.path(f"{name}.parquet")) for name in ("duels", "leaders"))
    listed = "\n".join(f"- {sentence}" for sentence in findings.overall if sentence not in {a.text for a in answers})
    places = [f"Artifact: `{comparison.address}`"]
    if tracking_run is not None:
        places.append(f"MLflow: {show_address(os.environ['MLFLOW_TRACKING_URI'])}, run `{tracking_run}`")
    create_markdown_artifact(
        markdown="\n\n".join((f"# {name}", comparison_markdown(answers, rows, duels, leaders), listed, *places)),
        key="findings",
        description=f"What ablation {name} found",
    )
    for figure, description in _FIGURES.items():
        if f"{figure}.png" in comparison.manifest.files:  # only what has something to say was drawn
            _show_image(comparison, f"{figure}.png", figure, description)


def _list_rows(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the measurements for a page, which would leave a null blank."""
    place = pl.col("in_distribution").cast(pl.String).fill_null("not known")
    return rows.select(_TABLE_COLUMNS).with_columns(pl.col(pl.Float64).round(4), place).to_dicts()


def show_card(name: str, zoo: Artifact) -> None:
    """Create the artifacts of a zoo's flow run: its card and the card's figures."""
    key = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    create_markdown_artifact(
        markdown=f"# {name}\n\n{zoo.path('card.md').read_text()}\n\nArtifact: `{zoo.address}`",
        key=f"card-{key}",
        description=f"What is in zoo {name}",
    )
    for figure in zoo.manifest.files:
        if figure.startswith("card-"):
            what = figure.removeprefix("card-").removesuffix(".png")
            _show_image(zoo, figure, f"card-{key}-{what}", f"Zoo {name}: {what}")


def _show_image(artifact: Artifact, file: str, key: str, description: str) -> None:
    picture = base64.b64encode(artifact.path(file).read_bytes()).decode()
    create_image_artifact(image_url=f"data:image/png;base64,{picture}", key=key, description=description)
