"""Accuracy against novelty: every sampler and trivial baseline on one zoo, over bandwidths.

`MZSANE_ROOT=... python benchmarks/generation.py [ZOO] [--json FILE] [--plot FILE]`

Samples start from all training models of the zoo at their last epoch; the backbone is the widest of
`benchmarks/reconstruction.py`. Nothing is selected: accuracy is the mean over the samples, on test images. Novelty is
the distance to the nearest training checkpoint in spacings of the zoo (`mzsane.evaluation.novelty`). Guided curves have
seen unlabelled training images (`mzsane.sampling.guidance`), the others nothing.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import make_row, report_rows
from reconstruction import COMMON, RECIPES, train
from torch import Tensor

from flows.presets import load_zoo_preset
from mzsane.appearance import INK, MUTED, assign_looks, create_figure, style_axes, to_png
from mzsane.artifacts import ArtifactStore
from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.backbone.judge import Judge, read_activations
from mzsane.config import AnyZooConfig, SamplingConfig
from mzsane.evaluation.baselines import (
    average_anchors,
    draw_from_statistics,
    draw_random_models,
    interpolate_anchors,
    perturb_anchors,
)
from mzsane.evaluation.novelty import KnownModels
from mzsane.randomness import make_generator
from mzsane.sampling.guidance import open_guidance
from mzsane.sampling.samplers import SAMPLERS
from mzsane.sampling.samplers.protocol import Anchors, mark_used
from mzsane.tokens.origin import find_origin
from mzsane.tokens.store import read_tokens

LATENTS = 48
BANDWIDTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
GUIDED_BANDWIDTHS = (0.2, 0.5, 0.7, 1.0, 2.0)
GUIDANCE_STEPS = 30
GUIDED_SUFFIX = ", guided"
GUIDED = ("joint", "shared", "neighbourhood")  # samplers that are guided too
ACCURACY_BAR, AT_NOVELTY = 86.7, 0.5
Point = tuple[float, float, float]  # novelty, accuracy (%), deviation of the accuracy over the models


class Bench:
    """A zoo, its training models and a way to measure others.

    Args:
        zoo: whose models are drawn anew.
        changes: settings of backbone and tokens other than the benchmark's.
        steps: of guidance.
        samples: models drawn for each point.
        images: test images.
        seed: of the backbone and of all draws.
        store: where artifacts are.
    """

    def __init__(
        self,
        zoo: AnyZooConfig,
        changes: dict[str, Any],
        steps: int,
        samples: int,
        images: int,
        seed: int,
        store: ArtifactStore,
    ) -> None:
        self.samples, self.seed = samples, seed
        settings = COMMON | RECIPES[LATENTS] | {"latent_dim": LATENTS, "behaviour": 0.0} | changes
        tokens, backbone = train(zoo, settings, seed, store)
        self.table = read_tokens(tokens)
        self.model, self.config = load_backbone(backbone)
        rows = self.table.pick_rows("train")
        names = self.table.index["model"][rows.tolist()].to_list()
        self.known = KnownModels(
            self.table.layout, self.table.groups, names, lambda numbers: self.table.load(rows[numbers])
        )
        self.anchors_AP = self.table.load(self.table.pick_rows("train", last_epochs=1))
        layout = self.table.layout
        latents_ATL = encode_models(self.model, layout, self.anchors_AP, self.config.window)
        self.anchors = Anchors(latents_ATL, layout.positions_T3[:, 1])
        self.judge = Judge(self.table, "test", images)
        origin = find_origin(tokens)
        assert origin is not None  # the judge has looked
        self.origin = origin
        guidance = SamplingConfig(guidance_steps=steps, guidance_images=64, guidance_rate=0.03)
        self.guidance = open_guidance(guidance, origin.network, origin.images, layout, self.anchors_AP, seed)

    def decode(self, latents_STL: Tensor) -> Tensor:
        """Return the weights that latents stand for."""
        return decode_models(self.model, self.table.layout, latents_STL, self.config.window)

    def draw(self, sampler: str, bandwidth: float, guided: bool = False) -> Tensor:
        """Draw models."""
        generator = make_generator(self.seed, "generation", sampler)
        drawn = SAMPLERS[sampler](self.anchors, bandwidth, self.samples, generator)
        latents_STL = drawn.latents_STL
        if guided:
            deviation_TL = self.anchors.latents_ATL.std(dim=0)
            latents_STL = self.guidance.move(latents_STL, deviation_TL, drawn.used_SA, self.decode)
        return self.decode(latents_STL)

    def perturb(self, bandwidth: float, guided: bool = False) -> Tensor:
        """Add noise to anchors, as far as the joint sampler goes with this bandwidth."""
        distances_S, _ = self.known.find_nearest(self.draw("joint", bandwidth))
        generator = make_generator(self.seed, "generation", "noise")
        chosen_S = torch.randint(len(self.anchors_AP), (self.samples,), generator=generator)
        flat_SP = perturb_anchors(self.anchors_AP, chosen_S, distances_S, self.table.layout, generator)
        return self.guide(flat_SP, mark_used(chosen_S[:, None], len(self.anchors_AP))) if guided else flat_SP

    def guide(self, flat_SP: Tensor, used_SA: Tensor | None = None) -> Tensor:
        """Guide weights that no backbone made; by all anchors, unless it is said by which."""
        if used_SA is None:
            used_SA = torch.zeros(len(flat_SP), len(self.anchors_AP), dtype=torch.bool)
        return self.guidance.move(flat_SP, self.anchors_AP.std(dim=0), used_SA, lambda moved_SP: moved_SP)

    def initialise(self) -> Tensor:
        """Return models that were never trained."""
        generator = make_generator(self.seed, "generation", "random")
        origin = self.origin
        return draw_random_models(origin.network, origin.images, self.table.layout, self.samples, generator)

    def interpolate(self) -> Tensor:
        """Return places on lines between anchors, in their weights."""
        generator = make_generator(self.seed, "generation", "interpolation")
        return interpolate_anchors(self.anchors_AP, self.samples, generator)

    def measure(self, flat_SP: Tensor) -> Point:
        """Return novelty and accuracy of models."""
        classes_SN = self.judge.classify(flat_SP, [None] * len(flat_SP))
        accuracy_S = 100 * (classes_SN == self.judge.labels_N).double().mean(dim=1)
        spread = float(accuracy_S.std()) if len(accuracy_S) > 1 else 0.0
        return float(self.known.measure_novelty(flat_SP).mean()), float(accuracy_S.mean()), spread

    def measure_zoo(self) -> Point:
        """Return those of held-out models of the zoo."""
        rows = self.table.pick_rows("test", last_epochs=1)
        flat_BP = self.table.load(rows)
        accuracy = 100 * self.judge.score(self.judge.classify(flat_BP, read_activations(self.table, rows)))
        return float(self.known.measure_novelty(flat_BP).mean()), accuracy, 0.0


def list_curves(bench: Bench) -> dict[str, list[Callable[[], Tensor]]]:
    """Return how the points of each curve are drawn: samplers, baselines, then what was guided of both."""
    widths = GUIDED_BANDWIDTHS
    curves: dict[str, list[Callable[[], Tensor]]] = {
        name: [lambda name=name, width=width: bench.draw(name, width) for width in BANDWIDTHS] for name in SAMPLERS
    }
    generator = make_generator(bench.seed, "generation", "baselines")
    curves["anchor noise"] = [lambda width=width: bench.perturb(width) for width in BANDWIDTHS]
    curves["weights interpolated"] = [bench.interpolate]
    curves["average"] = [lambda: average_anchors(bench.anchors_AP)]
    curves["statistics"] = [
        lambda: draw_from_statistics(bench.anchors_AP, bench.table.layout, bench.samples, generator)
    ]
    for name in GUIDED:
        curves[f"{name}{GUIDED_SUFFIX}"] = [
            lambda name=name, width=width: bench.draw(name, width, True) for width in widths
        ]
    curves[f"anchor noise{GUIDED_SUFFIX}"] = [lambda width=width: bench.perturb(width, True) for width in widths]
    curves[f"weights interpolated{GUIDED_SUFFIX}"] = [lambda: bench.guide(bench.interpolate())]
    curves[f"random initialisation{GUIDED_SUFFIX}"] = [lambda: bench.guide(bench.initialise())]
    return curves


def interpolate_accuracy(points: list[Point], novelty: float) -> float | None:
    """Return the accuracy of a curve at a novelty, between its points; None where it does not reach."""
    for (x0, y0, _), (x1, y1, _) in pairwise(points):
        if min(x0, x1) <= novelty <= max(x0, x1) and x0 != x1:
            return y0 + (y1 - y0) * (novelty - x0) / (x1 - x0)
    return None


def is_sampler(curve: str) -> bool:
    """Tell a sampler from a baseline."""
    return curve.removesuffix(GUIDED_SUFFIX) in SAMPLERS


def draw_figure(found: dict[str, list[Point]], zoo: Point, name: str) -> bytes:
    """Draw accuracy over novelty; baselines are dashed."""
    figure = create_figure(
        9.5,
        6.0,
        f"Accuracy against novelty on {name}",
        "Mean of the samples on test images, nothing selected; a point a bandwidth. Hollow, dashed: guided by "
        "anchors on unlabelled training images. Star: held-out models of the zoo. Cross: the bar.",
    )
    axes = figure.subplots()
    style_axes(axes)
    looks = assign_looks(curve.removesuffix(GUIDED_SUFFIX) for curve in found)
    for curve, points in found.items():
        look, guided = looks[curve.removesuffix(GUIDED_SUFFIX)], curve.endswith(GUIDED_SUFFIX)
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            color=look.color,
            marker=look.marker,
            markerfacecolor="white" if guided else look.color,
            linestyle="--" if guided else "-",
            label=curve if is_sampler(curve) else f"{curve} (baseline)",
        )
    axes.plot(zoo[0], zoo[1], "*", color=INK, markersize=14)
    axes.plot(AT_NOVELTY, ACCURACY_BAR, "x", color=INK, markersize=10)
    axes.axvline(1.0, color=MUTED, linestyle=":", linewidth=1)
    axes.set_xlabel("novelty (zoo spacings)", color=INK)
    axes.set_ylabel("accuracy (%)", color=INK)
    axes.legend(frameon=False, fontsize=8.5)
    return to_png(figure)


def main() -> int:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", nargs="?", default="mnist")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change backbone or tokens")
    parser.add_argument("--set-zoo", action="append", default=[], metavar="KEY=VALUE", help="change the zoo")
    parser.add_argument("--curve", action="append", metavar="NAME", help="measure this curve alone; may be repeated")
    parser.add_argument("--guidance-steps", type=int, default=GUIDANCE_STEPS, help="of the guided curves")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options.set)}
    zoo_config = load_zoo_preset(options.zoo, options.set_zoo)
    measured = (options.guidance_steps, options.samples, options.images, options.seed)
    bench = Bench(zoo_config, changes, *measured, ArtifactStore.from_environment())
    zoo = bench.measure_zoo()
    rows: list[dict[str, Any]] = [
        make_row("zoo, held-out models: accuracy", zoo[1], "%"),
        make_row("zoo, held-out models: novelty", zoo[0], "spacings"),
    ]
    found: dict[str, list[Point]] = {}
    curves = list_curves(bench)
    if unknown := set(options.curve or ()) - set(curves):
        parser.error(f"no curve {', '.join(sorted(unknown))}; there are {', '.join(curves)}")
    for curve, draws in curves.items():
        if options.curve and curve not in options.curve:
            continue
        found[curve] = [bench.measure(draw()) for draw in draws]
        print(curve, *(f"{x:.2f}: {y:.1f} ± {s:.1f} %" for x, y, s in found[curve]), sep="  ", flush=True)
        for x, y, s in found[curve]:
            rows.append(make_row(f"{curve}: accuracy at novelty {x:.2f}", y, "%"))
            rows.append(make_row(f"{curve}: half of its 95 % interval", 1.96 * s / options.samples**0.5, "points"))
        at_bar = interpolate_accuracy(found[curve], AT_NOVELTY)
        if at_bar is not None:
            bar = ACCURACY_BAR if is_sampler(curve) else None
            rows.append(make_row(f"{curve}: accuracy at novelty {AT_NOVELTY}", at_bar, "%", None, bar))
    if options.plot:
        options.plot.write_bytes(draw_figure(found, zoo, options.zoo))
    return report_rows(rows, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
