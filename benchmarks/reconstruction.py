"""How well backbones reconstruct held-out models, over latents per weight.

`MZSANE_ROOT=... python benchmarks/reconstruction.py [ZOO ...] [--json FILE] [--plot FILE] [--set KEY=VALUE ...]`

For each zoo (a preset of `flows/presets/zoos`, or a path) and each latent size, without and with the behavioural loss:
the accuracy that reconstruction costs, how often reconstruction and original agree, and R2, of the test split's models
on test images, which nothing was trained or chosen on. With the behavioural loss twice: the latents are the encoder's,
or refined from there (`mzsane.backbone.refinement`), for which unlabelled training images are seen. Zoos, tokens and
backbones are artifacts: what is there is used.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import make_row, report_rows

from flows.presets import load_zoo_preset
from mzsane.appearance import COLORS, INK, create_figure, style_axes, to_png
from mzsane.artifacts import Artifact, ArtifactStore
from mzsane.backbone.behaviour import open_network_behaviour
from mzsane.backbone.inference import count_latents, decode_models, encode_models, load_backbone
from mzsane.backbone.judge import Judge, read_activations
from mzsane.backbone.loss import explained_variance
from mzsane.backbone.pretrain import pretrain
from mzsane.backbone.refinement import refine_latents
from mzsane.config import AnyZooConfig, BackboneConfig, ExecutionConfig, SliceConfig, TokensConfig
from mzsane.plan import plan_zoo_stage
from mzsane.tokens.build import build_tokens
from mzsane.tokens.composition import TokenSlice
from mzsane.tokens.store import read_tokens
from tasks.terminal import TerminalSink

BEHAVIOURS = (0.0, 0.3)
COMMON: dict[str, Any] = {"preset": "tiny", "d_model": 128, "layers": 3, "learning_rate": 2e-3}
# Chosen on validation models, but for the steps of LINEAR, which they do not tell from half as many. Where a latent
# is nearly as large as a token, exactness counts, and narrow tokens win. Where it is not, tokens of 67 (three to a
# row of the second convolution) are reconstructed best, without decay the backbone learns the few models by heart,
# and a linear code beside it keeps more.
WIDE = {"token_dim": 51, "steps": 1000, "batch_size": 32}
NARROW = {"token_dim": 67, "steps": 2000, "batch_size": 8, "weight_decay": 0.5, "noise": 0.0}
LINEAR = NARROW | {"steps": 4000, "weight_decay": 1.0, "shortcut": True}
RECIPES = {48: WIDE, 29: LINEAR, 13: NARROW, 7: NARROW}  # by latents a token; 0.98, 0.66, 0.32, 0.17 a weight
IMAGES = 10_000
GAP_BARS = {48: 0.3, 29: 2.0}  # points
REFINED = ", refined"


def train(
    zoo: AnyZooConfig,
    settings: dict[str, Any],
    seed: int,
    store: ArtifactStore,
    models: int | None = None,
    last_epochs: int | None = None,
) -> tuple[Artifact, Artifact]:
    """Make a zoo's tokens and a backbone on so many of their training models and last epochs, or find them made.

    Settings are those of the backbone, and of the tokens.
    """
    sink, settings = TerminalSink(), dict(settings)
    of_tokens = {name: settings.pop(name) for name in TokensConfig.model_fields if name in settings}
    plan_zoo_stage(zoo).run(store, ExecutionConfig(), sink)
    tokens = build_tokens(TokensConfig(barrier_pairs=0, **of_tokens), zoo, store, sink=sink)
    models = models or read_tokens(tokens).index.filter(split="train")["model"].n_unique()
    slices = [TokenSlice(tokens.ref, SliceConfig(zoo=zoo.name, models=models, last_epochs=last_epochs))]
    return tokens, pretrain(BackboneConfig.model_validate(settings), slices, seed, store, sink=sink)


def measure(tokens: Artifact, backbone: Artifact, refined: bool) -> dict[str, float]:
    """Compare the test models at their last epoch with their reconstructions, on test images."""
    table = read_tokens(tokens)
    rows = table.pick_rows("test", last_epochs=1)
    flat_BP = table.load(rows)
    model, config = load_backbone(backbone)
    latents_BTL = encode_models(model, table.layout, flat_BP, config.window)
    if refined:
        behaviour = open_network_behaviour(config, table, "the zoo")
        latents_BTL = refine_latents(model, config, table.layout, flat_BP, latents_BTL, behaviour)
    decoded_BP = decode_models(model, table.layout, latents_BTL, config.window)
    judge = Judge(table, "test", IMAGES)
    originals, decoded = (judge.classify(flat, read_activations(table, rows)) for flat in (flat_BP, decoded_BP))
    return {
        "models": len(rows),
        "latents": count_latents(table.layout, config.latent_dim) / table.layout.weights,
        "r2": explained_variance(decoded_BP, flat_BP, torch.ones_like(flat_BP, dtype=torch.bool)),
        "accuracy": 100 * judge.score(originals),
        "gap": 100 * (judge.score(originals) - judge.score(decoded)),
        "agreement": 100 * float((originals == decoded).double().mean()),
    }


def draw(found: dict[tuple[str, str], list[dict[str, float]]]) -> bytes:
    """Draw gap, disagreement and unexplained variance over latents per weight; a line a zoo and way."""
    figure = create_figure(
        13.0,
        5.0,
        "What reconstruction costs, by latents per weight",
        "Test models, all test images; nothing was trained or chosen on either. Filled: weights alone; hollow, dashed: "
        "with the behavioural loss; dotted: its latents refined on unlabelled training images.",
    )
    shown = {
        "accuracy lost (points)": lambda row: max(row["gap"], 0.01),
        "disagreement with the original (%)": lambda row: 100 - row["agreement"],
        "variance of weights not explained": lambda row: 1 - row["r2"],
    }
    zoos = sorted({zoo for zoo, _ in found})
    for axes, (label, value) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        style_axes(axes, label)
        for (zoo, way), rows in found.items():
            color, refined = COLORS[zoos.index(zoo) % len(COLORS)], way.endswith(REFINED)
            axes.plot(
                [row["latents"] for row in rows],
                [value(row) for row in rows],
                color=color,
                marker="s" if refined else "o",
                markerfacecolor="white" if way else color,
                linestyle=":" if refined else "--" if way else "-",
                label=f"{zoo}{way}",
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([row["latents"] for row in rows], [f"{row['latents']:.2f}" for row in rows])
        axes.minorticks_off()
        axes.set_xlabel("latents per weight", color=INK)
    axes.legend(frameon=False)
    return to_png(figure)


def main() -> int:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoos", nargs="*", default=["mnist", "fashion-mnist"])
    parser.add_argument("--latents", type=int, nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--behaviours", type=float, nargs="+", default=BEHAVIOURS)
    parser.add_argument("--models", type=int, help="training models; all of the zoo's if not given")
    parser.add_argument("--last-epochs", type=int, help="epochs of each that are trained on; all if not given")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change backbone or tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options.set)}
    store = ArtifactStore.from_environment()
    rows, found = [], {}
    for name in options.zoos:
        zoo = load_zoo_preset(name, [])
        for behaviour in options.behaviours:
            for latent_dim in options.latents:
                settings = COMMON | RECIPES[latent_dim] | {"latent_dim": latent_dim, "behaviour": behaviour} | changes
                made = train(zoo, settings, options.seed, store, options.models, options.last_epochs)
                ways = (f", behaviour {behaviour}", f", behaviour {behaviour}{REFINED}") if behaviour else ("",)
                for way in ways:
                    last = measure(*made, refined=way.endswith(REFINED))
                    print({key: round(value, 4) for key, value in last.items()}, flush=True)
                    found.setdefault((zoo.name, way), []).append(last)
                    what = f"{zoo.name}, {last['latents']:.2f} latents a weight{way}"
                    bar = GAP_BARS.get(latent_dim)
                    rows.append(make_row(f"{what}: accuracy lost", last["gap"], "points", last["accuracy"], bar, True))
                    rows.append(make_row(f"{what}: agreement", last["agreement"], "%"))
                    rows.append(make_row(f"{what}: R2", last["r2"], "R2"))
    if options.plot:
        options.plot.write_bytes(draw(found))
    return report_rows(rows, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
