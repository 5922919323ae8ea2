"""The networks that zoos are made of, with the published zoos' names of layers, and how their weights start.

Suffixes: N images, C channels, H height, W width, K classes, T patches, M model width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mzsane.config import NetworkConfig
from mzsane.config.zoo import OWN
from mzsane.errors import ConfigError
from mzsane.networks.factories import call_factory
from mzsane.randomness import draw_seed

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}
_SPELLINGS = {name.replace("_", ""): name for name in _ACTIVATIONS} | {"swish": "silu"}
_INITIALISERS: dict[str, Callable[..., Tensor]] = {
    "kaiming_uniform": nn.init.kaiming_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "uniform": nn.init.uniform_,
    "normal": nn.init.normal_,
}
_DRAWN = (nn.Linear, nn.Conv1d, nn.Conv2d)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)
_INITIAL_BIAS = 0.01
_EMBEDDING_DEVIATION = 0.02
_PATCH = 4  # pixels


class Chain(nn.Module):
    """A chain of layers under the name that the published zoos give it, `module_list`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.module_list = nn.Sequential(*layers)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits, shape (N, classes)."""
        logits_NK: Tensor = self.module_list(images_NCHW)
        return logits_NK


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut, named as in torchvision's `BasicBlock`."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act = act()
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the block's output."""
        shortcut = x_NCHW if self.downsample is None else self.downsample(x_NCHW)
        hidden = self.act(self.bn1(self.conv1(x_NCHW)))
        out: Tensor = self.act(self.bn2(self.conv2(hidden)) + shortcut)
        return out


class ResNet18(nn.Module):
    """ResNet-18 with the CIFAR stem (3x3 first convolution, no pooling), of any width; torchvision's names."""

    def __init__(self, channels: int, classes: int, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = act()
        self.layer1 = _build_stage(width, width, 1, act)
        self.layer2 = _build_stage(width, 2 * width, 2, act)
        self.layer3 = _build_stage(2 * width, 4 * width, 2, act)
        self.layer4 = _build_stage(4 * width, 8 * width, 2, act)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits, shape (N, classes)."""
        x_NCHW = self.act(self.bn1(self.conv1(images_NCHW)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x_NCHW = stage(x_NCHW)
        logits_NK: Tensor = self.fc(x_NCHW.mean(dim=(2, 3)))
        return logits_NK


def _build_stage(inputs: int, outputs: int, stride: int, act: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(inputs, outputs, stride, act), ResidualBlock(outputs, outputs, 1, act))


class ViTBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, dropout: float, act: type[nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = act()
        self.fc2 = nn.Linear(2 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_NTM: Tensor) -> Tensor:
        """Return the block's output."""
        count, patches, width = x_NTM.shape
        qkv = self.qkv(self.norm1(x_NTM)).reshape(count, patches, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # Written out, because the fused kernels cannot be vectorised over models.
        attention = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        mixed_NTM = (attention @ v).transpose(1, 2).reshape(count, patches, width)
        x_NTM = x_NTM + self.drop(self.proj(mixed_NTM))
        out: Tensor = x_NTM + self.drop(self.fc2(self.act(self.fc1(self.norm2(x_NTM)))))
        return out


class ViT(nn.Module):
    """A small vision transformer: 4x4 patches, learned positions, four blocks, mean over the patches."""

    def __init__(
        self, channels: int, classes: int, size: int, width: int, dropout: float, act: type[nn.Module]
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(channels, width, _PATCH, _PATCH)
        self.pos_embed = nn.Parameter(torch.empty(1, (size // _PATCH) ** 2, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, 4, dropout, act) for _ in range(4)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits, shape (N, classes)."""
        x_NTM = self.patch_embed(images_NCHW).flatten(2).transpose(1, 2) + self.pos_embed
        logits_NK: Tensor = self.head(self.norm(self.blocks(x_NTM)).mean(dim=1))
        return logits_NK


def choose_network(network: NetworkConfig, activation: object) -> NetworkConfig | None:
    """Return the network of a model whose recipe tells an activation of its own; None if that is none of ours.

    A factory decides itself, and so does the network where the recipe says nothing.

    Args:
        network: the architecture of the zoo.
        activation: what the recipe says, in anybody's spelling (`ReLU`, `leaky_relu`); None for nothing.
    """
    if activation is None or network.is_factory:
        return network
    name = _SPELLINGS.get(str(activation).rpartition(".")[2].lower().replace("_", ""))
    return None if name is None else network.model_copy(update={"activation": name})


def build_network(config: NetworkConfig, channels: int, classes: int, size: int = 28, seed: int = 0) -> nn.Module:
    """Build a network with undefined weights, or those that its factory gives it; no global random state is touched.

    `cnn-s` takes 28x28 images and has 2,464 weights at one channel and ten classes, `cnn-l` takes 32x32 images and has
    10,853 at three channels ("Model Zoos", arXiv 2209.14764).

    Args:
        config: which architecture, and its sizes.
        channels: colour channels of an image.
        classes: number of outputs.
        size: height and width of an image, pixels.
        seed: of what a factory draws.

    Raises:
        ConfigError: the architecture does not take images of that size, or its factory cannot be found or fails.
    """
    if config.is_factory:
        return call_factory(config.architecture, channels, classes, size, seed)
    needed = _IMAGE_SIZES.get(config.architecture, size)
    if size != needed:
        raise ConfigError(
            f"{config.architecture} takes images of {needed}x{needed} pixels, not {size}x{size}: set images.size "
            f"to {needed}"
        )
    if config.architecture == "vit" and size % _PATCH:
        raise ConfigError(f"vit takes images whose size is a multiple of {_PATCH} pixels, not {size}: set images.size")
    with torch.device("meta"):
        network = _BUILDERS[config.architecture](config, channels, classes, size)
    network = network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return network


def start_network(
    config: NetworkConfig, channels: int, classes: int, size: int, initialisation: str, generator: torch.Generator
) -> nn.Module:
    """Build a network whose weights are as a training finds them, drawn from an explicit generator.

    With `own` they are those that its factory gives it, buffers included.

    Raises:
        ConfigError: as `build_network` and `initialise_network`.
    """
    if initialisation == OWN:
        return build_network(config, channels, classes, size, draw_seed(generator))
    network = build_network(config, channels, classes, size)
    initialise_network(network, initialisation, generator)
    return network


def initialise_network(network: nn.Module, initialisation: str, generator: torch.Generator) -> None:
    """Draw a network's initial weights in place from an explicit generator.

    Weights of linear and convolution layers are drawn, their biases become 0.01; norms start at scale 1 and shift 0;
    the positions of a vit are N(0, 0.02).

    Raises:
        ConfigError: the network has other weights, of which nothing is known.
    """
    initialise = _INITIALISERS[initialisation]
    with torch.no_grad():
        for place, module in network.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                known = name in ("weight", "bias")
                if isinstance(module, _DRAWN) and known:
                    if name == "weight":
                        initialise(parameter, generator=generator)
                    else:
                        parameter.fill_(_INITIAL_BIAS)
                elif isinstance(module, _NORMS) and known:
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                elif isinstance(module, ViT):
                    parameter.normal_(0, _EMBEDDING_DEVIATION, generator=generator)
                else:
                    raise ConfigError(
                        f"initialisation {initialisation} knows linear and convolution layers and norms, not the "
                        f"{name} of {type(module).__name__} {place or '(the network itself)'}: leave initialisation "
                        f"out or set it to {OWN}, so that the factory's own start is kept"
                    )


def choose_memory_format(network: nn.Module) -> torch.memory_format:
    """Return how a loop on a CPU lays out convolutions and images.

    Channels last is faster, but a factory's network may look at its images in a way that cannot be had then (`view`).
    """
    ours = type(network) in (Chain, ResNet18, ViT)
    return torch.channels_last if ours else torch.contiguous_format


def _act(config: NetworkConfig) -> nn.Module:
    """Return an activation, dropout included: the layers around it have the same names with dropout and without."""
    act = _ACTIVATIONS[config.activation]()
    return nn.Sequential(act, nn.Dropout(config.dropout)) if config.dropout > 0 else act


def _build_cnn_s(config: NetworkConfig, channels: int, classes: int, size: int) -> nn.Module:
    return Chain(
        *(nn.Conv2d(channels, 8, 5), nn.MaxPool2d(2), _act(config)),
        *(nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), _act(config)),
        *(nn.Conv2d(6, 4, 2), _ACTIVATIONS[config.activation](), nn.Flatten()),
        *(nn.Linear(36, 20), _act(config)),
        nn.Linear(20, classes),
    )


def _build_cnn_l(config: NetworkConfig, channels: int, classes: int, size: int) -> nn.Module:
    act = _ACTIVATIONS[config.activation]
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 16), (16, 32), (32, 15)):
        layers += [nn.Conv2d(inputs, outputs, 3), nn.MaxPool2d(2), act(), nn.Dropout(config.dropout)]
    head = (nn.Flatten(), nn.Linear(60, 20), act(), nn.Dropout(config.dropout), nn.Linear(20, classes))
    return Chain(*layers, *head)


def _build_mlp(config: NetworkConfig, channels: int, classes: int, size: int) -> nn.Module:
    width = config.width or 32
    return Chain(
        *(nn.Flatten(), nn.Linear(channels * size**2, width), _act(config)),
        *(nn.Linear(width, width), _act(config)),
        nn.Linear(width, classes),
    )


def _build_resnet18(config: NetworkConfig, channels: int, classes: int, size: int) -> nn.Module:
    return ResNet18(channels, classes, config.width or 64, _ACTIVATIONS[config.activation])


def _build_vit(config: NetworkConfig, channels: int, classes: int, size: int) -> nn.Module:
    return ViT(channels, classes, size, config.width or 64, config.dropout, _ACTIVATIONS[config.activation])


_BUILDERS: dict[str, Callable[[NetworkConfig, int, int, int], nn.Module]] = {
    "cnn-s": _build_cnn_s,
    "cnn-l": _build_cnn_l,
    "mlp": _build_mlp,
    "resnet18": _build_resnet18,
    "vit": _build_vit,
}
_IMAGE_SIZES = {"cnn-s": 28, "cnn-l": 32}  # height and width that an architecture is made for, pixels
