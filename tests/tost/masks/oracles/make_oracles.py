"""Run a published pruner on the network and batches of `network.py` and store its scores and masks beside this file.

    python -m tests.tost.masks.oracles.make_oracles snip ../snip

from the root of the repository; the second argument is a checkout of the reference (README.md names repositories and commits).
One reference a process: the modules of some have the same names. None of their code is here, and none of it is changed:
what they do not return is read from the local variables with which their functions end.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from tests.tost.masks.oracles.network import CLASSES, batches, network

HERE = Path(__file__).parent
CPU = torch.device("cpu")
DENSITIES = (0.5, 0.1, 0.02)
STEPS = 5
FINAL = 0.1


class Batches:
    """A loader each of whose iterators starts with the batch after the one that was taken last."""

    def __init__(self, count: int) -> None:
        self._batches = batches(count)
        self._next = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            self._next += 1
            yield self._batches[(self._next - 1) % len(self._batches)]


def snip() -> None:
    """mil-ad/snip; the initialisation it draws anew inside is left out."""
    from snip import SNIP

    masks = []
    for density in DENSITIES:
        with mock.patch.object(nn.init, "xavier_normal_"):
            mask, variables = with_variables(SNIP, network(), density, Batches(1), CPU)
        masks.append(flat(mask))
    store("snip", [flat(variables["grads_abs"])] * len(masks), masks)


def grasp() -> None:
    """alecwangcq/GraSP; two samples a class, in two halves, the classifier not initialised anew; once, and on three batches."""
    from pruner.GraSP import GraSP

    # It draws a batch more than it uses, to see that no class is short of samples.
    for name, used in (("grasp", batches(1)), ("grasp_mb", batches(5)[::2])):
        scores, masks = [], []
        for density in DENSITIES:
            options = {"num_classes": CLASSES, "samples_per_class": 2, "num_iters": len(used), "T": 200, "reinit": False}
            mask, variables = with_variables(GraSP, network(), 1 - density, Batches(6), CPU, **options)
            assert torch.equal(torch.cat(variables["ret_inputs"]), torch.cat([images for images, _ in used]))
            assert torch.equal(torch.cat(variables["ret_targets"]), torch.cat([classes for _, classes in used]))
            masks.append(flat(mask.values()))
            scores.append(-flat(variables["grads"].values()))  # theirs says what to remove
        store(name, scores, masks)


def synaptic_flow() -> None:
    """ganguli-lab/Synaptic-Flow: SynFlow in double precision, and its own versions of Mag, SNIP and GraSP."""
    sys.modules["tqdm"] = types.SimpleNamespace(tqdm=lambda steps: steps)  # a progress bar
    import Layers.layers as layers
    from prune import prune_loop
    from Pruners import pruners
    from Utils.generator import masked_parameters

    def run(name: str, density: float, steps: int, train_mode: bool) -> tuple[list[Tensor], list[Tensor]]:
        net = network(layers=layers)
        pruner = getattr(pruners, name)(masked_parameters(net))
        scores, masks = [], []

        def mask(*arguments: Any) -> None:
            scores.append(flat(pruner.scores.values()))
            type(pruner).mask(pruner, *arguments)
            masks.append(flat(mask for mask, _ in pruner.masked_parameters))

        pruner.mask = mask
        loss = nn.functional.cross_entropy
        prune_loop(net, loss, pruner, batches(1), CPU, density, "exponential", "global", steps, train_mode=train_mode)
        return scores, masks

    for name in ("Mag", "SNIP", "GraSP"):
        runs = [run(name, density, 1, train_mode=True) for density in DENSITIES]
        store(f"synaptic_flow_{name.lower()}", [s[-1] for s, _ in runs], [m[-1] for _, m in runs])
    torch.set_default_dtype(torch.float64)
    store(f"synflow_{STEPS}_steps", *run("SynFlow", FINAL, STEPS, train_mode=False))
    runs = [run("SynFlow", density, 100, train_mode=False) for density in DENSITIES]
    store("synflow_100_steps", [s[-1] for s, _ in runs], [m[-1] for _, m in runs])


def force() -> None:
    """naver/force: FORCE, Iterative SNIP and GraSP-It step by step on a fresh batch each, and SNIP-MB."""
    from pruning import pruning_algos

    def run(method: int, mode: str, density: float, steps: int, num_batches: int) -> tuple[list[Tensor], list[Tensor]]:
        scores, masks = [], []

        def get_mask(saliency: list[Tensor], density: float) -> list[Tensor]:
            scores.append(flat(saliency))
            keep = original(saliency, density)
            masks.append(flat(keep))
            return keep

        original = pruning_algos.get_mask
        with mock.patch.object(pruning_algos, "get_mask", get_mask):
            pruning_algos.iterative_pruning(
                network(), Batches(STEPS), CPU, density, prune_method=method, num_steps=steps, mode=mode, num_batches=num_batches
            )
        return scores, masks

    for name, method in (("iter_snip", 1), ("force", 3)):
        store(f"{name}_exponential", *run(method, "exp", FINAL, STEPS, 1))
        store(f"{name}_linear", *run(method, "linear", FINAL, STEPS, 1))
    store("grasp_it_exponential", *run(2, "exp", FINAL, STEPS, 1))
    runs = [run(1, "exp", density, 1, STEPS) for density in DENSITIES]
    store("snip_mb", [s[-1] for s, _ in runs], [m[-1] for _, m in runs])


def open_lth() -> None:
    """facebookresearch/open_lth: six rounds of magnitude pruning, the weights of round r being `network(100 + r)`."""
    sys.meta_path.insert(0, NoTorchvision())
    # They derive a class from it in a way that today's torch forbids; it is not used here.
    with mock.patch.object(nn.parallel, "DistributedDataParallel", type("DistributedDataParallel", (nn.Module,), {})):
        import lottery.desc  # noqa: F401  first, or their circular imports fail
    from models.base import Model
    from pruning.sparse_global import PruningHparams, Strategy

    class Trained(Model):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.network = network(seed)

        output_layer_names = loss_criterion = property(lambda self: None)
        is_valid_model_name = get_model_from_name = default_hparams = staticmethod(lambda: None)

    mask = None
    masks = []
    for level in range(1, 7):
        model = Trained(100 + level)
        mask = Strategy.prune(PruningHparams("sparse_global", pruning_fraction=0.2), model, mask)
        masks.append(flat(mask[name] for name in model.prunable_layer_names))
    store("imp", None, masks)


class NoTorchvision:
    """Finds a `torchvision` of empty modules and classes: open_lth imports it for its data sets, of which none is used."""

    class Module(types.ModuleType):
        __path__: Sequence[str] = ()

        def __getattr__(self, name: str) -> Any:
            return type(name, (), {}) if name[0].isupper() else NoTorchvision.Module(name)

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return self.Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def with_variables(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """What `function` returns, and its local variables at that moment."""
    variables: dict[str, Any] = {}

    def watch(frame: types.FrameType, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is function.__code__:
            variables.update(frame.f_locals)

    sys.setprofile(watch)
    try:
        return function(*arguments, **options), variables
    finally:
        sys.setprofile(None)


def flat(tensors: Any) -> Tensor:
    """All values in one vector, a copy."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def store(name: str, scores: list[Tensor] | None, masks: list[Tensor]) -> None:
    """One row a density, step or round: scores and packed masks; scores that are the same in all rows are stored once."""
    kept = torch.stack(masks).numpy()
    assert np.isin(kept, (0, 1)).all()
    arrays = {"masks": np.packbits(kept.astype(bool), axis=1)}
    if scores is not None:
        same = all(torch.equal(row, scores[0]) for row in scores)
        arrays["scores"] = torch.stack(scores[:1] if same else scores).numpy()
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes, keeps {kept.sum(1).astype(int).tolist()} of {kept.shape[1]}")


if __name__ == "__main__":
    reference, checkout = sys.argv[1:]
    sys.path.insert(0, checkout)
    {"snip": snip, "grasp": grasp, "synaptic_flow": synaptic_flow, "force": force, "open_lth": open_lth}[reference]()
