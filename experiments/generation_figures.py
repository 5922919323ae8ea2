"""The figures of `experiments.generation`: accuracy against novelty, and over seconds."""

import math
from typing import Any

from matplotlib.lines import Line2D

from mzsane.appearance import COLORS, INK, MUTED, assign_styles, create_figure, style_axes, to_png

CLASSES = {
    "none": "nothing seen",
    "statistics": "statistics of unlabelled images",
    "images": "unlabelled images",
    "labels": "labels",
}
LABEL = (1.2, 2.4)  # width, in powers of ten, and height, in points of accuracy, of a label of the costs
HALF_WAY = 30.0  # accuracy below which labels make room upwards, above it downwards
SPLITS = {"val": "validation models on validation images", "test": "test models on test images"}


def draw_curves(result: dict[str, Any]) -> bytes:
    """Draw accuracy over novelty: a panel for each class of what is seen, held-out models in each."""
    points = result["points"]
    looks = assign_styles(point["curve"] for point in points)
    figure = create_figure(
        14.0,
        9.5,
        f"Accuracy against novelty on {result['zoo']}, by what is seen of the images",
        "Mean over models, nothing selected. A point a bandwidth; with gradient steps, whose number is written beside "
        f"the last point, a line each. Samplers: full lines; baselines: dashed. Star: {SPLITS[result['split']]}.",
    )
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flatten()
    for axes, (name, title) in zip(panels, CLASSES.items(), strict=True):
        style_axes(axes, title)
        own = [point for point in points if point["class"] == name]
        for curve, steps in dict.fromkeys((point["curve"], point["gradient_steps"]) for point in own):
            line = [point for point in own if (point["curve"], point["gradient_steps"]) == (curve, steps)]
            look = looks[curve]
            xs, ys = [point["novelty"] for point in line], [point["accuracy"] for point in line]
            axes.plot(
                xs,
                ys,
                color=look.color,
                marker=look.marker,
                markersize=5,
                linewidth=1.4,
                linestyle="-" if line[0]["kind"] == "sampler" else "--",
                label=curve,
            )
            if steps and name != "labels":
                axes.annotate(
                    str(steps), (xs[-1], ys[-1]), (4, 2), textcoords="offset points", fontsize=7.5, color=MUTED
                )
        axes.plot(result["held_out_novelty"], result["held_out_accuracy"], "*", color=INK, markersize=14, zorder=5)
        axes.axvline(1.0, color=MUTED, linestyle=":", linewidth=1)
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if handles:
            axes.legend(handles.values(), handles, frameon=False, fontsize=8, loc="lower left")
    for axes in panels[2:]:
        axes.set_xlabel("novelty (zoo spacings)", color=INK)
    for axes in panels[::2]:
        axes.set_ylabel("accuracy (%)", color=INK)
    return to_png(figure)


def draw_costs(result: dict[str, Any]) -> bytes:
    """Draw accuracy at novelty 1.0 over the seconds that a model takes, training a model itself among them."""
    shown = [row for row in result["rows"] if row["accuracy_at_1.0"] is not None]
    colors = dict(zip(CLASSES, COLORS, strict=False))
    handles = [Line2D([], [], color=colors[name], marker="o", label=title) for name, title in CLASSES.items()]
    figure = create_figure(
        11.0,
        7.0,
        f"Accuracy at novelty 1.0 on {result['zoo']}, over the seconds that a model takes",
        "One thread; the backbone's training is not counted. Filled: samplers; hollow: baselines and references. Lines "
        "join the numbers of gradient steps. Curves that do not cross 1.0 have their nearest point within 0.15 of it. "
        f"Dotted: {SPLITS[result['split']]}, at novelty {result['held_out_novelty']:.2f}.",
        handles,
    )
    axes = figure.subplots()
    style_axes(axes)
    lines = [[row for row in shown if row["curve"] == curve] for curve in dict.fromkeys(row["curve"] for row in shown)]
    labels: list[tuple[float, float]] = []
    for line in sorted(lines, key=lambda line: -abs(max(row["accuracy_at_1.0"] for row in line) - HALF_WAY)):
        line = sorted(line, key=lambda row: row["gradient_steps"])
        xs, ys = [max(row["seconds"], 1e-4) for row in line], [row["accuracy_at_1.0"] for row in line]
        color = colors[line[0]["class"]]
        fill = color if line[0]["kind"] == "sampler" else "white"
        axes.plot(xs, ys, color=color, marker="o", markerfacecolor=fill, linewidth=1.2)
        place = (math.log10(xs[-1]), ys[-1] + 0.8)
        while any(abs(place[0] - x) < LABEL[0] and abs(place[1] - y) < LABEL[1] for x, y in labels):
            place = (place[0], place[1] + (LABEL[1] if ys[-1] < HALF_WAY else -LABEL[1]) / 4)
        labels.append(place)
        axes.text(10 ** (place[0] + 0.04), place[1], line[0]["curve"], fontsize=8.5, color=color)
    axes.axhline(result["held_out_accuracy"], color=INK, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("seconds a model", color=INK)
    axes.set_ylabel("accuracy at novelty 1.0 (%)", color=INK)
    axes.margins(x=0.18)
    return to_png(figure)
