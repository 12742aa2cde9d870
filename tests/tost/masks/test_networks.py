"""Every method on networks of the papers, at the densities of the papers: exactly k."""

from dataclasses import replace

import pytest
import torch

from tost import models
from tost.masks import methods, prune

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no weight:UserWarning")

DENSITIES = (0.5, 0.1, 0.02, 0.005, 0.001)


@pytest.fixture(scope="module", params=["resnet20", "vgg16", "mobilenet"])
def network(request):
    torch.manual_seed(0)
    model = models.build(request.param, 10, 3, (32, 32))
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(2, 3, 32, 32, generator=generator), torch.randint(0, 10, (2,), generator=generator)) for _ in range(3)
    ]
    total = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))
    return model, batches, total


@pytest.mark.parametrize("name", sorted(methods()))
def test_exactly_k(network, name):
    model, batches, total = network
    method = methods()[name]
    # full schedules take minutes: python -m benchmarks.pruning runs them
    method = replace(method, steps=min(method.steps, 2), batches=min(method.batches, 2))
    for density in DENSITIES:
        kept = []
        masks = prune(model, method, density, data=batches, on_step=lambda step, kept=kept: kept.append(step.kept))
        assert masks.kept == round(density * total)
        assert masks.total == total
        assert kept[-1] == masks.kept
