"""Networks: published parameter counts, shapes, names, errors."""

import pytest
import torch
from torch import nn

import tost_kernels as tk
from tost.models import build, names
from tost.models.resnet import BasicBlock, cifar_resnet
from tost.models.vgg import VGG


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_published_parameter_counts() -> None:
    # ResNet-18 for CIFAR: 11,173,962 (many sources); LeNet-300-100: 266,610 (LTH paper, "266K")
    assert count(build("resnet18")) == 11_173_962
    assert count(build("lenet300100", in_channels=1)) == 266_610
    # VGG with BatchNorm, convolution biases and one linear layer, for CIFAR: 14,728,266 and 20,040,522 (many sources)
    assert count(build("vgg16")) == 14_728_266
    assert count(build("vgg19")) == 20_040_522
    # He et al.: 0.27M and 0.46M with parameter-free shortcuts (269,722 and 464,154); each projection shortcut adds
    # 16*32 + 2*32 and 32*64 + 2*64
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert count(build("resnet20")) == 269_722 + projections == 272_474
    assert count(build("resnet32")) == 464_154 + projections == 466_906


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (2, 17)])
def test_any_image_gives_logits(name: str, channels: int, size: int) -> None:
    net = build(name, num_classes=7, in_channels=channels, image_size=(size, size)).eval()
    assert net(torch.randn(2, channels, size, size)).shape == (2, 7)


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
    with pytest.raises(ValueError, match="depth: expected 6n"):
        cifar_resnet(21)
    with pytest.raises(ValueError, match=r"depth: expected one of \(16, 19\), got 11"):
        VGG(11)


def test_vgg_stays_batch_last_once_it_is_sparse() -> None:
    net = build("vgg16").train()
    masks = {name: torch.rand(m.weight.shape) < 0.1 for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    net = tk.sparsify(net, masks)
    seen = []
    for module in net.features:
        module.register_forward_hook(lambda module, args, out: seen.append((type(module), out)))
    net(tk.to_batch_last(torch.randn(4, 3, 16, 16)))
    assert len(seen) == 13 * 3 + 5
    assert [kind for kind, out in seen if tk.to_batch_last(out) is not out] == []
    assert [out.shape[-1] for kind, out in seen if issubclass(kind, nn.MaxPool2d)] == [8, 4, 2, 1, 1]
