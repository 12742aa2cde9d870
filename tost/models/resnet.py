"""Residual networks of the papers, built of BasicBlocks (He et al. 2016, https://arxiv.org/abs/1512.03385).

Two families for small images, both with a 3x3 stem and no max pooling:

* `cifar_resnet(depth)`: depth 6n+2 (20, 32, ...), three stages of n blocks with 16, 32 and 64 channels;
* `resnet18`: four stages of 2 blocks with 64, 128, 256 and 512 channels.

Where a block changes shape its shortcut is a 1x1 projection with BatchNorm (option B of the paper), elsewhere the
identity, an empty `nn.Sequential`. Ghost skips rely on the attribute names of `BasicBlock`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `act2(bn2(conv2(act1(bn1(conv1(x))))) + shortcut(x))`.

    Input (N, in_channels, H, W); output (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut.append(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act1(self.bn1(self.conv1(x)))
        out: Tensor = self.act2(self.bn2(self.conv2(h)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """3x3 stem, stages of BasicBlocks (every stage but the first halves the image), global average, classifier.

    Args:
        blocks: number of blocks of each stage.
        widths: number of channels of each stage; the stem has `widths[0]`.

    Input (N, in_channels, H, W) of any H, W; output logits (N, num_classes). Convolutions start from a Kaiming normal
    distribution over their fan-out (https://arxiv.org/abs/1502.01852), the usual choice for residual networks: it keeps
    the size of the gradient from layer to layer. The classifier keeps torch's default.
    """

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act = nn.ReLU()
        self.stages = len(blocks)
        previous = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layers = []
            for i in range(count):
                layers.append(BasicBlock(previous, width, stride=2 if stage > 0 and i == 0 else 1))
                previous = width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def cifar_resnet(depth: int, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """The CIFAR ResNet of `depth` = 6n+2 layers (section 4.2 of the paper, with projection shortcuts)."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth: expected 6n+2 with n >= 1 (8, 14, 20, 32, ...), got {depth}")
    return ResNet([(depth - 2) // 6] * 3, (16, 32, 64), num_classes, in_channels)


def resnet18(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-18 with the 3x3 stem used for 32x32 images."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), num_classes, in_channels)
