"""The permutation groups of many architectures, proved by function; `docs/symmetry.md` shows them in a table.

`python tests/tokens/symmetry/table.py` proves all of them (minutes) and rewrites the table; names after it choose some
and only print their rows.
"""

# ruff: noqa: E402  (a script finds its own folder on the path, not the repository)
import copy
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))

import torch
from torch import Tensor, nn

from mzsane.config import NetworkConfig
from mzsane.networks.build import build_network
from mzsane.problems.images.vision import open_torchvision
from mzsane.symmetry.derive.proof import draw_generic_weights, permute_parameters
from mzsane.symmetry.derive.trace import Symmetry, derive_groups
from mzsane.symmetry.groups import PermutationGroup, draw_permutations

FILE = REPOSITORY / "docs" / "symmetry.md"
START = "| architecture |"
OURS = {"cnn-s": (1, 28), "cnn-l": (3, 32), "mlp": (1, 28), "resnet18": (3, 32), "vit": (3, 28)}  # channels, pixels
VISION = (
    *("resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "vgg11_bn", "vgg16", "alexnet", "densenet121"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0"),
    *("squeezenet1_0", "googlenet", "inception_v3", "mnasnet1_0", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
    *("swin_t", "swin_v2_t", "maxvit_t"),
)
PIXELS = {"inception_v3": 299}
# Random weights of full size make it amplify the rounding of float32 to 4e-3 (float64: 4e-12).
GAINS = {"maxvit_t": 0.5}


@dataclass(frozen=True)
class Proof:
    """What was found for an architecture, and what random permutations of all groups changed."""

    name: str
    symmetry: Symmetry
    parameters: int
    moved: int
    change_float32: float
    change_float64: float


def build_ours(architecture: str, activation: str) -> tuple[nn.Module, Tensor]:
    """Build one of the zoos' networks and an input."""
    channels, pixels = OURS[architecture]
    width = {"width": 8} if architecture == "resnet18" else {}
    config = NetworkConfig.model_validate({"architecture": architecture, "activation": activation, **width})
    return build_network(config, channels, 10, pixels), torch.zeros(1, channels, pixels, pixels)


def build_vision(name: str, pixels: int | None = None) -> tuple[nn.Module, Tensor]:
    """Build a torchvision model and an input."""
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]):
        network = getattr(open_torchvision().models, name)(**settings)
    pixels = pixels or PIXELS.get(name, 224)
    return network, torch.zeros(1, 3, pixels, pixels)


def prove(name: str, network: nn.Module, example: Tensor) -> Proof:
    """Derive the groups, permute all of them at random, and compare outputs in both precisions."""
    symmetry = derive_groups(network, example)
    generator = torch.Generator().manual_seed(1)
    network = copy.deepcopy(network).double().eval()
    gain = GAINS.get(name, 1.0)
    weights = draw_generic_weights(network, generator)
    weights = {key: value * gain if value.ndim > 1 else value for key, value in weights.items()}
    inputs = torch.randn(example.shape, generator=generator, dtype=torch.float64)
    permutations = [drawn[0] for drawn in draw_permutations(symmetry.groups, 1, generator)]
    changes = []
    for dtype in (torch.float64, torch.float32):
        network, inputs = network.to(dtype), inputs.to(dtype)
        weights = {key: value.to(dtype) for key, value in weights.items()}
        permuted = permute_parameters(weights, symmetry.groups, permutations)
        with torch.no_grad():
            before = torch.func.functional_call(network, weights, (inputs,))
            after = torch.func.functional_call(network, permuted, (inputs,))
        changes.append(float((after - before).abs().max() / before.abs().max()))
    parameters = dict(network.named_parameters())
    moved = count_moved({key: value.shape for key, value in parameters.items()}, symmetry.groups)
    total = sum(value.numel() for value in parameters.values())
    return Proof(name, symmetry, total, moved, changes[1], changes[0])


def count_moved(shapes: dict[str, torch.Size], groups: tuple[PermutationGroup, ...]) -> int:
    """Count the weights that some permutation moves."""
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for group in groups:
        for member in group.members:
            if member.tensor in masks:  # statistics are no weights
                mask = masks[member.tensor]
                rows = mask if member.rows is None else mask[slice(*member.rows)]
                rows.index_fill_(member.axis, torch.tensor(member.indices).reshape(-1), True)
    return sum(int(mask.sum()) for mask in masks.values())


def count_blocks(groups: tuple[PermutationGroup, ...]) -> int:
    """Count the groups whose units contain other groups' units (heads, groups of a convolution)."""
    owners: list[set[tuple[str, int, int]]] = []
    for group in groups:
        rows = [member for member in group.members if member.rows is None]
        owners.append({(member.tensor, member.axis, index) for member in rows for index in member.indices[0]})
    blocks = 0
    for number, group in enumerate(groups):
        inside = owners[number]
        if any(_list_owned(other) <= inside for other in groups[:number] if other is not group):
            blocks += 1
    return blocks


def _list_owned(group: PermutationGroup) -> set[tuple[str, int, int]]:
    members = [member for member in group.members if member.rows is None]
    return {(member.tensor, member.axis, index) for member in members for unit in member.indices for index in unit}


def format_row(proof: Proof, origin: str = "") -> str:
    """Return the architecture's row of the table."""
    groups = proof.symmetry.groups
    cells = [
        f"{origin}{proof.name}",
        f"{len(groups)}",
        f"{count_blocks(groups)}",
        f"{sum(group.units for group in groups):,}",
        f"{100 * proof.moved / proof.parameters:.1f} %",
        f"{sum(group.sign for group in groups)}",
        f"{sum(group.scale for group in groups)}",
        f"{proof.change_float32:.0e}",
        f"{proof.change_float64:.0e}",
        "; ".join(proof.symmetry.notes) or "-",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:]
    rows = []
    for architecture in OURS:
        if not chosen or architecture in chosen:
            for activation in ("tanh", "relu", "gelu"):
                rows.append(format_row(prove(f"{architecture}, {activation}", *build_ours(architecture, activation))))
                print(rows[-1], flush=True)
    for name in VISION:
        if not chosen or f"torchvision.{name}" in chosen:
            rows.append(format_row(prove(name, *build_vision(name)), "torchvision "))
            print(rows[-1], flush=True)
    if not chosen:
        text = FILE.read_text()
        head = text[: text.index(START)] + "\n".join(text[text.index(START) :].splitlines()[:2]) + "\n"
        FILE.write_text(head + "\n".join(rows) + "\n")
        print(f"wrote {FILE.relative_to(REPOSITORY)}")
