"""VGG with BatchNorm for small images (Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556).

The form used on CIFAR: the paper's stacks of 3x3 convolutions (its columns D and E), BatchNorm after each, and one linear layer
in place of the three large ones.
"""

from __future__ import annotations

from torch import Tensor, nn

# depth -> 3x3 convolutions before each of the five poolings
_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3x3 convolution, BatchNorm and ReLU, each ended by 2x2 max pooling; global average, classifier.

    Args:
        depth: 16 or 19, the paper's count: 13 or 16 convolutions and three linear layers, of which this form has one.

    Input (N, in_channels, H, W); output logits (N, num_classes). Pooling rounds up, so images of any size leave at least
    one pixel; at 32x32 exactly one. Convolutions have a bias, as in the paper, and start from a Kaiming normal distribution
    over their fan-out; the classifier keeps torch's default.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(f"depth: expected one of {tuple(_STAGES)}, got {depth}")
        layers: list[nn.Module] = []
        previous = in_channels
        for count, width in zip(_STAGES[depth], _WIDTHS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(previous, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                previous = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.flatten(self.pool(self.features(x))))
        return logits
