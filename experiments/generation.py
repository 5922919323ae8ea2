"""Accuracy against novelty, and what it costs: every sampler and every baseline on one zoo.

`MZSANE_ROOT=... python -m experiments.generation [ZOO] [--json FILE] [--plot FILE] [--cost-plot FILE] [--final]`

All training models of the zoo at their last epoch are anchors; the backbone is the widest of
`experiments/reconstruction.py`. Nothing is selected: accuracy is the mean over the models of a point. Learning rates
are chosen on validation images, one for all models of a way and number of steps. Everything is measured on validation
images, beside validation models; with `--final`, once, on test images, beside test models. Novelty is the distance to
the nearest training checkpoint in spacings of the zoo, sampling novelty that to the nearest decoded anchor
(`mzsane.evaluation.novelty.distance`); models whose norms are outside those of the zoo have bought some of it
(`mzsane.evaluation.novelty.norms`).

What a row has seen is the more of what its drawing and its backbone saw of the images: none, statistics (of unlabelled
images), images (without labels), labels. Seconds are those of a model, on this machine with one thread, its share of
what is prepared for all included. The training of the backbone is not.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from experiments import draws
from experiments.bench import Bench
from experiments.draws import Made
from experiments.generation_figures import draw_costs, draw_curves
from flows.presets import load_zoo_preset
from mzsane.backbone.validation.judge import Judge
from mzsane.evaluation.distillation import STEPS
from mzsane.evaluation.novelty.norms import NormRange
from mzsane.sampling.samplers import SAMPLERS
from mzsane.store.artifacts import ArtifactStore
from mzsane.tokens.subject import read_activations

BANDWIDTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
GUIDED_BANDWIDTHS = (0.5, 1.0, 1.5)
FLAT_BANDWIDTHS = (0.2, 0.5, 0.7, 1.0, 1.5)  # fewer: each anchor has Jacobians of its own
GUIDED = ("joint", "shared", "neighbourhood")  # samplers that are guided too
AT_NOVELTIES = (0.5, 1.0)
REACH = 0.15  # spacings by which a curve may miss a novelty and still have an accuracy there
TRAINED = "training a model"
SEES = ("none", "statistics", "images", "labels")


@dataclass(frozen=True)
class Curve:
    """A way to draw models, with a point a bandwidth.

    Attributes:
        name: what it is called, without its steps.
        kind: sampler, baseline, or reference.
        sees: what drawing sees of the images.
        points: return models; each with the bandwidth, if there is one.
        steps: gradient steps.
        decoded: whether models come from the backbone.
    """

    name: str
    kind: str
    sees: str
    points: list[tuple[float | None, Callable[[], Made | None]]]
    steps: int = 0
    decoded: bool = False


def list_curves(bench: Bench, guidance_steps: list[int]) -> list[Curve]:
    """Return all ways to draw models, by what they cost."""

    def sweep(draw: Callable[[float], Made], widths: tuple[float, ...] = BANDWIDTHS) -> list[Any]:
        return [(width, partial(draw, width)) for width in widths]

    def one(draw: Callable[..., Made | None], *arguments: Any) -> list[Any]:
        return [(None, partial(draw, bench, *arguments))]

    curves = [
        Curve(name, "sampler", "none", sweep(partial(draws.sample, bench, name)), decoded=True) for name in SAMPLERS
    ]
    curves += [
        Curve("decoded noise", "baseline", "none", sweep(partial(draws.draw_decoded_noise, bench)), decoded=True),
        Curve("layer noise", "baseline", "none", sweep(partial(draws.draw_layer_noise, bench))),
        Curve(
            "flat noise on noise images",
            "baseline",
            "none",
            sweep(partial(draws.draw_flat_noise, bench, "none"), FLAT_BANDWIDTHS),
        ),
        Curve(
            "flat noise on images",
            "baseline",
            "images",
            sweep(partial(draws.draw_flat_noise, bench, "images"), FLAT_BANDWIDTHS),
        ),
        Curve("weights interpolated", "baseline", "none", one(draws.interpolate)),
        Curve("average", "baseline", "none", one(draws.average)),
        Curve("statistics of weights", "baseline", "none", one(draws.draw_statistics)),
        Curve("best model", "reference", "labels", one(draws.pick_best)),
        Curve(TRAINED, "reference", "labels", one(draws.train_one)),
    ]
    for source in ("none", "statistics", "images"):
        name = f"distilled init on {'noise images' if source == 'none' else source}"
        curves += [Curve(name, "baseline", source, one(draws.draw_distilled, source, steps), steps) for steps in STEPS]
    widths = GUIDED_BANDWIDTHS
    for steps in guidance_steps:
        for name in GUIDED:
            points = sweep(partial(draws.sample_guided, bench, name, steps), widths)
            curves.append(Curve(f"{name}, guided", "sampler", "images", points, steps, decoded=True))
        for kind in ("layer", "flat"):
            points = sweep(partial(draws.guide_noise, bench, kind, steps), widths)
            curves.append(Curve(f"{kind} noise, guided", "baseline", "images", points, steps))
        curves.append(Curve("random initialisation, guided", "baseline", "images", one(draws.guide_init, steps), steps))
    return curves


class Measures:
    """Measures models beside held-out ones: of the validation split, or of the test split."""

    def __init__(self, bench: Bench, final: bool, images: int) -> None:
        self.bench, self.split = bench, "test" if final else "val"
        self._judge = Judge(bench.table, self.split, images)
        rows = bench.table.pick_rows(self.split, last_epochs=1)
        held_out_HP = bench.table.load(rows)
        classes_HN = self._judge.classify(held_out_HP, read_activations(bench.table.index, rows.tolist()))
        self._norms = NormRange.from_models(bench.known)
        self.held_out = {
            "held_out_accuracy": 100 * self._judge.score(classes_HN),
            "held_out_novelty": float(bench.known.measure_novelty(held_out_HP).mean()),
            "held_out_outside_norms": float(self._norms.measure(held_out_HP)[1].double().mean()),
            "held_out_models": len(rows),
        }

    def measure(self, curve: Curve, bandwidth: float | None, made: Made) -> dict[str, Any]:
        """Return the row of a point."""
        classes_SN = self._judge.classify(made.flat_SP, [None] * len(made.flat_SP))
        accuracy_S = 100 * (classes_SN == self._judge.labels_N).double().mean(dim=1)
        known, sampling = self.bench.known, None
        if curve.decoded:
            sampling = float(self.bench.decoded.find_nearest(made.flat_SP)[0].mean()) / known.spacing
        ratio_S, outside_S = self._norms.measure(made.flat_SP)
        generator_sees = "images" if curve.decoded and self.bench.behaves else "none"
        costs = {name: value for name, value in asdict(made).items() if not isinstance(value, Tensor)}
        return {
            "curve": curve.name,
            "kind": curve.kind,
            "sees": curve.sees,
            "generator_sees": generator_sees,
            "class": max(curve.sees, generator_sees, key=SEES.index),
            "bandwidth": bandwidth,
            **costs,
            "models": len(accuracy_S),
            "novelty": float(known.measure_novelty(made.flat_SP).mean()),
            "sampling_novelty": sampling,
            "norm_ratio": float(ratio_S.mean()),
            "outside_norms": float(outside_S.double().mean()),
            "accuracy": float(accuracy_S.mean()),
            "accuracy_std": float(accuracy_S.std()) if len(accuracy_S) > 1 else None,
            **self.held_out,
            **(self._take_zoo() if curve.name == TRAINED else {}),
        }

    def _take_zoo(self) -> dict[str, Any]:
        """Return what stands for a trained model: the held-out ones; one was trained for its seconds alone."""
        return {name: self.held_out[f"held_out_{name}"] for name in ("accuracy", "novelty", "outside_norms", "models")}


def interpolate_at(points: list[dict[str, Any]], novelty: float, value: str) -> float | None:
    """Return a value of a curve at a novelty: between its points, or of one that nearly has it; None elsewhere."""
    for first, second in pairwise(points):
        x0, x1 = first["novelty"], second["novelty"]
        if min(x0, x1) <= novelty <= max(x0, x1) and x0 != x1:
            return float(first[value] + (second[value] - first[value]) * (novelty - x0) / (x1 - x0))
    nearest = min(points, key=lambda point: abs(point["novelty"] - novelty))
    return float(nearest[value]) if abs(nearest["novelty"] - novelty) <= REACH else None


def summarise(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of a curve: its accuracy at some novelties, what it saw, what it cost, held-out models beside."""
    first = points[0]
    kept = ("curve", "kind", "sees", "generator_sees", "class", "gradient_steps", "rate", "models")
    row = {name: first[name] for name in kept}
    for novelty in AT_NOVELTIES:
        for name in ("accuracy", "novelty"):  # the novelty, because a curve may miss it a little
            row[f"{name}_at_{novelty}"] = interpolate_at(points, novelty, name)
    for name in ("seconds", "image_passes", "outside_norms"):
        row[name] = interpolate_at(points, AT_NOVELTIES[-1], name)
        if row[name] is None:
            row[name] = max(point[name] for point in points)
    return row | {name: first[name] for name in first if name.startswith("held_out")}


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the curves, those that saw least first, the best at the largest novelty first."""
    best = f"accuracy_at_{AT_NOVELTIES[-1]}"
    print(f"{'curve':<34}{'sees':<11}{'steps':>6}{'at 0.5':>8}{'at 1.0':>8}{'passes':>8}{'s':>9}{'outside':>9}")
    for row in sorted(rows, key=lambda row: (SEES.index(row["class"]), -(row[best] or 0.0))):
        at = "".join(
            f"{'-' if row[f'accuracy_at_{x}'] is None else format(row[f'accuracy_at_{x}'], '.1f'):>8}"
            for x in AT_NOVELTIES
        )
        what = f"{row['curve']:<34}{row['class']:<11}{row['gradient_steps']:>6}"
        print(f"{what}{at}{row['image_passes']:>8.0f}{row['seconds']:>9.3f}{row['outside_norms']:>9.2f}")


def measure(options: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Draw and measure the curves that are asked for: what the measured models stand beside, rows, and points."""
    changes = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options.set)}
    zoo = load_zoo_preset(options.zoo, options.set_zoo)
    bench = Bench(zoo, changes, options.samples, options.slow_samples, options.seed, ArtifactStore.from_environment())
    measures = Measures(bench, options.final, options.images)
    curves = list_curves(bench, options.guidance_steps)
    if unknown := set(options.curve or ()) - {curve.name for curve in curves}:
        parser.error(f"no curve {', '.join(sorted(unknown))}; there are {', '.join({c.name: 0 for c in curves})}")
    points, rows = [], []
    for curve in curves:
        if options.curve and curve.name not in options.curve:
            continue
        drawn = [(width, made) for width, draw in curve.points if (made := draw()) is not None]
        found = [measures.measure(curve, width, made) for width, made in drawn]
        if found:
            print(curve.name, curve.steps, *(f"{p['novelty']:.2f}: {p['accuracy']:.1f} %" for p in found), flush=True)
            rows.append(summarise(found))
            points += found
    kept = {"zoo": options.zoo, "split": measures.split, "seed": options.seed, **measures.held_out}
    return {**kept, "rows": rows, "points": points}


def join(files: list[Path]) -> dict[str, Any]:
    """Join what was measured curve by curve, on the same models."""
    parts = [json.loads(file.read_text()) for file in files]
    kept = [{name: value for name, value in part.items() if name not in ("rows", "points")} for part in parts]
    if any(other != kept[0] for other in kept):
        raise SystemExit("the files are not of the same models: " + "; ".join(map(str, kept)))
    return {**kept[0], **{name: [row for part in parts for row in part[name]] for name in ("rows", "points")}}


def main() -> int:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", nargs="?", default="mnist")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change backbone or tokens")
    parser.add_argument("--set-zoo", action="append", default=[], metavar="KEY=VALUE", help="change the zoo")
    parser.add_argument("--curve", action="append", metavar="NAME", help="measure this curve alone; may be repeated")
    parser.add_argument("--guidance-steps", type=int, nargs="*", default=list(STEPS), help="of the guided curves")
    parser.add_argument("--samples", type=int, default=100, help="of a point without gradient steps")
    parser.add_argument("--slow-samples", type=int, default=20, help="of a point with gradient steps")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--final", action="store_true", help="read test images and test models: once, for the README")
    parser.add_argument("--join", nargs="+", type=Path, help="measure nothing: join curves that were written before")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="accuracy against novelty, by what is seen")
    parser.add_argument("--cost-plot", type=Path, help="accuracy at novelty 1.0 over seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = join(options.join) if options.join else measure(options, parser)
    print_rows(found["rows"])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        options.plot.write_bytes(draw_curves(found))
    if options.cost_plot:
        options.cost_plot.write_bytes(draw_costs(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
