"""Finding the nearest training model up to symmetry, against one start of weight matching.

`python benchmarks/novelty.py [--models N] [--judged N] [--epochs E] [--json FILE]`, with OMP_NUM_THREADS=1.

CNN-s with tanh, trained on rendered letters. Judged are other models of the zoo with a little noise, and copies of its
models whose hidden units are in another order and have other signs. The simple way, that of an earlier version: align
to one reference, then to the nearest checkpoint, without signs. A copy is found when its novelty is below 0.05.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from measuring import make_row, report_rows, time_in_turns
from torch import Tensor

from mzsane.config import ExecutionConfig, GlyphsConfig, ZooConfig
from mzsane.evaluation.novelty import KnownModels
from mzsane.randomness import make_generator
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.symmetry.canonical import apply_matching, match_population
from mzsane.tokens.symmetry.groups import draw_permutations
from mzsane.tokens.symmetry.permute import permute_weights
from mzsane.tokens.symmetry.scales import scale_units
from mzsane.tokens.symmetry.trace import derive_groups
from mzsane.zoo.fit import fit_model
