"""What is measured: op x shape x density. A layer has a short name that the command line understands, e.g. `64-128@32s2`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SPARSITIES = (0.75, 0.9, 0.95, 0.98)

_CONV = re.compile(r"(?P<channels>\d+)(-(?P<out>\d+))?@(?P<side>\d+)(?P<options>([ksdgn]\d+)*)")
_LINEAR = re.compile(r"linear(?P<channels>\d+)-(?P<out>\d+)(?P<options>(n\d+)?)")
_LETTERS = {"k": "kernel", "s": "stride", "d": "dilation", "g": "groups", "n": "batch"}


@dataclass(frozen=True)
class Layer:
    """One layer. side: of the input image; 0 for a linear layer. batch: images, or None where the caller decides.

    The padding of a convolution is such that stride 1 keeps the image's size.
    """

    channels: int
    out: int
    side: int = 0
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    batch: int | None = None

    @classmethod
    def parse(cls, name: str) -> Layer:
        """`[in-]out@side[kK][sS][dD][gG][nN]`, or `linearIN-OUT[nN]`: kernel, stride, dilation, groups, batch.

        `64@32` is a 3x3 convolution of 64 channels on 32x32 images, `64-128@32k1s2` a 1x1 one with stride 2.

        Raises:
            ValueError: `name` is none of these.
        """
        match = _CONV.fullmatch(name) or _LINEAR.fullmatch(name)
        if match is None:
            raise ValueError(f"layer: expected e.g. '64@32', '64-128@32k1s2' or 'linear512-10', got {name!r}")
        parts = match.groupdict()
        numbers = {_LETTERS[letter]: int(digits) for letter, digits in re.findall(r"([a-z])(\d+)", parts["options"])}
        channels = int(parts["channels"])
        layer = cls(channels, int(parts["out"] or channels), int(parts.get("side") or 0), **numbers)
        sizes = (layer.channels, layer.out, layer.kernel, layer.stride, layer.dilation, layer.groups)
        if min(sizes) < 1 or layer.channels % layer.groups or layer.out % layer.groups:
            raise ValueError(f"layer: expected sizes of at least 1 and groups that divide the channels, got {name!r}")
        return layer

    @property
    def is_linear(self) -> bool:
        """Whether this is a linear layer."""
        return self.side == 0

    @property
    def name(self) -> str:
        """What `parse` reads back."""
        batch = f"n{self.batch}" if self.batch is not None else ""
        if self.is_linear:
            return f"linear{self.channels}-{self.out}{batch}"
        channels = f"{self.channels}" if self.out == self.channels else f"{self.channels}-{self.out}"
        options = (("k", self.kernel, 3), ("s", self.stride, 1), ("d", self.dilation, 1), ("g", self.groups, 1))
        return f"{channels}@{self.side}" + "".join(f"{letter}{n}" for letter, n, usual in options if n != usual) + batch

    @property
    def padding(self) -> int:
        """On each side of the image."""
        return self.dilation * (self.kernel - 1) // 2

    @property
    def out_side(self) -> int:
        """Side of the output image; 0 for a linear layer."""
        reach = self.dilation * (self.kernel - 1) + 1
        return 0 if self.is_linear else (self.side + 2 * self.padding - reach) // self.stride + 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        if self.is_linear:
            return self.out, self.channels
        return self.out, self.channels // self.groups, self.kernel, self.kernel

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the input for `batch` samples, unless the layer has a batch of its own."""
        batch = self.batch if self.batch is not None else batch
        return (batch, self.channels) if self.is_linear else (batch, self.channels, self.side, self.side)

    def output_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the output, likewise."""
        batch = self.batch if self.batch is not None else batch
        return (batch, self.out) if self.is_linear else (batch, self.out, self.out_side, self.out_side)

    def multiply_adds(self, batch: int, kept: int) -> int:
        """Multiply-adds of one pass over `kept` weights; padding counts as if it were computed, as is usual."""
        n = self.batch if self.batch is not None else batch
        return kept * n * max(1, self.out_side) ** 2


def _layers(names: str) -> tuple[Layer, ...]:
    return tuple(Layer.parse(name) for name in names.split())


# MobileNet's are the pointwise convolutions of its form for 32x32 images (first stride 1), and all but one of the depthwise.
LAYERS: dict[str, tuple[Layer, ...]] = {
    "resnet": _layers("64@32 128@16 256@8 512@4"),
    "stride2": _layers("64-128@32s2 128-256@16s2 256-512@8s2"),
    "projection": _layers("64-128@32k1s2 128-256@16k1s2 256-512@8k1s2"),
    "vgg16": _layers("3-64@32 64-128@16 128-256@8 256-512@4 512@2"),
    "mobilenet": _layers("32-64@32k1 64-128@16k1 128@16k1 128-256@8k1 256@8k1 256-512@4k1 512@4k1 512-1024@2k1 1024@2k1"),
    "depthwise": _layers("64@16g64 32@32g32 64@32s2g64 128@16g128 128@16s2g128 256@8g256 256@8s2g256 512@4g512"),
    "odd": _layers(
        "64@32n1 64@32n8 64@32n50 128@16n1 128@16n8 128@16n50 256@8n8 96@28 64@16k5 128@16d2 128@16g4 64@16g64 128@16g128 "
        "64-128@15k1s2 100-36@9 16@32"
    ),
    "linear": _layers("linear784-300 linear2048-2048 linear512-1000n1024"),
}


def select(names: Sequence[str]) -> tuple[Layer, ...]:
    """The layers of sets (`resnet`) and single layers (`64@32`), in order, each once. No names: all sets.

    Raises:
        ValueError: a name is neither.
    """
    chosen: list[Layer] = []
    for name in names or LAYERS:
        if name in LAYERS:
            chosen += LAYERS[name]
        else:
            try:
                chosen.append(Layer.parse(name))
            except ValueError as error:
                raise ValueError(f"{error}; or a set of {', '.join(LAYERS)}") from None
    return tuple(dict.fromkeys(chosen))
