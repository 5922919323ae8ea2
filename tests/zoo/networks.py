"""The networks of the checkpoints in the data folder, as their authors' users would give them: factories."""

from torch import Tensor, nn
from torch.nn import functional


class ShadowCnn(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.conv2_batch_norm = nn.BatchNorm2d(50)
        self.dense1 = nn.Linear(800, 500)
        self.dense1_batch_norm = nn.BatchNorm1d(500)
        self.dense2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2_batch_norm(self.conv2(x))), 2)
        return self.dense2(self.dense1_batch_norm(self.dense1(x.flatten(1))))


class FashionCnn(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(3136, 128)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


class CifarBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        half = self.extra // 2
        return functional.relu(hidden + functional.pad(x, (0, 0, 0, 0, half, self.extra - half)))


class CifarResNet(nn.Module):
    """ResNet for CIFAR-10 with parameter-free shortcuts (He et al. 2015, section 4.2)."""

    def __init__(self, blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for stage, outputs in enumerate((16, 32, 64)):
            layers = []
            for block in range(blocks):
                layers.append(CifarBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def shadow_cnn(channels: int, classes: int) -> nn.Module:
    return ShadowCnn(channels, classes)


def fashion_cnn(channels: int, classes: int) -> nn.Module:
    return FashionCnn(channels, classes)


def resnet20(channels: int, classes: int) -> nn.Module:
    return CifarResNet(3, channels, classes)


def resnet32(channels: int, classes: int) -> nn.Module:
    return CifarResNet(5, channels, classes)
