"""Scores and masks of our methods against those of the published implementations; `oracles/README.md` says how they were made.

A score may differ by 1e-5 of the layer's largest. No reference score but the smallest kept one lies within 1e-5 of the threshold
(`check` asserts it), so masks must be equal. Other kernels of torch (oneDNN off), and float64, differ from the references by
at most 5e-6 of the layer's largest score, and in no mask.
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
from tost.masks import Method, methods, prune
from tost.masks.layers import prunable_layers
from tost.masks.schedules import Schedule, exponential, linear, targets
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


def ours(method: Method, counts: Sequence[int], **arguments: Any) -> tuple[Tensor, Tensor]:
    """Scores at the last step of `prune`, and the mask after it; step i keeps `counts[i]`."""
    seen: list[Tensor] = []

    def score(probe):
        scores = method.score(probe)
        seen.append(flat(scores))
        return scores

    steps = len(counts)
    variant = replace(method, score=score, steps=steps, schedule=lambda _, progress: counts[round(progress * steps) - 1] / TOTAL)
    masks = prune(network(), variant, counts[-1] / TOTAL, **arguments)
    assert len(seen) == steps
    return seen[-1], flat(masks.values())


def check(scores: Tensor, mask: Tensor, reference: Tensor, reference_mask: Tensor, candidates: Tensor | None = None) -> None:
    """Scores and mask are the reference's; only the `candidates` have a score that counts, default: all."""
    candidates = torch.ones_like(mask) if candidates is None else candidates
    parts = (tensor.split(SIZES) for tensor in (scores, reference, candidates))
    for score, expected, candidate in zip(*parts, strict=True):
        if candidate.any():
            score, expected = score[candidate], expected[candidate]
            torch.testing.assert_close(score, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
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


def halves() -> list[tuple[Tensor, Tensor]]:
    ((images, classes),) = batches(1)
    return [(images[:10], classes[:10]), (images[10:], classes[10:])]


ONE_SHOT = {
    "snip": OneShot(methods()["snip"], {"data": batches(1), "loss": F.nll_loss}),
    "snip_mb": OneShot(replace(methods()["snip"], batches=STEPS), {"data": batches(STEPS), "loss": F.nll_loss}),
    # theirs adds up the gradients and curvatures of two halves of the batch, ours takes means
    "grasp": OneShot(replace(methods()["grasp"], batches=2), {"data": halves()}, lambda scores: 4 * scores),
    "synaptic_flow_snip": OneShot(methods()["snip"], {"data": batches(1)}, lambda scores: scores / scores.sum()),
    "synaptic_flow_grasp": OneShot(
        methods()["grasp"], {"data": batches(1)}, lambda scores: scores / (scores.sum().abs() + 1e-10)
    ),
    "synaptic_flow_mag": OneShot(methods()["magnitude"], {}),
}


@pytest.mark.parametrize("name", ONE_SHOT)
def test_one_shot(name):
    case = ONE_SHOT[name]
    for density, reference, reference_mask in zip(DENSITIES, scores_of(name), masks_of(name), strict=True):
        count = int(reference_mask.sum())
        scores, mask = ours(case.method, [count], **case.arguments)
        check(case.in_their_units(scores), mask, reference, reference_mask)
        # left to ourselves we keep a weight more or less: theirs round down, and count the threshold in or out
        own = flat(prune(network(), case.method, density, **case.arguments).values())
        assert own.sum() == round(density * TOTAL)
        assert (own ^ reference_mask).sum() == abs(count - round(density * TOTAL)) <= 2


GRASP_IT = replace(methods()["iter_snip"], score=lambda probe: [g.square() for g in probe.mean_loss_gradients()])
LOGITS = {"data": batches(STEPS), "loss": F.nll_loss}
ITERATIVE: dict[str, tuple[Method, Schedule, dict[str, Any]]] = {
    "iter_snip_exponential": (methods()["iter_snip"], exponential, LOGITS),
    "iter_snip_linear": (methods()["iter_snip"], linear, LOGITS),
    "force_exponential": (methods()["force"], exponential, LOGITS),
    "force_linear": (methods()["force"], linear, LOGITS),
    "grasp_it_exponential": (GRASP_IT, exponential, LOGITS),
    "synflow_5_steps": (methods()["synflow"], exponential, {"input_shape": IMAGE}),
}


@pytest.mark.parametrize("name", ITERATIVE)
def test_every_step_of_an_iterative_method(name):
    method, schedule, arguments = ITERATIVE[name]
    references, reference_masks = scores_of(name), masks_of(name)
    counts = reference_masks.sum(1).tolist()
    for own, count in zip(targets(schedule, STEPS, FINAL, TOTAL, round(FINAL * TOTAL)), counts, strict=True):
        assert abs(own - count) <= 1  # they round down, or up
    returned = 0
    for step in range(STEPS):
        scores, mask = ours(method, counts[: step + 1], **arguments)
        compete = None if step == 0 or method.recover else reference_masks[step - 1]
        check(scores, mask, references[step], reference_masks[step], compete)
        returned += int((reference_masks[step] & ~reference_masks[step - 1]).sum()) if step else 0
    assert (returned > 400) if method.recover else (returned == 0)


@pytest.mark.parametrize("row", range(len(DENSITIES)))
def test_synflow_in_100_steps(row):
    reference, reference_mask = scores_of("synflow_100_steps")[row], masks_of("synflow_100_steps")[row]
    counts = [TOTAL - int((1 - DENSITIES[row] ** (step / 100)) * TOTAL) for step in range(1, 101)]
    scores, mask = ours(methods()["synflow"], counts, input_shape=IMAGE)
    check(scores, mask, reference, reference_mask, reference > 0)


def test_imp():
    """Each of six rounds removes a fifth of the weights that are left, the smallest; the removed ones have large values here."""
    before = torch.ones(TOTAL, dtype=torch.bool)
    for level, reference_mask in enumerate(masks_of("imp"), start=1):
        weights = flat(layer.weight.detach() for layer in prunable_layers(network(100 + level))).abs()
        count = int(reference_mask.sum())
        left = int(before.sum())
        assert count == left - math.ceil(0.2 * left) - 1  # they drop the weight at the threshold too
        mask = torch.zeros_like(before).masked_scatter(before, keep_largest(weights[before], count))
        check(weights, mask, weights, reference_mask, before)
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
