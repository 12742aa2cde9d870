"""A plain multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tost.checks import integer


class MLP(nn.Module):
    """Linear layers with ReLU between them, on the flattened image.

    Args:
        hidden: units of each layer before the classifier; empty for a linear classifier.

    Input (N, in_channels, *image_size); output logits (N, num_classes). Weights keep torch's default initialization.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        hidden: Sequence[int] = (512, 512),
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        layers: list[nn.Module] = []
        previous = in_channels * image_size[0] * image_size[1]
        for i, width in enumerate(hidden):
            width = integer(f"hidden[{i}]", width, least=1)
            layers += [nn.Linear(previous, width), nn.ReLU()]
            previous = width
        self.layers = nn.Sequential(*layers, nn.Linear(previous, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.flatten(x))
        return logits
