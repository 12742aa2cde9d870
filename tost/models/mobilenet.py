"""MobileNet v1 (Howard et al. 2017, https://arxiv.org/abs/1704.04861): depthwise separable convolutions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tost.choices import check_choice

# (channels, stride) of the 13 separable blocks: table 1 of the paper. Its last depthwise layer is printed with stride 2, but
# takes 7x7 to 7x7: stride 1 is meant.
_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip


class SeparableBlock(nn.Module):
    """3x3 depthwise and 1x1 pointwise convolution: `act2(bn2(conv2(act1(bn1(conv1(x))))))`.

    Input (N, in_channels, H, W); output (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act1(self.bn1(self.conv1(x)))
        out: Tensor = self.act2(self.bn2(self.conv2(h)))
        return out


class MobileNet(nn.Module):
    """3x3 stem of 32 channels, 13 separable blocks up to 1024 channels, global average, classifier.

    Args:
        stem: "imagenet", the paper's stride of 2, or "cifar", stride 1. Nothing else differs: the four blocks of stride 2 take
            an image of 224x224 to 7x7 with the one stem, and one of 32x32 to 2x2 with the other.

    Input (N, in_channels, H, W) of any H, W; output logits (N, num_classes). Convolutions start from a Kaiming normal
    distribution over their fan-out, as in our ResNets (9 for a depthwise one); the classifier keeps torch's default.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, stem: str = "cifar") -> None:
        super().__init__()
        stride = 2 if check_choice("stem", stem, ("cifar", "imagenet")) == "imagenet" else 1
        previous = 32
        self.conv1 = nn.Conv2d(in_channels, previous, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(previous)
        self.act = nn.ReLU()
        blocks = []
        for width, block_stride in _BLOCKS:
            blocks.append(SeparableBlock(previous, width, block_stride))
            previous = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # A depthwise filter reads and feeds 9 pixels of one channel; torch's fan-out would count those of all channels.
                mode: Literal["fan_in", "fan_out"] = "fan_out" if module.groups == 1 else "fan_in"
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits
