"""Pre-training: real weights a second against a plain loop, waiting for data, the matrix peak, and cost by models.

`python benchmarks/pretrain.py [--json FILE] [--plot docs/pretrain-cost.png] [--only speed|cost|gpu]
[--preset tiny cnn] [--quick]`

Both loops train on the same CNN-s models, as many a step, each in a process of its own with all threads; they take
turns, and what counts is the median over the turns. Ours is the loop of `mzsane.backbone.training` as it is, with the
preset's own settings but for a low learning rate without warm-up, so that few steps show that the loss falls. The
plain loop (`pretrain_plain.py`) has windows as long as a model, without any padding, and where the preset's window is
longer it is measured with windows padded to that too. Weights are counted unpadded, in both views.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import make_row, report_rows
from pretrain_loops import Reply, Request, take_turns, write_models
from tokens_windows import lay_out

from mzsane.appearance import COLORS, INK, MUTED, create_figure, style_axes, to_png
from mzsane.backbone.machine import choose_precision
from mzsane.config import BackboneConfig
from mzsane.store.artifacts import ArtifactStore

TURNS, QUICK_TURNS = 5, 2
PADDED_TURNS = 3  # fewer, because a step takes several times as long
SPEED_BAR, GPU_SPEED_BAR, WAITING_BAR, GPU_PEAK_BAR = 1.5, 8.0, 0.02, 0.45
COST_BAR, MEMORY_BAR = 1.15, 1.2
MODELS = 1024  # CNN-s that both loops train on
CPU_STEPS = {"tiny": 20, "cnn": 2}  # of a turn: some seconds
GPU_STEPS = 20
LEARNING_RATE = 2e-4
# Cost by models: each seen once a turn, streamed through a buffer that holds less than the fewest of them.
COST_MODELS, COST_FACTORS, COST_TURNS = 1024, (1, 2, 4, 8), 3
COST_PART_MODELS, COST_BUFFER_GIB = 128, 0.005
LARGE, LARGE_MODELS = "paper-resnet18", 4
LARGE_GIB = 64  # of a GPU that keeps the large preset's activations; a smaller one computes them again


def median(replies: list[Reply], name: str) -> float:
    """Return the median over the turns; the first reply is that of the first step."""
    return statistics.median(reply[name] for reply in replies[1:])


def compare(own: list[Reply], other: list[Reply]) -> float:
    """Return how many times as fast a loop is as another, the median over the turns."""
    pairs = zip(own[1:], other[1:], strict=True)
    return statistics.median(a["weights_per_s"] / b["weights_per_s"] for a, b in pairs)


def measure_speed(store: ArtifactStore, preset: str, device: str, turns: int, steps: int) -> list[dict[str, Any]]:
    """Compare our loop, in each precision that it may take here, with the plain one."""
    config = BackboneConfig.model_validate(preset)
    length = lay_out("cnn-s")[0].length
    ours = {
        "settings": {"preset": preset, "warmup": 0, "learning_rate": LEARNING_RATE},
        "device": device,
        "store": store.root,
        "tokens": write_models(store, "cnn-s", MODELS, MODELS).fingerprint,
        "models": MODELS,
    }
    plain = {**ours, "step_models": config.batch_size * (config.window // length), "window": length}
    precision = str(choose_precision(config, torch.device(device))).removeprefix("torch.")
    chosen, padded = f"ours, {precision}", f"plain, padded to {config.window}"
    requests: dict[str, Request] = {
        f"ours, {name}": {**ours, "settings": {**ours["settings"], "precision": name}}
        for name in dict.fromkeys(("float32", precision))
    }
    requests["plain"] = plain
    replies = take_turns(requests, steps, turns)
    ratios = {name: compare(replies[chosen], replies[name]) for name in requests if name != chosen}
    if config.window > length:
        pair = {chosen: requests[chosen], padded: {**plain, "window": config.window}}
        found = take_turns(pair, 1, min(turns, PADDED_TURNS))
        replies[padded], ratios[padded] = found[padded], compare(found[chosen], found[padded])

    where = f"{preset}, GPU" if device == "cuda" else preset
    bar = GPU_SPEED_BAR if device == "cuda" else SPEED_BAR
    rates = {name: median(of_loop, "weights_per_s") / 1e6 for name, of_loop in replies.items()}
    rows = [make_row(f"{where}: {name}", rate, "million weights/s") for name, rate in rates.items()]
    for name, ratio in ratios.items():
        barred = name == (padded if device == "cuda" else "plain")
        rows.append(make_row(f"{where}: {chosen}, times {name}", ratio, "ratio", rates[name], bar if barred else None))
    for name in requests:
        if name != "plain":
            rows += describe_machine(f"{where}: {name}", replies[name], None)
    for name, of_loop in replies.items():
        fall = of_loop[-1]["loss"] / of_loop[0]["loss"]
        rows.append(make_row(f"{where}: {name}, last loss, of the first", fall, "ratio", None, 1.0, True))
    return rows


def describe_machine(name: str, replies: list[Reply], peak_bar: float | None) -> list[dict[str, Any]]:
    """Make rows of what a loop of ours makes of the machine; the peak is the best that was seen in any turn."""
    peak = max(reply["peak"] for reply in replies)
    share = median(replies, "flops_per_s") / peak
    return [
        make_row(f"{name}, waiting for data", median(replies, "waiting_share"), "share", None, WAITING_BAR, True),
        make_row(f"{name}, of the matrix peak in GFLOP/s", share, "share", peak / 1e9, peak_bar),
    ]


def measure_cost(store: ArtifactStore, turns: int, plot: Path | None) -> list[dict[str, Any]]:
    """Measure time and memory for several times the models, each seen as often; draw them."""
    batch = BackboneConfig.model_validate("tiny").batch_size
    requests, steps = {}, {}
    for factor in COST_FACTORS:
        name, models = str(factor), factor * COST_MODELS
        steps[name] = models // batch
        requests[name] = {
            "settings": {"preset": "tiny", "memory_gib": COST_BUFFER_GIB, "steps": 1 + steps[name] * turns},
            "device": "cpu",
            "store": store.root,
            "tokens": write_models(store, "cnn-s", models, COST_PART_MODELS).fingerprint,
            "models": models,
        }
    replies = take_turns(requests, steps, turns)
    weights = 2 * lay_out("cnn-s")[0].weights * COST_MODELS
    seconds = [factor * weights / median(replies[str(factor)], "weights_per_s") for factor in COST_FACTORS]
    last = [replies[str(factor)][-1] for factor in COST_FACTORS]
    memory = [reply["process_mb"] for reply in last]
    grown = [reply["process_mb"] - reply["libraries_mb"] for reply in last]
    if plot:
        plot.write_bytes(draw_cost(seconds, memory))
    largest = COST_FACTORS[-1]
    return [
        make_row(
            f"time for {largest} times the models, of {largest} times the time",
            seconds[-1] / seconds[0] / largest,
            "ratio",
            seconds[0],
            COST_BAR,
            True,
        ),
        make_row(
            f"peak memory for {largest} times the models", memory[-1] / memory[0], "ratio", memory[0], MEMORY_BAR, True
        ),
        make_row("the same, without what was there before the loop", grown[-1] / grown[0], "ratio", grown[0]),
    ]


def draw_cost(seconds: list[float], memory: list[float]) -> bytes:
    """Draw time and peak memory over the number of models, on logarithmic scales, as a PNG."""
    models = [factor * COST_MODELS for factor in COST_FACTORS]
    held = COST_BUFFER_GIB * 1024
    note = (
        f"Preset tiny on a CPU, CNN-s, each model seen once; weights are streamed through a buffer of {held:.0f} MiB, "
        "and the memory is that of the whole process, libraries included. Dashed: in proportion to the models, from "
        "the first point on."
    )
    figure = create_figure(10, 4.4, "What pre-training costs for more models", note)
    panels = figure.subplots(1, 2)
    for axes, title, label, values, color in zip(
        panels,
        ("Time", "Peak memory"),
        ("seconds (log scale)", "MiB (log scale)"),
        (seconds, memory),
        COLORS,
        strict=False,
    ):
        style_axes(axes, title)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.plot(models, [values[0] * factor for factor in COST_FACTORS], color=MUTED, linestyle="--", linewidth=1.2)
        axes.plot(models, values, color=color, marker="o", linewidth=1.8)
        for x, value in zip(models, values, strict=True):
            axes.annotate(f"{value:.3g}", (x, value), (4, -15), textcoords="offset points", fontsize=10, color=INK)
        axes.set_xticks(models, [f"{count:,}" for count in models])
        axes.set_xlim(models[0] / 1.2, models[-1] * 1.35)
        axes.set_ylim(values[0] / 1.6)
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel("models (log scale)", fontsize=10)
        axes.set_ylabel(label, fontsize=10)
    return to_png(figure)


def measure_large(store: ArtifactStore, turns: int) -> list[dict[str, Any]]:
    """Measure the large preset on a GPU, in bfloat16 and compiled, on random ResNet-18."""
    recompute = torch.cuda.get_device_properties(0).total_memory < LARGE_GIB * 2**30
    request = {
        "settings": {"preset": LARGE, "precision": "bfloat16", "recompute": recompute},
        "device": "cuda",
        "store": store.root,
        "tokens": write_models(store, "resnet18", LARGE_MODELS, 1).fingerprint,
        "models": LARGE_MODELS,
    }
    found = take_turns({LARGE: request}, GPU_STEPS, turns)[LARGE]
    name = f"{LARGE}, bfloat16{', activations computed again' if recompute else ''}"
    return [
        *describe_machine(name, found, GPU_PEAK_BAR),
        make_row(f"{name}, peak memory", found[-1]["memory_gib"], "GiB"),
        make_row(f"{name}", median(found, "weights_per_s") / 1e6, "million weights/s"),
    ]


def main() -> int:
    """Run the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--plot", type=Path, help="draw the cost by models to this file")
    parser.add_argument("--only", choices=("speed", "cost", "gpu"), help="only one part")
    parser.add_argument(
        "--preset", choices=CPU_STEPS, nargs="+", default=list(CPU_STEPS), help="whose speed on the CPU"
    )
    parser.add_argument("--quick", action="store_true", help="few turns, to see that it works")
    options = parser.parse_args()
    turns = QUICK_TURNS if options.quick else TURNS
    rows = [make_row("threads of each loop", torch.get_num_threads(), "threads")]
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        if options.only in (None, "speed"):
            for preset in options.preset:
                rows += measure_speed(store, preset, "cpu", turns, CPU_STEPS[preset])
        if options.only in (None, "cost"):
            rows += measure_cost(store, min(turns, COST_TURNS), options.plot)
        if options.only in (None, "gpu") and torch.cuda.is_available():
            rows += measure_speed(store, "cnn", "cuda", turns, GPU_STEPS) + measure_large(store, turns)
    return report_rows(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
