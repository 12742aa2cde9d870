"""The networks of LeCun et al. 1998 ("Gradient-based learning applied to document recognition") as pruning papers train them.

LeNet-300-100 is fully connected. LeNet-5 comes in three forms, all with 5x5 convolutions, ReLU and 2x2 max pooling, without
BatchNorm: `lenet5`, `lenet5_conv` and `lenet5_caffe`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

_KERNEL, _POOLINGS = 5, 2


class LeNet300100(nn.Module):
    """Three linear layers of 300, 100 and `num_classes` units with ReLU (LeCun et al. 1998).

    Input (N, in_channels, *image_size); output logits (N, num_classes). Weights keep torch's default initialization.
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


class LeNet5(nn.Module):
    """5x5 convolutions with ReLU, 2x2 max pooling after the first two, then linear layers with ReLU between them.

    Args:
        channels: of the convolutions, at least two.
        hidden: units of the linear layers before the classifier.
        padding: of the first convolution; the others have none.

    Input (N, in_channels, *image_size); output logits (N, num_classes). Weights keep torch's default initialization.

    Raises:
        ValueError: the image is too small: nothing would be left of it.
    """

    def __init__(
        self,
        channels: Sequence[int] = (6, 16),
        hidden: Sequence[int] = (120, 84),
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        padding: int = 0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size, least, previous = [side + 2 * padding for side in image_size], 1, in_channels
        for i, width in enumerate(channels):
            layers += [nn.Conv2d(previous, width, _KERNEL, padding=padding if i == 0 else 0), nn.ReLU()]
            size = [side - _KERNEL + 1 for side in size]
            if i < _POOLINGS:
                layers.append(nn.MaxPool2d(2))
                size = [side // 2 for side in size]
            previous = width
        for i in reversed(range(len(channels))):
            least = (2 * least if i < _POOLINGS else least) + _KERNEL - 1
        if min(size) < 1:
            least -= 2 * padding
            raise ValueError(f"image_size: expected at least ({least}, {least}) for this network, got {tuple(image_size)}")
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        previous *= size[0] * size[1]
        layers = []
        for width in hidden:
            layers += [nn.Linear(previous, width), nn.ReLU()]
            previous = width
        self.classifier = nn.Sequential(*layers, nn.Linear(previous, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.flatten(self.features(x)))
        return logits


def lenet5(num_classes: int = 10, in_channels: int = 1, image_size: tuple[int, int] = (28, 28)) -> LeNet5:
    """The classic form: convolutions of 6 and 16 channels, linear layers of 120 and 84 units.

    It is a network for 32x32: smaller images (28x28 for one) are padded by 2 pixels on each side.
    """
    return LeNet5((6, 16), (120, 84), num_classes, in_channels, image_size, _padding_to_32(image_size))


def lenet5_conv(num_classes: int = 10, in_channels: int = 1, image_size: tuple[int, int] = (28, 28)) -> LeNet5:
    """The form of SplitLBI (DessiLBI, https://arxiv.org/abs/2007.02010): the layer of 120 units is a third convolution.

    At 28x28 and 32x32 it computes what `lenet5` does, but its 120 units are filters there. Padded as `lenet5`.
    """
    return LeNet5((6, 16, 120), (84,), num_classes, in_channels, image_size, _padding_to_32(image_size))


def lenet5_caffe(num_classes: int = 10, in_channels: int = 1, image_size: tuple[int, int] = (28, 28)) -> LeNet5:
    """The larger form that came with Caffe: convolutions of 20 and 50 channels, a linear layer of 500 units, no padding.

    Pruning papers from Han et al. 2015 (https://arxiv.org/abs/1506.02626) on mean this one where they say 431K parameters.
    """
    return LeNet5((20, 50), (500,), num_classes, in_channels, image_size)


def _padding_to_32(image_size: tuple[int, int]) -> int:
    return 2 if min(image_size) < 32 else 0
