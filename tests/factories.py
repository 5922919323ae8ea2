"""Networks with state that is no parameter, called as users call theirs: `architecture: tests.factories:spectral`."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

PIXELS = 28


class Normalised(nn.Module):
    """Normalises its input by buffers."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("deviation", torch.ones(1, channels, 1, 1))
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(channels * PIXELS**2, 8), nn.ReLU(), nn.Linear(8, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.deviation)


class Averaged(nn.Module):
    """Centres its features by a moving average, and counts its steps, once as a whole number and once as a real one."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(channels * PIXELS**2, 8), nn.Linear(8, classes)
        self.register_buffer("centre", torch.zeros(8))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1))
        if self.training:
            self.centre.lerp_(hidden.mean(0).detach(), 0.1)
            self.steps += 1
            self.seen += len(x)
        return self.last(torch.relu(hidden - self.centre))


class OwnNorm(nn.Module):
    """A batch norm of somebody's own, with PyTorch's names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean.lerp_(x.mean(0).detach(), 0.1)
            self.running_var.lerp_(x.var(0).detach(), 0.1)
        return (x - self.running_mean) / (self.running_var + 1e-3).sqrt()


class Chosen(nn.Module):
    """Takes its pixels in the order of a buffer of whole numbers."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(channels * PIXELS**2))
        self.body = nn.Sequential(nn.Linear(channels * PIXELS**2, 8), nn.Tanh(), nn.Linear(8, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1)[:, self.order])


class Masked(nn.Module):
    """Has a mask of truth values on its hidden units."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(channels * PIXELS**2, 8), nn.Linear(8, classes)
        self.register_buffer("mask", torch.ones(8, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x.flatten(1))) * self.mask)


class Forgetful(nn.Module):
    """Has a moving average that its state dict does not keep."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(channels * PIXELS**2, classes))
        self.register_buffer("average", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average.lerp_(x.mean().detach(), 0.1)
        return self.body(x - self.average)


class Tied(nn.Module):
    """Uses one matrix twice."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.mix, self.again = nn.Linear(channels * PIXELS**2, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.mix.weight
        self.last = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.mix(torch.relu(self.first(x.flatten(1)))))
        return self.last(torch.relu(self.again(hidden)))


def normalised(channels: int, classes: int) -> nn.Module:
    return Normalised(channels, classes)


def averaged(channels: int, classes: int) -> nn.Module:
    return Averaged(channels, classes)


def own_norm(channels: int, classes: int) -> nn.Module:
    pixels = channels * PIXELS**2
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8), OwnNorm(8), nn.ReLU(), nn.Linear(8, classes))


def instance_norm(channels: int, classes: int) -> nn.Module:
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * (PIXELS - 2) ** 2, classes)
    )


def spectral(channels: int, classes: int) -> nn.Module:
    pixels = channels * PIXELS**2
    normed = [parametrizations.spectral_norm(nn.Linear(*sizes)) for sizes in ((pixels, 8), (8, 8))]
    return nn.Sequential(nn.Flatten(), normed[0], nn.ReLU(), normed[1], nn.ReLU(), nn.Linear(8, classes))


def chosen(channels: int, classes: int) -> nn.Module:
    return Chosen(channels, classes)


def masked(channels: int, classes: int) -> nn.Module:
    return Masked(channels, classes)


def forgetful(channels: int, classes: int) -> nn.Module:
    return Forgetful(channels, classes)


def tied(channels: int, classes: int) -> nn.Module:
    return Tied(channels, classes)
