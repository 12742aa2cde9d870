"""A whole training with ghosts under torch.compile."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import tost
import tost_kernels as tk
from tost.ghosts import set_strength
from tost.models.resnet import ResNet


def test_compiled_steps_equal_eager_ones_through_the_whole_fade() -> None:
    model = ResNet((1, 1), (8, 16), num_classes=10, in_channels=1)
    masks = tost.prune(model, "random", density=0.2)
    eager = tost.add_ghosts(tk.sparsify(model, masks), tost.Recipe(rescale_init=False))
    twin = copy.deepcopy(eager)
    graphs = 0

    def counting(graph: fx.GraphModule, inputs: list[Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(twin, fullgraph=True, backend=counting)  # a graph break would be an error
    optimizers = {net: torch.optim.SGD(tk.param_groups(net, 1e-3), lr=0.1, momentum=0.9) for net in (eager, twin)}
    images, labels = tk.to_batch_last(torch.randn(8, 1, 12, 12)), torch.randint(10, (8,))

    def step(net: nn.Module, forward: nn.Module, alpha: float, beta: float) -> None:
        set_strength(net, alpha, beta)
        optimizers[net].zero_grad()
        F.cross_entropy(forward(images), labels).backward()
        optimizers[net].step()

    def assert_equal_after(alpha: float, beta: float) -> None:
        before = copy.deepcopy(eager.state_dict())
        step(eager, eager, alpha, beta)
        step(twin, compiled, alpha, beta)
        for (name, expected), got in zip(eager.state_dict().items(), twin.state_dict().values(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        assert any((before[name] != value).any() for name, value in eager.state_dict().items() if "conv1.weight" in name)

    for alpha, beta in ((1.0, 1.0), (0.5, 2.0), (0.25, 4.0)):
        assert_equal_after(alpha, beta)
    assert graphs == 1  # alpha and beta are tensors: the fade compiles nothing
    for _ in range(2):
        assert_equal_after(0.0, float("inf"))
    assert graphs == 2  # without ghosts the network is another function
