"""Training many networks of one architecture as one program: the engine of zoo training on a GPU.

The models' weights are the rows of one matrix; the forward pass is vectorised over them (`torch.func.vmap`). They share
architecture, batch size, number of images, optimizer and schedule; rates, labels, order of images and start are their
own. The same arithmetic as `networks.train_loop`, model by model, within float tolerance. What networks draw at random
(dropout masks) is seeded for each epoch too, but by the first model for all: it is the same again for the same chunk of
models.

Suffixes: B models, P weights of a model, N images, S images in a step, C channels, H height, W width, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from mzsane.config import RecipeConfig
from mzsane.networks.train_loop import MEASURE_SEED, MOMENTUM, one_cycle
from mzsane.problems.images.dataset import ImageSplit
from mzsane.randomness import peek_seed, seed_globally

_MEASURE_BATCH = 256  # images
_MOST_MODELS = 512
_USED = 0.6  # share of a GPU's memory that is counted on
_WEIGHT_COPIES = 8  # weights, gradient, two moments, and what an update holds beside them
_BACKWARD = 2.5  # what a step takes, in what the forward pass keeps for the backward one
_BETAS, _RMS_ALPHA, _EPS = (0.9, 0.999), 0.99, 1e-8


@dataclass(frozen=True)
class BatchedModels:
    """Networks of one architecture with their own weights: `flat_BP` on a device, and stacked buffers by name."""

    network: nn.Module
    flat_BP: Tensor
    buffers: dict[str, Tensor]

    @classmethod
    def stack(cls, networks: Sequence[nn.Module], device: torch.device) -> "BatchedModels":
        """Stack the weights and buffers of networks."""
        flat = [torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks]
        names = [name for name, _ in networks[0].named_buffers()]
        stacked = {name: torch.stack([network.get_buffer(name) for network in networks]).to(device) for name in names}
        return cls(networks[0], torch.stack(flat).to(device).requires_grad_(), stacked)

    def parameters(self) -> dict[str, Tensor]:
        """Return views of the weights by name, each (B, ...)."""
        shapes = [(name, p.shape) for name, p in self.network.named_parameters()]
        pieces = self.flat_BP.split([shape.numel() for _, shape in shapes], dim=1)
        return {name: piece.view(-1, *shape) for (name, shape), piece in zip(shapes, pieces, strict=True)}

    def read_state(self, position: int) -> dict[str, Tensor]:
        """Return a copy of one model's state dict, on the CPU."""
        tensors = {**self.parameters(), **self.buffers}
        first = {id(value): name for name, value in self._list_first()}  # of tensors that have several names
        state = self.network.state_dict(keep_vars=True)
        return {name: tensors[first[id(value)]][position].detach().cpu().clone() for name, value in state.items()}

    def _list_first(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.network.named_parameters()
        yield from self.network.named_buffers()

    def forward(self, images: Tensor, shared: bool) -> Tensor:
        """Return the logits (B, S, K) of images (S, C, H, W) that all models share, or (B, S, C, H, W) of their own."""

        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images_SCHW: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.network, (parameters, buffers), (images_SCHW,))
            return logits

        vectorised: Callable[..., Tensor] = vmap(call, in_dims=(0, 0, None if shared else 0), randomness="different")
        return vectorised(self.parameters(), self.buffers, images)


def explain_unbatchable(network: nn.Module, images_NCHW: Tensor) -> str | None:
    """Return why networks of an architecture cannot be trained as one program; None if they can.

    Args:
        network: a new network of it, on the CPU.
        images_NCHW: some images that it takes.
    """
    models = BatchedModels.stack([network, network], torch.device("cpu"))
    network.train()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.autograd.grad(models.forward(images_NCHW, shared=True).sum(), models.flat_BP)
    except Exception as error:  # whatever the module's code and its operators raise
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def count_models(network: nn.Module, images_SCHW: Tensor, memory: int) -> int:
    """Return how many models can be trained together.

    Args:
        network: one of them, on the CPU.
        images_SCHW: the images of a step.
        memory: of the GPU, bytes.
    """
    kept = 0

    def count(value: Tensor) -> Tensor:
        nonlocal kept
        kept += value.numel() * value.element_size()
        return value

    with seed_globally(MEASURE_SEED), torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        network.train()(images_SCHW)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return max(1, min(_MOST_MODELS, int(_USED * memory / (_WEIGHT_COPIES * weights + _BACKWARD * kept))))


def fit_epochs_batched(
    models: BatchedModels,
    splits: Sequence[ImageSplit],
    recipes: Sequence[RecipeConfig],
    generators: Sequence[torch.Generator],
    epochs: int,
) -> Iterator[None]:
    """Train all models in place; yields None after each epoch.

    Args:
        models: the models.
        splits: each model's training images, on the models' device; equally many for all.
        recipes: each model's recipe.
        generators: each model's generator, for the order of its images; the first one's for what networks draw.
        epochs: length of the one-cycle schedule.
    """
    recipe, device = recipes[0], models.flat_BP.device
    count = len(splits[0].labels_N)
    one_pool = all(split.images_NCHW is splits[0].images_NCHW for split in splits)
    pool = splits[0].images_NCHW if one_pool else torch.stack([split.images_NCHW for split in splits])
    labels_BN = torch.stack([split.labels_N for split in splits])
    rows_B1 = torch.arange(len(recipes), device=device)[:, None]
    rate_B1 = torch.tensor([[r.learning_rate] for r in recipes], device=device)
    decay_B1 = torch.tensor([[r.weight_decay] for r in recipes], device=device)
    parts = [p.new_full((p.numel(),), p.requires_grad) for p in models.network.parameters()]
    trained_P = torch.cat(parts).to(device)  # 0 where the network has frozen weights
    frozen = not bool(trained_P.all())
    update = _Update(recipe.optimizer, models.flat_BP, decay_B1 * trained_P if frozen else decay_B1)
    steps, step = epochs * math.ceil(count / recipe.batch_size), 0
    while True:
        models.network.train()
        order_BN = torch.stack([torch.randperm(count, generator=generator) for generator in generators]).to(device)
        with seed_globally(peek_seed(generators[0]), device):
            for batch_BS in order_BN.split(recipe.batch_size, dim=1):
                images = pool[batch_BS] if one_pool else pool[rows_B1, batch_BS]
                logits_BSK = models.forward(images, shared=False)
                loss = (
                    functional.cross_entropy(
                        logits_BSK.flatten(0, 1), labels_BN.gather(1, batch_BS).flatten(), reduction="sum"
                    )
                    / batch_BS.shape[1]
                )  # the sum of the models' mean losses: each model's gradient is its own
                (gradient_BP,) = torch.autograd.grad(loss, models.flat_BP)
                share = one_cycle(step, steps) if recipe.schedule == "one-cycle" else 1.0
                update.apply(gradient_BP * trained_P if frozen else gradient_BP, rate_B1 * share)
                step += 1
        yield


@torch.no_grad()
def measure_batched(models: BatchedModels, split: ImageSplit) -> list[tuple[float, float]]:
    """Return each model's mean cross-entropy (nats; infinite if not a number) and accuracy (0..1)."""
    models.network.eval()
    loss_B = torch.zeros(len(models.flat_BP), device=models.flat_BP.device, dtype=torch.float64)
    correct_B = torch.zeros_like(loss_B)
    batches = zip(split.images_NCHW.split(_MEASURE_BATCH), split.labels_N.split(_MEASURE_BATCH), strict=True)
    with seed_globally(MEASURE_SEED, models.flat_BP.device):
        for images_SCHW, labels_S in batches:
            logits_BSK = models.forward(images_SCHW, shared=True)
            labels_BS = labels_S.expand(len(loss_B), -1)
            loss_B += functional.cross_entropy(logits_BSK.transpose(1, 2), labels_BS, reduction="none").sum(dim=1)
            correct_B += (logits_BSK.argmax(dim=2) == labels_BS).sum(dim=1)
    count = len(split.labels_N)
    mean_B = (loss_B / count).nan_to_num(nan=math.inf, posinf=math.inf)
    return list(zip(mean_B.tolist(), (correct_B / count).tolist(), strict=True))


class _Update:
    """An optimizer's step on the rows of a matrix, each with its own rate; the formulas of `torch.optim`."""

    def __init__(self, optimizer: str, flat_BP: Tensor, decay_BP: Tensor) -> None:
        self.optimizer, self.flat_BP, self.decay_BP = optimizer, flat_BP, decay_BP
        self.first_BP, self.second_BP = torch.zeros_like(flat_BP.detach()), torch.zeros_like(flat_BP.detach())
        self.step = 0

    @torch.no_grad()
    def apply(self, gradient_BP: Tensor, rate_B1: Tensor) -> None:
        """Change the weights by one step."""
        self.step += 1
        if self.optimizer == "adamw":
            self.flat_BP.mul_(1 - rate_B1 * self.decay_BP)
        else:
            gradient_BP = gradient_BP + self.decay_BP * self.flat_BP
        if self.optimizer in ("adam", "adamw"):
            self.first_BP.lerp_(gradient_BP, 1 - _BETAS[0])
            self.second_BP.mul_(_BETAS[1]).addcmul_(gradient_BP, gradient_BP, value=1 - _BETAS[1])
            spread_BP = (self.second_BP / (1 - _BETAS[1] ** self.step)).sqrt_().add_(_EPS)
            self.flat_BP.sub_(rate_B1 / (1 - _BETAS[0] ** self.step) * self.first_BP / spread_BP)
        elif self.optimizer == "sgd":
            self.first_BP.mul_(MOMENTUM).add_(gradient_BP)
            self.flat_BP.sub_(rate_B1 * self.first_BP)
        else:
            self.second_BP.mul_(_RMS_ALPHA).addcmul_(gradient_BP, gradient_BP, value=1 - _RMS_ALPHA)
            self.flat_BP.sub_(rate_B1 * gradient_BP / self.second_BP.sqrt().add_(_EPS))
