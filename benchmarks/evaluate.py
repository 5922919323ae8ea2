"""Scoring many models against one by one, and sampling from draw to state dicts.

`python benchmarks/evaluate.py [--models N] [--window W] [--halo H] [--json FILE]`, with OMP_NUM_THREADS unset.

Scoring: CNN-s on 10,000 images by the engine of the device, against a plain loop in one process with torch's default
threads. Sampling: the joint sampler on a backbone of width 256 with 4 + 4 layers and random weights, from the anchors'
latents to state dicts that can be loaded, in one process with default threads. A CNN-s is one window.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import make_row, report_rows, time_in_turns

from mzsane.backbone.autoencoder import Autoencoder, build_autoencoder
from mzsane.backbone.inference import decode_models
from mzsane.backbone.machine import choose_precision
from mzsane.config import BackboneConfig, ExecutionConfig, GlyphsConfig, NetworkConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.run import ModelSet, score_models
from mzsane.networks.train_loop import measure
from mzsane.problems.images.dataset import load_images
from mzsane.randomness import make_generator
from mzsane.sampling.samplers.kde import sample_joint
from mzsane.sampling.samplers.protocol import Anchors

IMAGES = GlyphsConfig(source="glyphs", images=50_000)  # a fifth of them is the test split
CNN_S, RESNET18 = NetworkConfig(), NetworkConfig(architecture="resnet18", activation="relu")
ANCHORS, LATENTS = 5, 48
EARLIER = {"CNN-s": 238.0, "ResNet-18": 0.11}  # samples a second of an earlier implementation
BARS = {"CNN-s": 450.0, "ResNet-18": 0.35}
WIDTHS = {"CNN-s": 201, "ResNet-18": 288}  # of a token: those of the published backbones


def draw_models(count: int) -> ModelSet:
    """Return freshly initialised CNN-s."""
    network, flat = build_network(CNN_S, 1, IMAGES.classes), []
    layout = TokenLayout.from_network(network, WIDTHS["CNN-s"])
    for seed in range(count):
        initialise_network(network, "kaiming_uniform", make_generator(seed, "bench"))
        flat.append(layout.flatten(network.state_dict()))
    return ModelSet(CNN_S, IMAGES, layout, torch.stack(flat))


def score_plainly(models: ModelSet, device: str) -> None:
    """Score one by one as a short script would."""
    split = load_images(IMAGES).splits["test"].to(torch.device(device))
    network = build_network(CNN_S, 1, IMAGES.classes).to(device)
    for flat_P in models.flat_NP:
        network.load_state_dict(models.layout.unflatten(flat_P))
        measure(network, split)


def measure_scoring(count: int, repeats: int) -> list[dict[str, Any]]:
    """Compare the engine of each device that is there with the plain loop."""
    rows = []
    models = draw_models(count)
    devices = {"cpu": 1.8} | ({"cuda": 30.0} if torch.cuda.is_available() else {})
    for device, bar in devices.items():
        execution = ExecutionConfig(device=device)
        plain, ours = time_in_turns(
            repeats,
            lambda device=device: score_plainly(models, device),
            lambda execution=execution: score_models(models, "test", execution),
        )
        rows += [
            make_row(f"{device}: {count} CNN-s on 10,000 images, one by one", count / plain, "models/s"),
            make_row(f"{device}: the same by the engine", count / ours, "models/s"),
            make_row(f"{device}: engine, times one by one", plain / ours, "ratio", count / plain, bar),
        ]
    return rows


def build_backbone(layout: TokenLayout, window: int) -> Autoencoder:
    """Return a backbone with random weights, as `load_backbone` would."""
    sizes = tuple(int(size) + 1 for size in layout.positions_T3.amax(dim=0))
    config = BackboneConfig(
        d_model=256, heads=8, layers=4, latent_dim=LATENTS, window=window, max_positions=sizes, steps=1
    )
    model = build_autoencoder(config, layout.token_dim, make_generator(0, "bench")).eval()
    model.inference_precision = choose_precision(config, torch.device("cpu"))
    return model


def measure_sampling(
    name: str, network: NetworkConfig, channels: int, count: int, window: int, halo: int, repeats: int
) -> list[dict[str, Any]]:
    """Time drawing, decoding and making state dicts; float32 products beside the machine's own format."""
    built = build_network(network, channels, 10)
    layout = TokenLayout.from_network(built, WIDTHS[name])
    model = build_backbone(layout, window)
    precision = model.inference_precision
    generator = make_generator(0, "latents")
    anchors = Anchors(torch.randn(ANCHORS, layout.length, LATENTS, generator=generator), layout.positions_T3[:, 1])
    spent: list[float] = []

    def sample(precision: torch.dtype) -> list[dict[str, torch.Tensor]]:
        model.inference_precision = precision
        started = time.process_time()
        drawn = sample_joint(anchors, 0.2, count, generator)
        flat_SP = decode_models(model, layout, drawn.latents_STL, window, halo)
        states = [layout.unflatten(flat_P) for flat_P in flat_SP]
        spent.append(time.process_time() - started)
        return states

    runs: list[Callable[[], object]] = [lambda: sample(precision), lambda: sample(torch.float32)]
    seconds, in_float32 = time_in_turns(repeats, *runs)
    said = f"{layout.length} tokens of {layout.token_dim}, window {window}, halo {halo}"
    return [
        make_row(f"{name} a second, {said}", count / seconds, "1/s", EARLIER[name], BARS[name]),
        make_row(f"{name} a second of one core's time, {str(precision)[6:]}", count / min(spent[2::2]), "1/s"),
        make_row(f"{name} a second of one core's time, float32", count / min(spent[3::2]), "1/s"),
        make_row(f"{name}: {str(precision)[6:]}, times float32", in_float32 / seconds, "ratio"),
    ]


def main() -> int:
    """Run the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", type=int, default=500, help="CNN-s that are scored")
    parser.add_argument("--samples", type=int, default=500, help="CNN-s that are sampled")
    parser.add_argument("--window", type=int, default=128, help="tokens of a window")
    parser.add_argument("--halo", type=int, default=12, help="tokens of context on each side of a window")
    options = parser.parse_args()
    common = (options.window, options.halo, options.repeats)
    rows = measure_sampling("CNN-s", CNN_S, 1, options.samples, *common)
    rows += measure_sampling("ResNet-18", RESNET18, 3, 1, *common)
    rows += measure_scoring(options.models, options.repeats)
    return report_rows(rows, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
