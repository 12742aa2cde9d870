"""A ghost reads the pixel under the kernel's centre, whatever the convolution's geometry."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost_kernels as tk
from tost.ghosts import add_ghosts
from tost.recipe import Recipe

GEOMETRIES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "no padding": {"kernel_size": 5},
    "no padding, stride 3": {"kernel_size": 5, "stride": 3},
    "too much padding": {"kernel_size": 3, "padding": 3},
    "too much padding, stride 2": {"kernel_size": 3, "padding": 4, "stride": 2},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 1},
    "dilation that keeps": {"kernel_size": 3, "dilation": 3, "padding": 3},
    "even": {"kernel_size": 2},
    "even, padded": {"kernel_size": 4, "padding": 1},
    "even, padded more": {"kernel_size": 2, "padding": 1, "stride": 2},
    "one row": {"kernel_size": (1, 3), "padding": (0, 1)},
    "unlike in its axes": {"kernel_size": (5, 2), "stride": (1, 2), "padding": (0, 3), "dilation": (1, 2)},
    "same": {"kernel_size": 4, "dilation": 3, "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "groups": {"kernel_size": 3, "groups": 2},
    "circular": {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": 3, "padding_mode": "reflect", "stride": 2},
    "replicate": {"kernel_size": (3, 5), "padding": (3, 0), "padding_mode": "replicate"},
}


def under_centres(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The pixels under the centres: the input padded as `conv` pads it, at every position of the kernel; (N, C, H', W')."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    for axis, span, stride in ((2, spans[0], conv.stride[0]), (3, spans[1], conv.stride[1])):
        if isinstance(conv.padding, str):
            sides = (span // 2, span - span // 2) if conv.padding == "same" else (0, 0)
        else:
            sides = (conv.padding[axis - 2],) * 2
        x = F.pad(x, (*sides, 0, 0) if axis == 3 else (0, 0, *sides), mode)
        x = x.index_select(axis, torch.arange(0, x.shape[axis] - span, stride) + span // 2)
    return x


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("size", [(12, 12), (11, 9)], ids=["even", "odd"])
@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_pixel_under_the_centre(name: str, form: str, size: tuple[int, int]) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, **GEOMETRIES[name]))  # type: ignore[arg-type]
    masks = {"1": torch.rand_like(plain[1].weight) < 0.5} if form == "sparse" else {}
    net = add_ghosts(tk.sparsify(plain, masks) if form == "sparse" else plain, Recipe(ghost_swish=False))
    ghost = net.ghosts["1"]
    with torch.no_grad():
        ghost.conv.weight = nn.Parameter(torch.randn_like(ghost.conv.weight))
    x = torch.randn(2, 3, *size)
    x = tk.to_batch_last(x) if form == "sparse" else x
    h = net[0](x)
    pixels = F.conv2d(under_centres(plain[1], h.contiguous()), ghost.conv.weight, groups=plain[1].groups)
    out = net(x)
    assert tk.is_batch_last(out) == (form == "sparse")
    torch.testing.assert_close(out, net[1](h) + F.batch_norm(pixels, None, None, training=True))
    out.sum().backward()
    assert ghost.conv.weight.grad is not None if form == "dense" else ghost.conv.values.grad is not None


def test_a_single_image_is_refused() -> None:
    net = add_ghosts(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3)), Recipe(ghost_swish=False))
    with pytest.raises(ValueError, match=r"expected a batch \(N, C, H, W\) in front of a ghost skip, got \(3, 4, 4\) behind"):
        net(torch.randn(3, 6, 6))
