"""Which normalisation of the reconstruction error? Tunes the rates of the preset `normalisation`, draws its result.

`MZSANE_ROOT=... python -m experiments.normalisation --tune zoos` trains each mode with each rate on two zoos, with a
seed that the preset does not have, and prints how well validation models are reconstructed; `--tune architectures` does
so on two architectures. The best rates stand in the preset.
After `mzsane ablate normalisation`, `--plot FILE [--json FILE]` draws and prints its result on validation
models and validation images; with `--final` that of the targets on test models and test images.
"""

import argparse
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.measuring import make_row, report_rows
from flows.presets import load_preset
from mzsane.appearance import COLORS, INK, create_figure, style_axes, to_png
from mzsane.backbone.pretrain import pretrain
from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.plan import Arm, ArmPlan, plan_comparison_stage, plan_tokens_stage, plan_zoo_stage
from mzsane.store.artifacts import ArtifactStore
from tasks.terminal import TerminalSink

MODES = ("token", "layer", "window", "batch", "none")
RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
TUNING_SEED = 100
PANELS = {"one": "one zoo", "zoos": "two zoos", "architectures": "two architectures"}


def tune(config: AblationConfig, panel: str, store: ArtifactStore) -> list[dict[str, Any]]:
    """Train each mode with each rate on one composition."""
    sink, rows = TerminalSink(), []
    for zoo in config.all_zoos:
        for stage in (plan_zoo_stage(zoo), plan_tokens_stage(config.tokens, zoo)):
            stage.run(store, ExecutionConfig(), sink)
    compositions = {composition.name: composition for composition in config.compositions}
    for mode in MODES:
        composition = compositions[f"{panel}-{mode}"]
        arm = ArmPlan(config, Arm(composition, TUNING_SEED))
        for rate in RATES:
            settings = config.find_backbone(composition).model_copy(update={"learning_rate": rate})
            backbone = pretrain(settings, arm.slices, TUNING_SEED, store, sink=sink)
            last = read_last(pl.read_parquet(backbone.path("curves.parquet")))
            for what in ("val_r2", "val_accuracy"):
                value = sum(last[f"{what}/{number}"] for number in range(len(arm.slices))) / len(arm.slices)
                rows.append(make_row(f"{mode}, rate {rate}: {what}, mean of the zoos", value, "0 to 1"))
                print(f"{rows[-1]['name']}: {value:.4f}", flush=True)
    return rows


def read_last(curves: pl.DataFrame) -> dict[str, float]:
    """Return the last value of each metric."""
    last = curves.sort("step").group_by("metric").last()
    return dict(zip(last["metric"], last["value"], strict=True))


def collect(config: AblationConfig, store: ArtifactStore, final: bool) -> pl.DataFrame:
    """Return the accuracy of reconstructed models: composition, mode, contrast, seed, zoo, accuracy.

    On validation models and images; where it is final, of zoos that are targets on test models and test images.
    """
    comparison = store.open(plan_comparison_stage(config).work.ref)
    scores = pl.read_parquet(comparison.path("comparison.parquet"))
    curves = pl.read_parquet(comparison.path("curves.parquet"))
    known = [target.zoo for target in config.targets] if final else []
    tested = scores.filter(method="reconstruction", finetune_epochs=0, in_distribution=True)
    tested = tested.select("composition", "seed", zoo="target", accuracy="accuracy_mean")
    validated = curves.filter(pl.col("metric").str.starts_with("val_accuracy/")).sort("step")
    validated = validated.group_by("composition", "seed", "metric").last()
    validated = validated.select(
        "composition", "seed", zoo=pl.col("metric").str.split("/").list.last(), accuracy=pl.col("value")
    )
    tested = tested.filter(pl.col("zoo").is_in(known))
    found = pl.concat([tested, validated.filter(~pl.col("zoo").is_in(known))])
    parts = pl.col("composition").str.split("-")
    return found.with_columns(
        panel=parts.list.get(0), mode=parts.list.get(1), contrast=~pl.col("composition").str.ends_with("-g0")
    )


def draw(found: pl.DataFrame, final: bool) -> bytes:
    """Draw mean and range over seeds: a panel a composition, a colour a zoo, hollow without contrast."""
    tested = "Digits and letters: test models on test images; digits-mlp: v" if final else "V"
    figure = create_figure(
        13.0,
        5.2,
        "Reconstruction accuracy by normalisation of the error",
        "Mean and range over three seeds. Filled: contrast of the same share in all modes; hollow: no contrast. "
        f"{tested}alidation models on validation images.",
    )
    zoos = sorted(found["zoo"].unique())
    for axes, (panel, title) in zip(figure.subplots(1, 3, sharey=True), PANELS.items(), strict=True):
        style_axes(axes, title)
        shown = found.filter(panel=panel)
        series = [(zoo, contrast) for zoo in zoos for contrast in (True, False) if zoo in shown["zoo"]]
        for place, (zoo, contrast) in enumerate(series):
            for at, mode in enumerate(MODES):
                values = 100 * shown.filter(zoo=zoo, contrast=contrast, mode=mode)["accuracy"].to_numpy()
                color = COLORS[zoos.index(zoo)]
                axes.errorbar(
                    at + 0.13 * (place - (len(series) - 1) / 2),
                    values.mean(),
                    [[values.mean() - values.min()], [values.max() - values.mean()]],
                    fmt="o",
                    color=color,
                    markerfacecolor=color if contrast else "white",
                    label=f"{zoo}{'' if contrast else ', no contrast'}" if at == 0 else None,
                )
        axes.set_xticks(range(len(MODES)), MODES)
        axes.set_ylabel("accuracy (%)", color=INK)
        axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    return to_png(figure)


def main() -> int:
    """Tune or draw, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", choices=PANELS, metavar="PANEL", help=", ".join(PANELS))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--final", action="store_true", help="read the scores on test images: once, for the README")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config, store = load_preset("normalisation"), ArtifactStore.from_environment()
    if options.tune:
        tuned = tune(config, options.tune, store)
        return report_rows([row | {"split": "val"} for row in tuned], options.json)
    found = collect(config, store, options.final)
    if options.plot:
        options.plot.write_bytes(draw(found, options.final))
    groups = found.group_by("panel", "zoo", "contrast", "mode", maintain_order=True)
    means = groups.agg(mean=pl.col("accuracy").mean(), spread=pl.col("accuracy").std()).sort("panel", "zoo", "contrast")
    rows = []
    for panel, zoo, contrast, mode, mean, spread in means.rows():
        name = f"{PANELS[panel]}, {zoo}, {mode}{'' if contrast else ', no contrast'}"
        rows.append(make_row(f"{name}: reconstruction accuracy", 100 * mean, "%"))
        rows.append(make_row(f"{name}: deviation over seeds", 100 * spread, "points"))
    split = "test" if options.final else "val"
    return report_rows([row | {"split": split} for row in rows], options.json)


if __name__ == "__main__":
    raise SystemExit(main())
