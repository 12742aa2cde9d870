"""Names of layers, their shapes, and the sets."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.cases import LAYERS, Layer, select


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("64@32", Layer(64, 64, 32)),
        ("64-128@32s2", Layer(64, 128, 32, stride=2)),
        ("64-128@32k1s2", Layer(64, 128, 32, kernel=1, stride=2)),
        ("128@16g4n8", Layer(128, 128, 16, groups=4, batch=8)),
        ("64@16k5d2", Layer(64, 64, 16, kernel=5, dilation=2)),
        ("linear784-300", Layer(784, 300)),
        ("linear300-300n5", Layer(300, 300, batch=5)),
    ],
)
def test_names_are_read_and_written(name: str, layer: Layer) -> None:
    assert Layer.parse(name) == layer
    assert layer.name == name


@pytest.mark.parametrize("layer", select([]), ids=lambda layer: layer.name)
def test_every_registered_layer_is_a_layer_torch_can_run(layer: Layer) -> None:
    assert Layer.parse(layer.name) == layer
    x, weight = (torch.empty(shape, device="meta") for shape in (layer.input_shape(3), layer.weight_shape))
    if layer.is_linear:
        out = F.linear(x, weight)
    else:
        out = F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert tuple(out.shape) == layer.output_shape(3)


def test_multiply_adds() -> None:
    # 2 images, 4x4 outputs, 10 kept weights
    assert Layer.parse("4@8s2").multiply_adds(2, 10) == 2 * 16 * 10
    assert Layer.parse("4@8s2n5").multiply_adds(2, 10) == 5 * 16 * 10
    assert Layer.parse("linear8-4").multiply_adds(3, 10) == 30


def test_select_takes_sets_and_layers_each_once() -> None:
    assert [layer.name for layer in select(["512@4", "resnet"])] == ["512@4", "64@32", "128@16", "256@8"]
    assert len(select([])) == len(set(select([]))) >= sum(map(len, LAYERS.values())) - 2


@pytest.mark.parametrize("name", ["", "64", "64@", "64@32x2", "64-@32", "0@8", "8@8g3", "8@8s0", "linear8", "64@32 "])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"layer: expected .*, got " + repr(name)):
        Layer.parse(name)


def test_an_unknown_set_names_the_sets() -> None:
    with pytest.raises(ValueError, match=r"layer: expected e\.g\. '64@32'.*got 'resnets'; or a set of resnet, stride2"):
        select(["resnets"])
