"""How many operators a training step calls: `python -m benchmarks.launches resnet32 resnet18`.

On a GPU each of them is at least one launch (an operator on a list of tensors: one for some hundred of them), unless the step
is recorded: then it is one launch in all. Views and empty tensors are not counted. Nothing is timed, and the CPU counts as well
as a GPU: the compiled kernels of this package are an operator a pass on either.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tost
from tost.config import Config
from tost.preparation import LAYOUTS, Prepared, set_layout, training_form
from tost.recipe import Recipe
from tost.update import Update, optimizer_of

_CPU = torch.device("cpu")
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view", "promote_types"}


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is called inside, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if not (func.is_view or name in _NO_KERNEL or func.namespace == "profiler"):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def _loss(outputs: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def operators_of_a_step(model: str, backend: str, recipe: Recipe) -> Counter[str]:
    """Name -> calls in a step of SGD with momentum on images of 32x32, 95% sparse; the second step, when all is set up."""
    config = Config(model=model, backend=backend, recipe=recipe, batch_size=4)
    dense = tost.models.build(model, 10, 3, (32, 32))
    masks = None if backend == "dense" else tost.prune(dense, "erk", 0.05, input_shape=(3, 32, 32))
    layout = "batch_last" if backend == "sparse" else "channels_last"
    net = set_layout(training_form(config, Prepared(dense, masks, "")), layout).train()
    update = Update(config, net, optimizer_of(config, net), _loss, LAYOUTS[layout], _CPU)
    batch = torch.randn(4, 3, 32, 32), torch.arange(4)
    update(*batch)
    counting = _Counting()
    with counting:
        update(*batch)
    return counting.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["resnet32", "resnet18"], help="names of networks")
    for model in parser.parse_args().models:
        for backend in ("dense", "masked-dense", "sparse"):
            for title, recipe in (("vanilla", Recipe.vanilla()), ("ghosts", Recipe(rescale_init=False))):
                calls = operators_of_a_step(model, backend, recipe)
                most = ", ".join(f"{name} {times}" for name, times in calls.most_common(7))
                print(f"{model} {backend} {title}: {calls.total()} ({most})")


if __name__ == "__main__":
    main()
