"""Analyses of pruning -> tables."""

from __future__ import annotations

from tost.analysis import Iterations, Layers, Recovery, Saliencies, Setting
from tost.paired import mean_and_spread
from tost.report.sheet import Cell, Number, Sheet, Spread

__all__ = ["iterations_sheet", "layers_sheet", "recovery_sheet", "saliency_sheet", "setting_title"]


def setting_title(setting: Setting) -> str:
    """E.g. `resnet20 on mnist5k, 98% sparse, 3 seeds`, or `... seed 7`."""
    config, seeds = setting.config, setting.seeds
    said = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"{config.model_name} on {config.dataset}, {100 * (1 - config.density):g}% sparse, {said}"


def iterations_sheet(found: Iterations) -> Sheet:
    """A row for each method and T."""
    rows = []
    for name in dict.fromkeys(point.method for point in found.points):
        for steps in dict.fromkeys(point.steps for point in found.points):
            points = [point for point in found.points if (point.method, point.steps) == (name, steps)]
            rows.append(
                (
                    name,
                    Number(steps),
                    _saliency([point.saliency for point in points]),
                    Spread([100 * point.test_accuracy for point in points]),
                    Number(mean_and_spread([point.seconds for point in points])[0], ".2f"),
                )
            )
    where = found.environment
    threads = f"{where['threads']} thread{'s' if where['threads'] > 1 else ''}"
    return Sheet(
        f"Number of steps T: {setting_title(found.setting)}",
        ("method", "T", "pruning saliency", "test accuracy %", "s to prune"),
        tuple(rows),
        f"Mean ± standard deviation. Pruning saliency: sum of |w dL/dw| over the kept weights of the masked network before "
        f"training, gradients over {found.batches} batches. Seconds: {threads} of {where['processor']}, torch {where['torch']}.",
    )


def saliency_sheet(found: Saliencies) -> Sheet:
    """A row for each method: both saliencies at the final density."""
    rows = []
    for name in dict.fromkeys(point.method for point in found.points):
        points = [point for point in found.points if point.method == name]
        last = [[point for point in points if point.seed == seed][-1].saliency for seed in found.setting.seeds]
        rows.append(
            (
                name,
                _saliency([end.pruning for end in last]),
                _saliency([end.sparsification for end in last]),
                Number(mean_and_spread([end.pruning / max(end.sparsification, 1e-300) for end in last])[0], ".3f"),
            )
        )
    return Sheet(
        f"Saliency: {setting_title(found.setting)}",
        ("method", "pruning saliency", "sparsification saliency", "pruning / sparsification"),
        tuple(rows),
        "At the final density, mean ± standard deviation. Sum of |w dL/dw|, the gradient at the masked network over "
        f"{found.batches} batches; pruning: over the kept weights; sparsification: over all, with the values they had.",
    )


def recovery_sheet(found: Recovery) -> Sheet:
    """A row for each method: what its steps removed and what came back, summed up, averaged over the seeds."""
    seeds, rows = len(found.setting.seeds), []
    for name in dict.fromkeys(step.method for step in found.steps):
        steps = [step for step in found.steps if step.method == name]
        pruned, recovered = sum(s.pruned for s in steps) / seeds, sum(s.recovered for s in steps) / seeds
        most = max(steps, key=lambda step: step.recovered)
        where = f"{most.recovered:,} at step {most.number}" if most.recovered else "none"
        rows.append((name, Number(len(steps) // seeds), Number(pruned, ",.0f"), Number(recovered, ",.0f"), where))
    return Sheet(
        f"Pruned and recovered weights: {setting_title(found.setting)}",
        ("method", "steps", "pruned", "recovered", "most recovered"),
        tuple(rows),
        "Sums over the steps, mean over the seeds; a weight that goes, returns and goes again is counted each time.",
    )


def layers_sheet(found: Layers) -> Sheet:
    """A row for each layer: weights left by each method, averaged over the seeds."""
    names = list(found.counts)
    layers = found.counts[names[0]][0]
    kept = {name: found.mean_kept(name) for name in names}
    rows: list[tuple[Cell, ...]] = [
        (
            layer.name,
            "x".join(map(str, layer.shape)),
            Number(layer.total),
            *(Number(kept[name][i], ",.0f") for name in names),
        )
        for i, layer in enumerate(layers)
    ]
    total = Number(sum(layer.total for layer in layers))
    rows.append(("all", "", total, *(Number(sum(kept[name]), ",.0f") for name in names)))
    return Sheet(
        f"Weights left: {setting_title(found.setting)}",
        ("layer", "shape", "weights", *names),
        tuple(rows),
        "Mean over the seeds; the picture shows the first.",
    )


def _saliency(values: list[float]) -> Spread:
    return Spread(values, ".4g", ".2g")
