"""Residual networks of the papers (He et al. 2016, https://arxiv.org/abs/1512.03385).

* `cifar_resnet(depth)`: depth 6n+2 (20, 32, 56, ...), three stages of n BasicBlocks with 16, 32 and 64 channels, or a multiple
  of these: section 4.2 of the paper;
* `resnet18`, `resnet34` (BasicBlock) and `resnet50` (Bottleneck): four stages of width 64, 128, 256 and 512: table 1 there.

The stem is a 3x3 convolution for small images, or the paper's for ImageNet: 7x7, then 3x3 max pooling, both of stride 2.
Where a block changes shape its shortcut is a 1x1 projection with BatchNorm (option B of the paper), elsewhere the
identity, an empty `nn.Sequential`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tost.checks import integer
from tost.choices import check_choice


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """The identity, or a 1x1 projection with BatchNorm where the shape changes."""
    if stride == 1 and in_channels == channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `act2(bn2(conv2(act1(bn1(conv1(x))))) + shortcut(x))`.

    Input (N, in_channels, H, W); output (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 1  # channels of the output for each of `channels`

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act1(self.bn1(self.conv1(x)))
        out: Tensor = self.act2(self.bn2(self.conv2(h)) + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut: `act3(bn3(conv3(act2(bn2(conv2(act1(bn1(conv1(x)))))))) + shortcut(x))`.

    The 3x3 convolution has the stride, as in torchvision; in the paper the first 1x1 has it. This form ("v1.5") costs a
    little more and is the one whose counts and accuracies are usually quoted.

    Input (N, in_channels, H, W); output (N, 4 * channels, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act1(self.bn1(self.conv1(x)))
        h = self.act2(self.bn2(self.conv2(h)))
        out: Tensor = self.act3(self.bn3(self.conv3(h)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Stem, stages of blocks (every stage but the first halves the image), global average, classifier.

    Args:
        blocks: number of blocks of each stage.
        widths: `channels` of the blocks of each stage; the stem has `widths[0]`.
        block: BasicBlock or Bottleneck.
        stem: "cifar", a 3x3 convolution, or "imagenet", 7x7 with stride 2 and 3x3 max pooling with stride 2.

    Input (N, in_channels, H, W) of any H, W; output logits (N, num_classes). Convolutions start from a Kaiming normal
    distribution over their fan-out (https://arxiv.org/abs/1502.01852), the usual choice for residual networks: it keeps
    the size of the gradient from layer to layer. The classifier keeps torch's default.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        num_classes: int = 10,
        in_channels: int = 3,
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        stem: str = "cifar",
    ) -> None:
        super().__init__()
        for_imagenet = check_choice("stem", stem, ("cifar", "imagenet")) == "imagenet"
        kernel = 7 if for_imagenet else 3
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel, stride=2 if for_imagenet else 1, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if for_imagenet else nn.Sequential()
        self.stages = len(blocks)
        previous = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layers = []
            for i in range(count):
                layers.append(block(previous, width, stride=2 if stage > 0 and i == 0 else 1))
                previous = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def cifar_resnet(depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 1) -> ResNet:
    """The CIFAR ResNet of `depth` = 6n+2 layers (section 4.2 of the paper, with projection shortcuts).

    width: 2 doubles the channels of every stage, to 32, 64 and 128, as GraSP (https://arxiv.org/abs/2002.07376) does.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth: expected 6n+2 with n >= 1 (8, 14, 20, 32, ...), got {depth}")
    width = integer("width", width, least=1)
    return ResNet([(depth - 2) // 6] * 3, (16 * width, 32 * width, 64 * width), num_classes, in_channels)


def resnet18(num_classes: int = 10, in_channels: int = 3, stem: str = "cifar") -> ResNet:
    """ResNet-18; by default with the 3x3 stem used for 32x32 images."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), num_classes, in_channels, stem=stem)


def resnet34(num_classes: int = 10, in_channels: int = 3, stem: str = "cifar") -> ResNet:
    """ResNet-34; by default with the 3x3 stem used for 32x32 images."""
    return ResNet((3, 4, 6, 3), (64, 128, 256, 512), num_classes, in_channels, stem=stem)


def resnet50(num_classes: int = 10, in_channels: int = 3, stem: str = "cifar") -> ResNet:
    """ResNet-50 ("v1.5", see `Bottleneck`); by default with the 3x3 stem used for 32x32 images."""
    return ResNet((3, 4, 6, 3), (64, 128, 256, 512), num_classes, in_channels, Bottleneck, stem)
