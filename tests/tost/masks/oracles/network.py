"""The network and the batches on which the reference implementations were run: drawn anew, bit for bit, wherever they are needed.

Everything comes out of the raw 64-bit stream of PCG64, which numpy promises not to change, by exact integer arithmetic.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = 10
BATCH = 20  # two images of each class, in order
IMAGE = (3, 8, 8)


class Network(nn.Module):
    """A small residual network: strides, groups, a projection, biases in one convolution and the classifier; 2,394 weights.

    Args:
        layers: where `Conv2d`, `Linear` and `BatchNorm2d` are found.
    """

    def __init__(self, layers: ModuleType = nn) -> None:
        super().__init__()
        self.conv1 = layers.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = layers.BatchNorm2d(6)
        self.conv2 = layers.Conv2d(6, 8, 3, padding=1, groups=2)
        self.bn2 = layers.BatchNorm2d(8)
        self.conv3 = layers.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3 = layers.BatchNorm2d(8)
        self.conv4 = layers.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn4 = layers.BatchNorm2d(16)
        self.shortcut = layers.Conv2d(8, 16, 1, stride=2, bias=False)
        self.fc = layers.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to logits (N, 10)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x))) + x
        x = torch.relu(self.bn4(self.conv4(x)) + self.shortcut(x))
        return self.fc(x.mean((2, 3)))


def network(seed: int = 0, layers: ModuleType = nn) -> Network:
    """`Network` in train mode, all of whose parameters and statistics are drawn: nothing is left at 0 or 1."""
    net = Network(layers)
    stream = np.random.PCG64(seed)
    with torch.no_grad():
        for module in net.children():
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(module, name, None)
                if tensor is None:
                    continue
                drawn = _normal(stream, tuple(tensor.shape))
                if name == "weight" and tensor.ndim > 1:
                    drawn = drawn * (2 / tensor[0].numel()) ** 0.5
                elif name == "weight":
                    drawn = 1 + drawn / 2
                elif name == "running_var":
                    drawn = 0.5 + drawn.square()
                else:
                    drawn = drawn / 4
                tensor.copy_(drawn)
    return net


def batches(count: int, seed: int = 1000) -> list[tuple[Tensor, Tensor]]:
    """`count` batches of 20 images (3, 8, 8) and their classes 0, 0, 1, 1, ... 9, 9."""
    stream = np.random.PCG64(seed)
    return [(_normal(stream, (BATCH, *IMAGE)), torch.arange(CLASSES).repeat_interleave(2)) for _ in range(count)]


def _normal(stream: np.random.PCG64, shape: tuple[int, ...]) -> Tensor:
    """Float32, mean 0, variance 1, nearly normal: each the sum of four uniform 32-bit integers."""
    size = int(np.prod(shape))
    uniform = (stream.random_raw(4 * size) >> np.uint64(32)).astype(np.float64).reshape(size, 4)
    standard = (uniform.sum(1) - 2.0**33) * (3**0.5 / 2.0**32)
    return torch.from_numpy(standard.astype(np.float32).reshape(shape))
