"""Network names -> constructors."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tost.checks import integer
from tost.choices import check_choice
from tost.models.lenet import LeNet300100
from tost.models.resnet import cifar_resnet, resnet18
from tost.models.vgg import VGG

# (num_classes, in_channels, image_size) -> network; convolutional networks take images of any size
_BUILDERS: dict[str, Callable[[int, int, tuple[int, int]], nn.Module]] = {
    "lenet300100": LeNet300100,
    "resnet18": lambda classes, channels, _: resnet18(classes, channels),
    "resnet20": lambda classes, channels, _: cifar_resnet(20, classes, channels),
    "resnet32": lambda classes, channels, _: cifar_resnet(32, classes, channels),
    "vgg16": lambda classes, channels, _: VGG(16, classes, channels),
    "vgg19": lambda classes, channels, _: VGG(19, classes, channels),
}


def names() -> tuple[str, ...]:
    """The names `build` knows, sorted."""
    return tuple(sorted(_BUILDERS))


def build(name: str, num_classes: int = 10, in_channels: int = 3, image_size: tuple[int, int] = (28, 28)) -> nn.Module:
    """A freshly initialized dense network; torch's global generator decides the weights.

    Args:
        name: one of `names()`.
        num_classes: logits per image.
        in_channels: channels of the input images.
        image_size: (height, width); only the fully connected networks look at it.

    Raises:
        ValueError: unknown name (close matches are named), or a count below 1. TypeError: a count is no whole number.
    """
    builder = _BUILDERS[check_choice("model", name, _BUILDERS)]
    num_classes = integer("num_classes", num_classes, least=1)
    in_channels = integer("in_channels", in_channels, least=1)
    return builder(num_classes, in_channels, image_size)
