"""Networks: shapes, formulas, initial weights, names, errors. Parameters and multiply-adds: test_published_counts.py."""

import hashlib

import pytest
import torch
from torch import nn

from tost.models import build, names
from tost.models.mlp import MLP
from tost.models.mobilenet import MobileNet
from tost.models.resnet import BasicBlock, Bottleneck, cifar_resnet, resnet18
from tost.models.vgg import VGG

# networks that look at the size of the image -> the smallest they take
SMALLEST = {"lenet5": 12, "lenet5_caffe": 16, "lenet5_conv": 28}


def natural(name: str) -> tuple[int, int]:
    """Channels and size of the images a network is usually trained on; ImageNet's at half their size, to save time."""
    if name.endswith("_imagenet"):
        return 3, 112
    return (1, 28) if name.startswith("lenet") or name == "mlp" else (3, 32)


@pytest.mark.parametrize("name", names())
def test_one_training_step_reaches_every_parameter(name: str) -> None:
    channels, size = natural(name)
    net = build(name, num_classes=10, in_channels=channels, image_size=(size, size)).train()
    logits = net(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 10)
    nn.functional.cross_entropy(logits, torch.tensor([3, 7])).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    # biases of convolutions in front of a BatchNorm have no effect
    assert [n for n, p in net.named_parameters() if not p.grad.any() and p.dim() > 1] == []  # type: ignore[union-attr]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (2, 17), (1, 1)])
def test_any_image_gives_logits_or_an_error(name: str, channels: int, size: int) -> None:
    if size >= SMALLEST.get(name, 1):
        net = build(name, num_classes=7, in_channels=channels, image_size=(size, size)).eval()
        assert net(torch.randn(2, channels, size, size)).shape == (2, 7)
    else:
        least = SMALLEST[name]
        with pytest.raises(ValueError, match=rf"image_size: expected at least \({least}, {least}\) .*, got \({size}, {size}\)"):
            build(name, num_classes=7, in_channels=channels, image_size=(size, size))


@pytest.mark.parametrize("name", SMALLEST)
def test_smallest_image_is_the_smallest(name: str) -> None:
    least = SMALLEST[name]
    assert build(name, 10, 1, (least, least + 9))(torch.randn(1, 1, least, least + 9)).shape == (1, 10)
    with pytest.raises(ValueError, match="image_size: expected at least"):
        build(name, 10, 1, (least + 9, least - 1))


@pytest.mark.parametrize("name", names())
def test_torch_fx_can_trace_it(name: str) -> None:
    channels, size = natural(name)
    net = build(name, 10, channels, (size, size)).eval()
    x = torch.randn(1, channels, size, size)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), net(x))


# Runs recorded with version 0.1.0 must be repeatable: the same seed, the same network. A sha256 of the names and shapes, and all
# values, in order, summed against a fixed vector: the last bits may differ between CPUs.
@pytest.mark.parametrize(
    ("name", "expected_names", "expected_values"),
    [
        ("lenet300100", "30969457217060a0", 5.8841),
        ("resnet18", "100c870319e15fcf", 57.7703),
        ("resnet20", "7e2cf78d77cedbe2", 70.8217),
        ("resnet32", "04777f43cb603406", 62.3620),
        ("vgg16", "f37bd87d6c21da49", 64.7423),
        ("vgg19", "1cef66a244608f24", 47.8103),
    ],
)
def test_initial_weights_stay_what_they_were(name: str, expected_names: str, expected_values: float) -> None:
    torch.manual_seed(0)
    state = build(name, 10, 3, (28, 28)).state_dict()
    names_and_shapes = "".join(f"{key}{tuple(value.shape)}" for key, value in state.items())
    assert hashlib.sha256(names_and_shapes.encode()).hexdigest()[:16] == expected_names
    values = torch.cat([value.flatten().double() for value in state.values()])
    projection = values @ torch.arange(len(values), dtype=torch.float64).cos()
    assert projection.item() == pytest.approx(expected_values, abs=1e-3)


def test_stems() -> None:
    small, large = build("resnet18"), build("resnet18_imagenet")
    x = torch.randn(1, 3, 64, 64)
    sizes = []
    for net in (small, large, build("mobilenet"), build("mobilenet_imagenet")):
        inside = net.get_submodule("blocks.0" if isinstance(net, MobileNet) else "layer1")
        inside.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[2]))
        net.eval()(x)
    assert sizes == [64, 16, 64, 32]
    assert (large.conv1.kernel_size, large.conv1.stride, large.conv1.padding) == ((7, 7), (2, 2), (3, 3))
    assert small.state_dict().keys() == large.state_dict().keys()
    with pytest.raises(ValueError, match="stem: unknown name 'cifr'; did you mean cifar"):
        resnet18(stem="cifr")


def test_bottleneck_computes_the_formula_of_the_paper() -> None:
    block = Bottleneck(4, 3, stride=2).eval()
    x = torch.randn(3, 4, 9, 7)
    h = torch.relu(block.bn1(block.conv1(x)))
    assert h.shape == (3, 3, 9, 7)  # "v1.5": the 3x3 convolution has the stride
    h = torch.relu(block.bn2(block.conv2(h)))
    expected = torch.relu(block.bn3(block.conv3(h)) + block.shortcut[1](block.shortcut[0](x)))
    assert expected.shape == (3, 12, 5, 4)
    torch.testing.assert_close(block(x), expected)


def test_mobilenet_is_made_of_depthwise_and_pointwise_convolutions() -> None:
    net = build("mobilenet")
    convs = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and name != "conv1"}
    assert len(convs) == 26
    depthwise = {name for name, m in convs.items() if m.groups == m.in_channels == m.out_channels}
    assert depthwise == {name for name in convs if name.endswith("conv1")}
    assert {m.kernel_size for name, m in convs.items() if name not in depthwise} == {(1, 1)}
    # Kaiming normal: 9 taps for a depthwise filter, whatever the number of channels
    assert net.get_submodule("blocks.12.conv1").weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.03)
    assert net.get_submodule("blocks.12.conv2").weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.01)


def test_both_forms_of_lenet5_compute_the_same() -> None:
    linear, conv = build("lenet5", 10, 1).eval(), build("lenet5_conv", 10, 1).eval()
    with torch.no_grad():
        for ours, theirs in zip(conv.parameters(), linear.parameters(), strict=True):
            ours.copy_(theirs.view_as(ours))
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(conv(x), linear(x))


def test_mlp_takes_any_hidden_layers() -> None:
    net = MLP(3, 2, (4, 5), hidden=(7,))
    assert [tuple(p.shape) for p in net.parameters()] == [(7, 40), (7,), (3, 7), (3,)]
    x = torch.randn(6, 2, 4, 5)
    first, _, last = net.layers
    torch.testing.assert_close(net(x), last(torch.relu(first(x.flatten(1)))))
    assert len(MLP(hidden=()).layers) == 1
    with pytest.raises(ValueError, match=r"hidden\[1\]: expected a whole number of at least 1, got 0"):
        MLP(hidden=(3, 0))


def test_shortcut_is_a_projection_only_where_the_shape_changes() -> None:
    net = build("resnet20")
    blocks = {name: m for name, m in net.named_modules() if isinstance(m, BasicBlock)}
    assert len(blocks) == 9
    assert {name for name, block in blocks.items() if len(block.shortcut)} == {"layer2.0", "layer3.0"}
    conv, bn = blocks["layer2.0"].shortcut
    assert (conv.kernel_size, conv.stride, conv.bias, bn.num_features) == ((1, 1), (2, 2), None, 32)


def test_block_computes_the_formula_of_the_paper() -> None:
    block = BasicBlock(4, 6, stride=2).eval()
    x = torch.randn(3, 4, 9, 7)
    h = torch.relu(block.bn1(block.conv1(x)))
    expected = torch.relu(block.bn2(block.conv2(h)) + block.shortcut[1](block.shortcut[0](x)))
    assert expected.shape == (3, 6, 5, 4)
    torch.testing.assert_close(block(x), expected)


def test_convolutions_start_kaiming_fan_out() -> None:
    torch.manual_seed(0)
    weight = build("resnet18").get_submodule("layer3.0.conv1").weight  # 128 -> 256
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


def test_torch_seed_decides_the_weights() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build("resnet20").state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


def test_unknown_name_names_close_ones() -> None:
    with pytest.raises(ValueError, match=r"model: unknown name 'resnet2'; did you mean .*resnet20"):
        build("resnet2")
    with pytest.raises(ValueError, match="num_classes: expected a whole number of at least 1, got 0"):
        build("resnet20", num_classes=0)
    with pytest.raises(TypeError, match=r"num_classes: expected a whole number of at least 1, got float \(2.5\)"):
        build("resnet20", num_classes=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"image_size: expected \(height, width\), got 28"):
        build("mlp", image_size=28)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"image_size\[1\]: expected a whole number of at least 1, got 0"):
        build("resnet20", image_size=(32, 0))
    with pytest.raises(ValueError, match="depth: expected 6n"):
        cifar_resnet(21)
    with pytest.raises(ValueError, match="width: expected a whole number of at least 1, got 0"):
        cifar_resnet(20, width=0)
    with pytest.raises(ValueError, match=r"depth: expected one of \(16, 19\), got 11"):
        VGG(11)
