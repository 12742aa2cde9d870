"""LeNet-300-100, the fully connected network of the lottery-ticket papers."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet300100(nn.Module):
    """Three linear layers of 300, 100 and `num_classes` units with ReLU (LeCun et al. 1998).

    Input (N, in_channels, 28, 28); output logits (N, num_classes). Weights keep torch's default initialization.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: tuple[int, int] = (28, 28)) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(in_channels * image_size[0] * image_size[1], 300)
        self.act1 = nn.ReLU()
        self.fc2 = nn.Linear(300, 100)
        self.act2 = nn.ReLU()
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act2(self.fc2(self.act1(self.fc1(self.flatten(x)))))
        logits: Tensor = self.fc3(h)
        return logits
