"""Scores and masks of our methods against those of the published implementations; `oracles/README.md` says how they were made.

A score may differ by 1e-5 of the layer's largest. No reference score but the smallest kept one lies within 1e-5 of the threshold
(`check` asserts it), so masks must be equal.

The references computed in float32. We compute the iterative methods in float64: then what the test sees are the rounding errors
of the reference alone, the same on every machine. (In float32 another processor may round an input of a ReLU to the other side
of zero, which changes some scores by 1e-3.) The one-shot methods are compared in both.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tost.masks.oracles.network import IMAGE, batches, network
from tost.masks import Method, methods, prune, score
from tost.masks.layers import prunable_layers
from tost.masks.schedules import exponential, linear, targets
from tost.masks.selection import keep_largest

pytestmark = pytest.mark.filterwarnings("ignore:.* leaves no weight in")

SIZES = [layer.weight.numel() for layer in prunable_layers(network())]
TOTAL = 2394
DENSITIES = (0.5, 0.1, 0.02)  # of the one-shot methods
STEPS, FINAL = 5, 0.1  # of the iterative ones


def masks_of(name: str) -> Tensor:
    """The masks of a reference, one row a density, step or round: bool, (rows, 2394)."""
    with np.load(Path(__file__).parent / "oracles" / f"{name}.npz") as arrays:
        return torch.from_numpy(np.unpackbits(arrays["masks"], axis=1, count=TOTAL).astype(bool))


def scores_of(name: str) -> Tensor:
    """The scores that its masks were chosen by, (rows, 2394)."""
    with np.load(Path(__file__).parent / "oracles" / f"{name}.npz") as arrays:
        return torch.from_numpy(arrays["scores"]).expand(len(arrays["masks"]), TOTAL)


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def own_scores(method: Method, dtype: torch.dtype, before: Tensor | None = None, **arguments: Any) -> Tensor:
    """Our scores on the network masked by `before`, default: unmasked."""
    masks = None
    if before is not None:
        layers = prunable_layers(network())
        parts = zip(layers, before.split(SIZES), strict=True)
        masks = {layer.name: part.reshape(layer.weight.shape) for layer, part in parts}
    return flat(score(network().to(dtype), method, masks=masks, **arguments).values())


def own_masks(method: Method, dtype: torch.dtype, counts: Sequence[int], **arguments: Any) -> list[Tensor]:
    """Our mask after each step of one run, in which step i keeps `counts[i]`."""
    steps = len(counts)
    variant = replace(method, steps=steps, schedule=lambda _, progress: counts[round(progress * steps) - 1] / TOTAL)
    masks: list[Tensor] = []
    net = network().to(dtype)
    prune(net, variant, counts[-1] / TOTAL, on_step=lambda step: masks.append(flat(step.masks.values())), **arguments)
    return masks


def check(scores: Tensor, mask: Tensor, reference: Tensor, reference_mask: Tensor, candidates: Tensor | None = None) -> None:
    """Scores and mask are the reference's; only the `candidates` have a score that counts, default: all."""
    candidates = torch.ones_like(mask) if candidates is None else candidates
    parts = (tensor.split(SIZES) for tensor in (scores, reference, candidates))
    for got, expected, candidate in zip(*parts, strict=True):
        if candidate.any():
            got, expected = got[candidate], expected[candidate]
            torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=1e-5 * expected.abs().max().item())
    threshold = reference[reference_mask].min()
    near = candidates & ((reference - threshold).abs() <= 1e-5 * threshold.abs())
    assert near.sum() == 1
    assert torch.equal(mask, reference_mask)


def test_the_network_and_the_batches_are_those_the_references_saw():
    """If this fails, nothing else here means anything."""
    tensors = [tensor for seed in (0, 101) for tensor in network(seed).state_dict().values()]
    tensors += [tensor for batch in batches(STEPS) for tensor in batch]
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
    assert digest == "fc8cf47946e3675a9d62d72dd2079cf6a950125e1b5c087380223f9eae770b28"
    assert sum(SIZES) == TOTAL


class OneShot(NamedTuple):
    method: Method
    arguments: dict[str, Any]
    in_their_units: Callable[[Tensor], Tensor] = lambda scores: scores


def halves(whole: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(images[part], classes[part]) for images, classes in whole for part in (slice(10), slice(10, None))]


ONE_SHOT = {
    "snip": OneShot(methods()["snip"], {"data": batches(1), "loss": F.nll_loss}),
    "snip_mb": OneShot(replace(methods()["snip_mb"], batches=STEPS), {"data": batches(STEPS), "loss": F.nll_loss}),
    # theirs adds up the gradients and curvatures of the halves of each batch, ours takes means
    "grasp": OneShot(replace(methods()["grasp"], batches=2), {"data": halves(batches(1))}, lambda scores: 4 * scores),
    "grasp_mb": OneShot(replace(methods()["grasp_mb"], batches=6), {"data": halves(batches(5)[::2])}, lambda scores: 36 * scores),
    "synaptic_flow_snip": OneShot(methods()["snip"], {"data": batches(1)}, lambda scores: scores / scores.sum()),
    "synaptic_flow_grasp": OneShot(
        methods()["grasp"], {"data": batches(1)}, lambda scores: scores / (scores.sum().abs() + 1e-10)
    ),
    "synaptic_flow_mag": OneShot(methods()["magnitude"], {}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ONE_SHOT)
def test_one_shot(name, dtype):
    case = ONE_SHOT[name]
    scores = case.in_their_units(own_scores(case.method, dtype, **case.arguments))
    for density, reference, reference_mask in zip(DENSITIES, scores_of(name), masks_of(name), strict=True):
        count = int(reference_mask.sum())
        (mask,) = own_masks(case.method, dtype, [count], **case.arguments)
        check(scores, mask, reference, reference_mask)
        # left to ourselves we keep a weight more or less: theirs round down, and count the threshold in or out
        own = flat(prune(network().to(dtype), case.method, density, **case.arguments).values())
        assert own.sum() == round(density * TOTAL)
        assert (own ^ reference_mask).sum() == abs(count - round(density * TOTAL)) <= 2


ITERATIVE = {
    "iter_snip_exponential": ("iter_snip", exponential),
    "iter_snip_linear": ("iter_snip", linear),
    "force_exponential": ("force", exponential),
    "force_linear": ("force", linear),
    "grasp_it_exponential": ("grasp_it", exponential),
    "synflow_5_steps": ("synflow", exponential),
}


@pytest.mark.parametrize("name", ITERATIVE)
def test_every_step_of_an_iterative_method(name):
    method, schedule = methods()[ITERATIVE[name][0]], ITERATIVE[name][1]
    shared = {"input_shape": IMAGE} if method.name == "synflow" else {"loss": F.nll_loss}
    data = batches(STEPS) if method.needs == "data" else None
    references, reference_masks = scores_of(name), masks_of(name)
    counts = reference_masks.sum(1).tolist()
    for own, count in zip(targets(schedule, STEPS, FINAL, TOTAL, round(FINAL * TOTAL)), counts, strict=True):
        assert abs(own - count) <= 1  # they round down, or up
    masks = own_masks(method, torch.float64, counts, data=data, **shared)
    before, recovered = torch.ones(TOTAL, dtype=torch.bool), 0
    for step, mask in enumerate(masks):
        scores = own_scores(method, torch.float64, before, data=data and data[step : step + 1], **shared)
        check(scores, mask, references[step], reference_masks[step], None if method.recover else before)
        recovered += int((reference_masks[step] & ~before).sum())
        before = reference_masks[step]
    assert step == STEPS - 1
    assert (recovered > 400) if method.recover else (recovered == 0)


@pytest.mark.parametrize("row", range(len(DENSITIES)))
def test_synflow_in_100_steps(row):
    reference, reference_mask = scores_of("synflow_100_steps")[row], masks_of("synflow_100_steps")[row]
    counts = [TOTAL - int((1 - DENSITIES[row] ** (step / 100)) * TOTAL) for step in range(1, 101)]
    *_, before, mask = own_masks(methods()["synflow"], torch.float64, counts, input_shape=IMAGE)
    scores = own_scores(methods()["synflow"], torch.float64, before, input_shape=IMAGE)
    check(scores, mask, reference, reference_mask, before)


def test_imp():
    """Each of six rounds removes a fifth of the weights that are left, the smallest; the removed ones have large values here."""
    before, masks = torch.ones(TOTAL, dtype=torch.bool), None
    for level, reference_mask in enumerate(masks_of("imp"), start=1):
        trained = network(100 + level)
        left, count = int(before.sum()), int(reference_mask.sum())
        assert count == left - math.ceil(0.2 * left) - 1  # they drop the weight at the threshold too
        masks = prune(trained, "magnitude", count / TOTAL, within=masks)
        magnitudes = flat(layer.weight.detach().abs() for layer in prunable_layers(trained))
        check(flat(score(trained, "magnitude").values()), flat(masks.values()), magnitudes, reference_mask, before)
        before = reference_mask


def test_the_references_are_not_trivial():
    for name in (*ONE_SHOT, *ITERATIVE):
        first = scores_of(name)[0]
        assert len(first.unique()) > 0.99 * TOTAL
        assert len({tuple(mask.tolist()) for mask in masks_of(name)}) == len(masks_of(name))
    tenth = {name: masks_of(name)[1] for name in ("snip", "grasp", "synaptic_flow_mag", "synflow_100_steps")}
    tenth["random"] = keep_largest(torch.rand(TOTAL, generator=torch.Generator().manual_seed(0)), 239)
    for (a, one), (b, other) in itertools.combinations(tenth.items(), 2):
        assert (one & other).sum() < 0.7 * 239, (a, b)
