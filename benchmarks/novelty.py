"""Finding the nearest training model up to symmetry, against one start of weight matching.

`python benchmarks/novelty.py [--models N] [--copies N] [--json FILE]`, with OMP_NUM_THREADS=1.

CNN-s with tanh, trained on rendered letters. Judged are the zoo's models that are not known, with a little noise, and
copies of known ones with their hidden units in another order and, where their activation is odd, with other signs. The
simple way aligns to one reference and then to the nearest checkpoint, without signs. A copy is found when its novelty
is below 0.05.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import make_row, report_rows, time_in_turns
from torch import Tensor

from mzsane.config import GlyphsConfig, TokensConfig, ZooConfig
from mzsane.evaluation.novelty.distance import KnownModels
from mzsane.randomness import make_generator
from mzsane.store.artifacts import ArtifactStore
from mzsane.symmetry.align.canonical import apply_matching, match_population
from mzsane.symmetry.align.scales import scale_units
from mzsane.symmetry.apply.permute import permute_weights
from mzsane.symmetry.groups import draw_permutations
from mzsane.tokens.build import build_tokens
from mzsane.tokens.store import read_tokens
from mzsane.zoo.train import train_zoo

COPY = 0.05  # novelty below which a model is a copy
NOISE = 0.05  # by which a judged model differs from a trained one, so that there are as many as are asked for
BAR = 3.0  # times the simple way


def open_zoo(models: int) -> tuple[KnownModels, Tensor]:
    """Train a zoo; return its training models and, as they were at their last epoch, the others."""
    images = GlyphsConfig(source="glyphs", images=1500)
    zoo = ZooConfig(name="novelty", images=images, models=models, epochs=8, keep_epochs=4)
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        train_zoo(zoo, store)
        table = read_tokens(build_tokens(TokensConfig(barrier_pairs=1), zoo, store))
        known = KnownModels.from_tables({"0": (table, table.pick_rows("train"))})
        others_HP = torch.cat([table.load(table.pick_rows(split, last_epochs=1)) for split in ("val", "test")])
    return known, others_HP


def copy_models(known: KnownModels, count: int, *, signs: bool) -> Tensor:
    """Return known models, at their last checkpoints, under random elements of their groups."""
    generator = make_generator(0, "copies")
    chosen_C = known.last_N[torch.arange(count) % len(known.last_N)]
    drawn = draw_permutations(known.groups, count, generator)
    copies_CP = permute_weights(known.layout, known.groups, drawn, known.load(chosen_C))
    for group in known.groups if signs else ():
        if group.sign:
            sign_CG = torch.randint(2, (count, group.units), generator=generator) * 2.0 - 1
            scale_units(known.layout, group, ("out", "in"), sign_CG, copies_CP)
    return copies_CP


def find_simply(known: KnownModels, flat_SP: Tensor, not_S: Tensor | None = None) -> Tensor:
    """Return the distance to the nearest checkpoint that one start of matching finds for each model, (S,)."""
    known_KP = known.load(torch.arange(len(known.model_K)))

    def align(models_BP: Tensor, reference_P: Tensor) -> Tensor:
        matching = match_population(known.layout, known.groups, models_BP, reference_P)
        return apply_matching(known.layout, known.groups, models_BP, matching)

    distances_SK, aligned_SP = torch.cdist(flat_SP, known_KP), align(flat_SP, known_KP[0])
    aligned_SK = torch.cdist(aligned_SP, known_KP)
    nearer_S = aligned_SK.min(dim=1).values < distances_SK.min(dim=1).values
    flat_SP = aligned_SP.where(nearer_S[:, None], flat_SP)
    distances_SK = aligned_SK.where(nearer_S[:, None], distances_SK)
    if not_S is not None:
        distances_SK[not_S[:, None] == known.model_K] = float("inf")
    distances_S, nearest_S = distances_SK.min(dim=1)
    for number in nearest_S.unique().tolist():
        own_S = nearest_S == number
        of_model_EP = known_KP[known.model_K == known.model_K[number]]
        found_X = torch.cdist(align(flat_SP[own_S], known_KP[number]), of_model_EP).min(dim=1).values
        distances_S[own_S] = torch.minimum(distances_S[own_S], found_X)
    return distances_S


def measure(known: KnownModels, others_HP: Tensor, copies: int, repeats: int) -> list[dict[str, Any]]:
    """Compare copies that are found, spacings and novelties, and what the search costs."""
    count = len(known.names)
    last_NP = known.load(known.last_N)
    simple_spacing = float(find_simply(known, last_NP, torch.arange(count)).mean())
    rows = []
    for name, signs in (("another order", False), ("another order and signs", True)):
        copies_CP = copy_models(known, copies, signs=signs)
        simple = float((find_simply(known, copies_CP) < COPY * simple_spacing).double().mean())
        found = float((known.measure_novelty(copies_CP) < COPY).double().mean())
        rows.append(make_row(f"share of {copies} copies in {name} found", found, "", simple, 0.99))
    novelty = float(known.measure_novelty(others_HP).mean())
    simple = float(find_simply(known, others_HP).mean()) / simple_spacing
    rows += [
        make_row(f"spacing of {count} models", known.spacing, "", simple_spacing),
        make_row(f"novelty of {len(others_HP)} held-out models", novelty, "", simple),
    ]
    noise_NP = torch.randn(count, known.layout.weights, generator=make_generator(0, "noise")) * NOISE
    judged = {"held-out models": others_HP[torch.arange(count) % len(others_HP)] + noise_NP}
    judged |= {"copies": copy_models(known, count, signs=True)}
    for name, flat_SP in judged.items():
        simple, ours = time_in_turns(
            repeats,
            lambda flat_SP=flat_SP: find_simply(known, flat_SP),
            lambda flat_SP=flat_SP: known.find_nearest(flat_SP),
        )
        rows.append(make_row(f"time for {count} {name}, times the simple way", ours / simple, "ratio", 1.0, BAR, True))
        rows.append(make_row(f"time for {count} {name}", ours, "s", simple))
    return rows


def main() -> int:
    """Run the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--models", type=int, default=125, help="models of the zoo; four fifths of them are known")
    parser.add_argument("--copies", type=int, default=500)
    options = parser.parse_args()
    known, others_HP = open_zoo(options.models)
    return report_rows(measure(known, others_HP, options.copies, options.repeats), options.json)


if __name__ == "__main__":
    raise SystemExit(main())
