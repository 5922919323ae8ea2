"""Draw docs/windows.png: how a model becomes tokens, models become a window, and a window becomes two views.

`python docs/make/draw_windows.py`, from the repository root; what is drawn are real weights of a zoo made on the spot.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(FOLDER.parent))

from mzsane.backbone.loader import augment  # noqa: E402
from mzsane.config import BackboneConfig, ExecutionConfig, GlyphsConfig, TokensConfig, ZooConfig  # noqa: E402
from mzsane.store.artifacts import ArtifactStore  # noqa: E402
from mzsane.tokens.build import build_tokens  # noqa: E402
from mzsane.tokens.store import read_tokens  # noqa: E402
from mzsane.windows.memory import WindowsInMemory  # noqa: E402
from mzsane.windows.windows import WindowSource  # noqa: E402
from mzsane.zoo.make import make_zoo  # noqa: E402

WINDOW = 150  # tokens: two models of 66, and padding
COLOURS = "RdBu_r"


def main() -> None:
    """Make a zoo of six models, and draw."""
    images = GlyphsConfig(source="glyphs", characters="ABCDEFGHIJ", images=600)
    zoo = ZooConfig(name="letters", images=images, models=6, epochs=6, keep_epochs=1, learning_rate=0.003)
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        make_zoo(zoo, store, ExecutionConfig(processes=1))
        config = TokensConfig(token_dim=51, barrier_pairs=1)
        table = read_tokens(build_tokens(config, zoo, store, ExecutionConfig(processes=1)))
        flat_NP = table.load()
    source = WindowSource(flat_NP, table.layout, table.groups, 1.0)
    batch = WindowsInMemory([source], WINDOW, 1, seed=0).draw(0)
    settings = BackboneConfig(window=WINDOW, noise=0.1, erasing=0.3)
    _, noisy_VBWD = augment(batch, settings, torch.Generator().manual_seed(0))

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(1, 4)
    one_TD = table.layout.tokenize(flat_NP[:1])[0].numpy()
    layers = [int(place) for place in np.flatnonzero(np.diff(table.layout.positions_T3[:, 1].numpy())) + 1]
    draw(axes[0], one_TD, "1. One model: 66 tokens", "token (an output channel, or a cut of one)")
    for place in layers:
        axes[0].axhline(place - 0.5, color="black", linewidth=0.8)
    window_WD = batch.views_VBWD[0, 0].numpy()
    draw(axes[1], window_WD, f"2. A window of {WINDOW}: two models", "place in the window")
    for place in (66, 132):
        axes[1].axhline(place - 0.5, color="black", linewidth=0.8)
    axes[1].text(25, 141, "padding", ha="center", va="center")
    draw(axes[2], batch.views_VBWD[1, 0].numpy(), "3. Its second view: units permuted", "")
    draw(axes[3], noisy_VBWD[1, 0].numpy(), "4. The same with noise and a gap", "")
    figure.suptitle(
        "A backbone is given both views with noise and gaps (4), and must bring back the clean ones (2 and 3)"
    )
    figure.savefig(FOLDER / "windows.png", dpi=110)


def draw(axes: Axes, values_TD: np.ndarray, title: str, label: str) -> None:
    """Draw tokens as rows, zero as white."""
    largest = float(np.quantile(np.abs(values_TD), 0.99))
    axes.imshow(values_TD, cmap=COLOURS, vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("number in the token, padded to 51", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=7)


if __name__ == "__main__":
    main()
