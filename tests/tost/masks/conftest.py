"""Small networks and batches that the tests of the masks share."""

import pytest
import torch
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """A BasicBlock with a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, two blocks, dropout, classifier; input (N, 3, 8, 8), 10 classes; 5,112 prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 16, 2))
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.drop(h.mean((2, 3))))


@pytest.fixture
def resnet() -> ResNet:
    torch.manual_seed(1)
    return ResNet()


@pytest.fixture
def convnet() -> nn.Sequential:
    """Grouped convolution, biases, no normalisation; 1,656 prunable weights."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 9, (1, 3), stride=2, padding=(0, 1), groups=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9 * 4 * 4, 10),
    )


@pytest.fixture
def batches() -> Batches:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator)) for _ in range(3)]


@pytest.fixture
def two_layers() -> nn.Sequential:
    """Two inputs, two hidden units, one output: small enough for a table by hand."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        net[2].weight.copy_(torch.tensor([[2.0, -1.0]]))
    return net
