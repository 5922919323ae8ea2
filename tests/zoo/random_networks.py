"""Factories whose networks draw random numbers in every way that there is, and others that are awkward to use."""

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

UNSEEDED = np.random.default_rng()
calls = 0


class Drawing(nn.Module):
    """A small network that loses hidden units in a way of its own."""

    def __init__(self, channels: int, classes: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(channels, 4, 5, stride=3)
        self.hidden = nn.Linear(4 * 8 * 8, 12)
        self.head = nn.Linear(12, classes)
        self.spatial = nn.Dropout2d(0.3)
        self.drop = nn.Dropout(0.3)
        self.alpha = nn.AlphaDropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        if self.kind == "spatial":
            x = self.spatial(x)
        x = torch.relu(self.hidden(x.flatten(1)))
        if self.kind == "module":
            x = self.drop(x)
        if self.kind == "alpha":
            x = self.alpha(x)
        if self.kind == "functional":
            x = functional.dropout(x, 0.3, self.training)
        if self.kind == "noise":  # in evaluation too
            x = x + 0.1 * torch.randn_like(x)
        if self.training and self.kind == "depth" and random.random() < 0.5:
            x = 0.5 * x
        if self.training and self.kind == "numpy":
            x = x * float(np.random.rand())
        if self.kind == "unseeded":
            x = x * float(UNSEEDED.random())
        return self.head(x)


def make(kind):
    return lambda channels, classes: Drawing(channels, classes, kind)


module, spatial, alpha, functional_dropout, noise = map(make, ("module", "spatial", "alpha", "functional", "noise"))
depth, from_numpy, unseeded = map(make, ("depth", "numpy", "unseeded"))


def flat(classes: int, pixels: int = 784) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8), nn.ReLU(), nn.Linear(8, classes))


def counting(channels, classes):
    """Start otherwise each time, whatever the seed."""
    global calls
    calls += 1
    network = flat(classes)
    nn.init.constant_(network[3].bias, calls)
    return network


def growing(channels, classes):
    """Have other shapes with each seed."""
    width = int(torch.randint(4, 400, ()))
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, classes))


class Viewing(nn.Module):
    """Look at feature maps as they lie in memory."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 5, stride=3)
        self.head = nn.Linear(192, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(-1, 192))


def viewing(channels, classes):
    return Viewing(channels, classes)


class Returning(nn.Module):
    def __init__(self, classes: int, how: str) -> None:
        super().__init__()
        self.body, self.how = flat(classes), how

    def forward(self, x: Tensor):
        y = self.body(x)
        return {
            "tuple": (y, y),
            "list": [y],
            "dict": {"logits": y},
            "none": None,
            "classes": y.argmax(1),
            "flat": y.flatten(),
            "extra": y[:, :, None],
        }[self.how]


def returning(how):
    return lambda channels, classes: Returning(classes, how)


tuples, lists, dicts, nothing, numbers, flattened, extra = map(
    returning, ("tuple", "list", "dict", "none", "classes", "flat", "extra")
)


def too_many(channels, classes):
    return flat(classes + 2)


def wrong_size(channels, classes):
    return flat(classes, 1024)


def frozen(channels, classes):
    return flat(classes).requires_grad_(False)


def doubles(channels, classes):
    return flat(classes).double()


class FixedBatch(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = flat(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.view(16, -1))


def fixed_batch(channels, classes):
    return FixedBatch(classes)


class Uncopied(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.calls = flat(classes), (number for number in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def uncopied(channels, classes):
    return Uncopied(classes)


def lazy(channels, classes):
    return nn.Sequential(nn.LazyConv2d(4, 5, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


def slopes(channels, classes):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.PReLU(init=0.1), nn.Linear(8, classes))
    nn.init.constant_(network[3].bias, 0.5)
    return network


class Scaled(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.gamma = flat(classes), nn.Parameter(torch.full((classes,), 1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.body(x)


def scaled(channels, classes):
    return Scaled(classes)


class Attending(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(28, 2, batch_first=True), nn.Linear(28, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)
        return self.head(self.attention(rows, rows, rows)[0].mean(1))


def attending(channels, classes):
    return Attending(classes)


class Recurrent(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(28, 6, batch_first=True), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.flatten(1, 2))[0][:, -1])


def recurrent(channels, classes):
    return Recurrent(classes)


class Tied(nn.Module):
    """One weight under two names, one layer that stays as it is."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.enter, self.mix, self.again = nn.Linear(784, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.mix.weight
        self.head = nn.Linear(8, classes)
        self.enter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.mix(torch.tanh(self.enter(x.flatten(1)))))
        return self.head(torch.tanh(self.again(x)))


def tied(channels, classes):
    return Tied(classes)


class Deciding(nn.Module):
    """Do something else for other values, which one program for many models cannot."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = flat(classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y if float(y.sum()) > 0 else 2 * y


def deciding(channels, classes):
    return Deciding(classes)
