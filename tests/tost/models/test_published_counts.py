"""Parameters and multiply-adds of every network against the figures published for it, at the precision of their source.

Where a source counts what we do not have or do not count, the difference is worked out here.
"""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from tost.macs import count_macs
from tost.models import build, names

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class Published(NamedTuple):
    """Figures of one network as their source prints them: "1.81 G" is rounded there, "61706" is exact."""

    name: str
    image: tuple[int, int, int]
    classes: int
    parameters: str
    macs: str
    # what the source has or counts beyond ours
    more_parameters: int = 0
    more_macs: int = 0


MNIST, CIFAR, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)


def plain_resnet(depth: int, *widths: int) -> tuple[int, int]:
    """Parameters and multiply-adds of a CIFAR ResNet, layer by layer after section 4.2 of He et al., on 32x32 and 10 classes.

    Its shortcuts have no parameters ("option A").
    """
    parameters, macs, before = 0, 0, 3
    sizes = [32] * (1 + (depth - 2) // 3) + [16] * ((depth - 2) // 3) + [8] * ((depth - 2) // 3)
    for size in sizes:
        width = widths[(32, 16, 8).index(size)]
        parameters += 9 * before * width + 2 * width
        macs += 9 * before * width * size**2
        before = width
    return parameters + 10 * before + 10, macs + 10 * before


def projections(first: int, second: int, third: int) -> tuple[int, int]:
    """The same of the two shortcuts that are a 1x1 convolution and BatchNorm with us ("option B")."""
    return first * second + 2 * second + second * third + 2 * third, first * second * 16**2 + second * third * 8**2


SHORTCUT_PARAMETERS, SHORTCUT_MACS = projections(16, 32, 64)
# a hidden linear layer of 512 units
HIDDEN, HIDDEN_MACS = 512 * 512 + 512, 512 * 512

TABLE = [
    # torchvision's documentation of its models, num_params (exact) and GFLOPS (multiply-adds, rounded)
    # https://pytorch.org/vision/stable/models/generated/torchvision.models.resnet50.html and its neighbours
    Published("resnet18_imagenet", IMAGENET, 1000, "11689512", "1.81 G"),
    Published("resnet34_imagenet", IMAGENET, 1000, "21797672", "3.66 G"),
    Published("resnet50_imagenet", IMAGENET, 1000, "25557032", "4.09 G"),
    # Howard et al. 2017 (https://arxiv.org/abs/1704.04861), table 4: rounded, millions
    Published("mobilenet_imagenet", IMAGENET, 1000, "4.2 M", "569 M"),
    # github.com/da2so/DA2Lite, model_zoo/README.md, CIFAR-10: rounded
    Published("resnet18", CIFAR, 10, "11.17 M", "0.56 G"),
    Published("resnet34", CIFAR, 10, "21.28 M", "1.16 G"),
    Published("resnet50", CIFAR, 10, "23.52 M", "1.30 G"),
    Published("vgg16", CIFAR, 10, "14.73 M", "0.31 G"),
    Published("vgg19", CIFAR, 10, "20.04 M", "0.40 G"),
    # github.com/chenyaofo/pytorch-cifar-models, README.md: rounded; its VGGs have two hidden linear layers of 512 units
    Published("vgg16", CIFAR, 10, "15.25 M", "313.73 M", 2 * HIDDEN, 2 * HIDDEN_MACS),
    Published("vgg19", CIFAR, 10, "20.57 M", "398.66 M", 2 * HIDDEN, 2 * HIDDEN_MACS),
    # the same README; its ResNets have projection shortcuts as ours
    Published("resnet20", CIFAR, 10, "0.27 M", "40.81 M"),
    Published("resnet32", CIFAR, 10, "0.47 M", "69.12 M"),
    Published("resnet56", CIFAR, 10, "0.86 M", "125.75 M"),
    # He et al. 2016, table 6: parameters, rounded; without projections. Multiply-adds: Li et al. 2017
    # (https://arxiv.org/abs/1608.08710), table 1, 1.25 x 10^8 for ResNet-56; for the other two the layers are added up
    Published("resnet20", CIFAR, 10, "0.27 M", str(plain_resnet(20, 16, 32, 64)[1]), -SHORTCUT_PARAMETERS, -SHORTCUT_MACS),
    Published("resnet32", CIFAR, 10, "0.46 M", str(plain_resnet(32, 16, 32, 64)[1]), -SHORTCUT_PARAMETERS, -SHORTCUT_MACS),
    Published("resnet56", CIFAR, 10, "0.85 M", "125 M", -SHORTCUT_PARAMETERS, -SHORTCUT_MACS),
    # Han et al. 2015 (https://arxiv.org/abs/1506.02626): table 1, parameters, rounded; tables 3 and 4, 532K and 4586K operations,
    # two a multiply-add
    Published("lenet300100", MNIST, 10, "267 K", "266 K"),
    Published("lenet5_caffe", MNIST, 10, "431 K", "2293 K"),
    # the same two, exactly: the numbers users of the networks find
    Published("lenet300100", MNIST, 10, "266610", "266200"),
    Published("lenet5_caffe", MNIST, 10, "431080", "2293000"),
    # LeNet-5 as commonly implemented, with all 6 x 16 connections between the convolutions (LeCun et al. 1998 leave 36 of the
    # 96 out and train their subsampling: 60,000 parameters there)
    Published("lenet5", MNIST, 10, "61706", "416520"),
    Published("lenet5_conv", MNIST, 10, "61706", "416520"),
    # the same on CIFAR-10, of the PyTorch tutorial "Training a classifier"
    Published("lenet5", CIFAR, 10, "62006", "0.65 M"),
    # 784-512-512-10 of the Keras example mnist_mlp and of PyTorch's quickstart; multiply-adds: its weights
    Published("mlp", MNIST, 10, "669706", "668672"),
]


def as_printed(value: int, figure: str) -> str:
    """`value` with the unit and the decimals of `figure`."""
    number, _, unit = figure.partition(" ")
    decimals = len(number.partition(".")[2])
    return f"{value / UNITS[unit]:.{decimals}f} {unit}".strip()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.name}-{row.parameters}")
def test_published(row: Published) -> None:
    net = build(row.name, row.classes, row.image[0], row.image[1:])
    parameters = sum(p.numel() for p in net.parameters()) + row.more_parameters
    assert as_printed(parameters, row.parameters) == row.parameters
    macs = count_macs(net, row.image).dense + row.more_macs
    assert as_printed(macs, row.macs) == row.macs


def test_double_width_resnet() -> None:
    # Wang et al. 2020 (GraSP) double the channels and print no count: the layers are added up, by what is right for width 1
    assert plain_resnet(32, 16, 32, 64) == (464_154, 68_862_592)
    parameters, macs = (a + b for a, b in zip(plain_resnet(32, 32, 64, 128), projections(32, 64, 128), strict=True))
    net = build("resnet32x2")
    assert sum(p.numel() for p in net.parameters()) == parameters == 1_860_522
    assert count_macs(net, CIFAR).dense == macs == 275_612_928


# github.com/zhengxiawu/pytorch_cls, pytorch-cifar-basic/README.md: truncated, not rounded. Its counter, thop, adds two
# operations for every number a BatchNorm puts out.
@pytest.mark.parametrize(
    ("name", "thousand_parameters", "million_macs"),
    [("mobilenet", 3_210, 47), ("resnet18", 11_173, 556), ("resnet34", 21_282, 1161), ("resnet50", 23_520, 1304)],
)
def test_published_with_batch_norm(name: str, thousand_parameters: int, million_macs: int) -> None:
    net = build(name).eval()
    macs = count_macs(net, CIFAR).dense
    normalized = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal normalized
        normalized += output.numel()

    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(count)
    net(torch.zeros(1, *CIFAR))
    assert (macs + 2 * normalized) // 10**6 == million_macs
    assert macs // 10**6 < million_macs  # the difference shows
    parameters = sum(p.numel() for p in net.parameters())
    # it prints the first three or five digits
    assert parameters // 1000 == thousand_parameters or parameters // 10_000 * 10 == thousand_parameters


def test_mobilenet_differs_from_the_papers_by_its_classifier_alone() -> None:
    small, papers = (sum(p.numel() for p in build(name, 10).parameters()) for name in ("mobilenet", "mobilenet_imagenet"))
    assert small == papers == 4_231_976 - 990 * (1024 + 1) == 3_217_226


def test_no_network_is_left_out() -> None:
    assert {row.name for row in TABLE} | {"mobilenet", "resnet32x2"} == set(names())
