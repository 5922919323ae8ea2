"""How well backbones reconstruct held-out models, over latents per weight.

`MZSANE_ROOT=... python -m experiments.reconstruction [ZOO ...] [--seeds N ...] [--json FILE] [--plot FILE]
[--set KEY=VALUE ...]`

For each zoo (a preset of `flows/presets/zoos`, or a path) and each latent size, without and with the behavioural loss:
the accuracy that reconstruction costs, how often reconstruction and original agree, and R2, of validation models on
validation images, by which recipes are chosen, or with `--final`, once, of test models on test images, which nothing
was trained or chosen on; mean and range over the seeds of the backbone. With the behavioural loss three times: the
latents are the encoder's, or refined from there (`mzsane.backbone.refinement`) with noise in the place of images, so
that a model is all that is seen, or with unlabelled training images. Zoos, tokens and backbones are artifacts: what is
there is used.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.measuring import make_row, report_rows
from flows.presets import load_zoo_preset
from mzsane.appearance import COLORS, INK, create_figure, style_axes, to_png
from mzsane.backbone.behaviour import open_network_behaviour
from mzsane.backbone.inference import count_latents, decode_models, encode_models, load_backbone
from mzsane.backbone.loss import explained_variance
from mzsane.backbone.pretrain import pretrain
from mzsane.backbone.refinement import refine_latents
from mzsane.backbone.validation.judge import Judge
from mzsane.composition import TokenSlice
from mzsane.config import AnyZooConfig, BackboneConfig, ExecutionConfig, SliceConfig, TokensConfig
from mzsane.plan import plan_zoo_stage
from mzsane.problems.images.noise import draw_noise_images
from mzsane.randomness import make_generator
from mzsane.store.artifacts import Artifact, ArtifactStore
from mzsane.tokens.build import build_tokens
from mzsane.tokens.store import read_tokens
from mzsane.tokens.subject import read_activations
from tasks.terminal import TerminalSink

BEHAVIOURS = (0.0, 0.3)
COMMON: dict[str, Any] = {"preset": "tiny", "d_model": 128, "layers": 3, "learning_rate": 2e-3}
# Chosen on validation models. Where a latent is nearly as large as a token, exactness counts, and narrow tokens win.
# Where it is not, tokens of 67 (three to a row of the second convolution) are reconstructed best, and without decay the
# backbone learns the few models by heart. A linear code beside it keeps more at 29 latents, and less at 13.
WIDE = {"token_dim": 51, "steps": 1000, "batch_size": 32}
NARROW = {"token_dim": 67, "steps": 2000, "batch_size": 8, "weight_decay": 0.5, "noise": 0.0}
LINEAR = NARROW | {"weight_decay": 1.0, "shortcut": True}
RECIPES = {48: WIDE, 29: LINEAR, 13: NARROW, 7: NARROW}  # by latents a token; 0.98, 0.66, 0.32, 0.17 a weight
IMAGES = 10_000
GAP_BARS = {48: 0.3, 29: 2.0}  # points
LEAST_GAP = 0.01  # points that are drawn, on a logarithmic scale
ON_NOISE, ON_IMAGES = ", refined on noise", ", refined"
NOISE_IMAGES = 2000
SPLITS = {
    "val": "Validation models on validation images, by which recipes are chosen",
    "test": "Test models, all test images; nothing was trained or chosen on either",
}
STYLES = {"": ("--", "o"), ON_NOISE: ("-.", "D"), ON_IMAGES: (":", "s")}  # with the behavioural loss; line and marker


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


def measure(tokens: Artifact, backbone: Artifact, split: str) -> dict[str, dict[str, float]]:
    """Compare a split's models at their last epoch with their reconstructions, on its images, by the kind of latents.

    These are the encoder's, called "", and with a behavioural loss those that are refined from there, on noise and on
    unlabelled training images.
    """
    table = read_tokens(tokens)
    rows = table.pick_rows(split, last_epochs=1)
    flat_BP, activations = table.load(rows), read_activations(table.index, rows.tolist())
    model, config = load_backbone(backbone)
    latents = {"": encode_models(model, table.layout, flat_BP, config.window)}
    if config.behaviour:
        behaviour = open_network_behaviour(config, table, "the zoo")
        noise_NCHR = draw_noise_images(NOISE_IMAGES, behaviour.image_shape, make_generator(0, "noise images"))
        for kind, seen in ((ON_NOISE, behaviour.look_at(noise_NCHR)), (ON_IMAGES, behaviour)):
            latents[kind] = refine_latents(model, config, table.layout, flat_BP, latents[""], seen)
    judge = Judge(table, split, IMAGES)
    originals = judge.classify(flat_BP, activations)
    found = {}
    for kind, latents_BTL in latents.items():
        decoded_BP = decode_models(model, table.layout, latents_BTL, config.window)
        decoded = judge.classify(decoded_BP, activations)
        found[kind] = {
            "models": len(rows),
            "latents": count_latents(table.layout, config.latent_dim) / table.layout.weights,
            "r2": explained_variance(decoded_BP, flat_BP, torch.ones_like(flat_BP, dtype=torch.bool)),
            "accuracy": 100 * judge.score(originals),
            "gap": 100 * (judge.score(originals) - judge.score(decoded)),
            "agreement": 100 * float((originals == decoded).double().mean()),
        }
    return found


def describe(name: str, measured: list[dict[str, float]], bar: float | None) -> list[dict[str, Any]]:
    """Make the rows of what was measured with some seeds: means, and how far apart the seeds are."""
    means = {key: statistics.mean(one[key] for one in measured) for key in measured[0]}
    rows = [make_row(f"{name}: accuracy lost", means["gap"], "points", means["accuracy"], bar, True)]
    if len(measured) > 1:
        gaps = [one["gap"] for one in measured]
        rows.append(make_row(f"{name}: accuracy lost, range over {len(gaps)} seeds", max(gaps) - min(gaps), "points"))
    rows.append(make_row(f"{name}: agreement", means["agreement"], "%"))
    rows.append(make_row(f"{name}: R2", means["r2"], "R2"))
    return rows


def name_way(behaviour: float, kind: str) -> str:
    """Name the loss that a backbone had, and the kind of its latents."""
    return f", behaviour {behaviour}{kind}" if behaviour else ""


def draw(found: dict[tuple[str, float, str], list[list[dict[str, float]]]], split: str) -> bytes:
    """Draw gap, disagreement and unexplained variance over latents per weight.

    A line a zoo, behavioural loss and kind of latents through the means over seeds, and a vertical one from the least
    to the largest.
    """
    figure = create_figure(
        13.0,
        5.0,
        "What reconstruction costs, by latents per weight",
        f"{SPLITS[split]}. Filled: weights alone; hollow, dashed: "
        "with the behavioural loss; dash-dotted and dotted: its latents refined on noise, and on unlabelled training "
        f"images. Vertical: range over seeds, where there are several. Less than {LEAST_GAP} points is drawn there.",
    )
    shown: dict[str, Callable[[dict[str, float]], float]] = {
        "accuracy lost (points)": lambda one: max(one["gap"], LEAST_GAP),
        "disagreement with the original (%)": lambda one: 100 - one["agreement"],
        "variance of weights not explained": lambda one: 1 - one["r2"],
    }
    zoos = sorted({zoo for zoo, _, _ in found})
    for axes, (label, value) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        style_axes(axes, label)
        for (zoo, behaviour, kind), points in found.items():
            color = COLORS[zoos.index(zoo) % len(COLORS)]
            line, marker = STYLES[kind] if behaviour else ("-", "o")
            latents = [measured[0]["latents"] for measured in points]
            values = [[value(one) for one in measured] for measured in points]
            means = [statistics.mean(of_point) for of_point in values]
            axes.plot(
                latents,
                means,
                color=color,
                marker=marker,
                markerfacecolor="white" if behaviour else color,
                linestyle=line,
                label=f"{zoo}{name_way(behaviour, kind)}",
            )
            axes.vlines(latents, [min(v) for v in values], [max(v) for v in values], color=color)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(latents, [f"{each:.2f}" for each in latents])
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the backbones")
    parser.add_argument("--final", action="store_true", help="read test images and test models: once, for the README")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options.set)}
    store = ArtifactStore.from_environment()
    split = "test" if options.final else "val"
    rows, found = [], {}
    for name in options.zoos:
        zoo = load_zoo_preset(name, [])
        for behaviour in options.behaviours:
            for latent_dim in options.latents:
                settings = COMMON | RECIPES[latent_dim] | {"latent_dim": latent_dim, "behaviour": behaviour} | changes
                by_seed = [
                    measure(*train(zoo, settings, seed, store, options.models, options.last_epochs), split)
                    for seed in options.seeds
                ]
                for kind in by_seed[0]:
                    measured = [by_kind[kind] for by_kind in by_seed]
                    found.setdefault((zoo.name, behaviour, kind), []).append(measured)
                    print({key: [round(one[key], 4) for one in measured] for key in measured[0]}, flush=True)
                    rows += describe(
                        f"{zoo.name}, {measured[0]['latents']:.2f} latents a weight{name_way(behaviour, kind)}",
                        measured,
                        GAP_BARS.get(latent_dim),
                    )
    if options.plot:
        options.plot.write_bytes(draw(found, split))
    return report_rows([row | {"split": split} for row in rows], options.json)


if __name__ == "__main__":
    raise SystemExit(main())
