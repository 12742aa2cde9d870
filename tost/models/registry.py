"""Network names -> constructors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from tost.checks import integer
from tost.choices import check_choice
from tost.model_address import is_address
from tost.models.lenet import LeNet300100, lenet5, lenet5_caffe, lenet5_conv
from tost.models.mlp import MLP
from tost.models.mobilenet import MobileNet
from tost.models.resnet import cifar_resnet, resnet18, resnet34, resnet50
from tost.models.user import build_own, find_own
from tost.models.vgg import VGG

# (num_classes, in_channels, image_size) -> network; only networks with linear layers on pixels look at the image's size
_BUILDERS: dict[str, Callable[[int, int, tuple[int, int]], nn.Module]] = {
    "lenet300100": LeNet300100,
    "lenet5": lenet5,
    "lenet5_caffe": lenet5_caffe,
    "lenet5_conv": lenet5_conv,
    "mlp": MLP,
    "mobilenet": lambda classes, channels, _: MobileNet(classes, channels),
    "mobilenet_imagenet": lambda classes, channels, _: MobileNet(classes, channels, stem="imagenet"),
    "resnet18": lambda classes, channels, _: resnet18(classes, channels),
    "resnet18_imagenet": lambda classes, channels, _: resnet18(classes, channels, stem="imagenet"),
    "resnet20": lambda classes, channels, _: cifar_resnet(20, classes, channels),
    "resnet32": lambda classes, channels, _: cifar_resnet(32, classes, channels),
    "resnet32x2": lambda classes, channels, _: cifar_resnet(32, classes, channels, width=2),
    "resnet34": lambda classes, channels, _: resnet34(classes, channels),
    "resnet34_imagenet": lambda classes, channels, _: resnet34(classes, channels, stem="imagenet"),
    "resnet50": lambda classes, channels, _: resnet50(classes, channels),
    "resnet50_imagenet": lambda classes, channels, _: resnet50(classes, channels, stem="imagenet"),
    "resnet56": lambda classes, channels, _: cifar_resnet(56, classes, channels),
    "vgg16": lambda classes, channels, _: VGG(16, classes, channels),
    "vgg19": lambda classes, channels, _: VGG(19, classes, channels),
}


def names() -> tuple[str, ...]:
    """The names `build` knows, sorted."""
    return tuple(sorted(_BUILDERS))


def check_name(name: str) -> None:
    """Raise ValueError or TypeError unless `build` knows `name`; a function of the user's is imported."""
    if is_address(name):
        find_own(name)
    else:
        check_choice("model", name, _BUILDERS)


def build(name: str, num_classes: int = 10, in_channels: int = 3, image_size: tuple[int, int] = (28, 28)) -> nn.Module:
    """A freshly initialized dense network; torch's global generator decides the weights.

    Args:
        name: one of `names()`; or where a function of yours is, "path/to/file.py:function" or "package.module:function" (also
            one in the current folder): it is called with those of the other arguments that its signature names, as keywords.
            Where it, or a module that it imports out of its folder or package, was edited, those are imported anew.
        num_classes: logits per image.
        in_channels: channels of the input images.
        image_size: (height, width); the fully connected networks and the LeNets look at it, all others take any image.

    Names with `_imagenet` have the stem of the ImageNet papers, which quarters (MobileNet: halves) the image before its first
    block; the plain ones have the 3x3 stem of stride 1 for small images.

    Raises:
        ValueError: unknown name (close matches are named), a count below 1, or an image too small for the network; your
            function is not found or fails.
        TypeError: a count is no whole number, or `image_size` is no pair; your function gives no network.
    """
    if not is_address(name):
        check_choice("model", name, _BUILDERS)
    num_classes = integer("num_classes", num_classes, least=1)
    in_channels = integer("in_channels", in_channels, least=1)
    if not isinstance(image_size, Sequence) or len(image_size) != 2:
        raise TypeError(f"image_size: expected (height, width), got {image_size!r}")
    height, width = (integer(f"image_size[{i}]", side, least=1) for i, side in enumerate(image_size))
    if is_address(name):
        return build_own(name, num_classes, in_channels, (height, width))
    return _BUILDERS[name](num_classes, in_channels, (height, width))
