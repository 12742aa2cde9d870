"""DIR/*.png: the layers' ratios, the steps, the roofline. A figure of nothing measured is not drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu import ceilings, roofline
from benchmarks.gpu.layer_variants import ALL
from benchmarks.gpu.layers import CHOSEN, DENSE, LAYOUTS, MASKED
from benchmarks.gpu.results import Results
from benchmarks.plot import grid

_MOST_BARS = 24

FILES = ("layers.png", "step.png", "roofline.png")


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what there is; the files drawn."""
    drawn = []
    for name, figure in zip(FILES, (layers(results), step(results), roofs(results)), strict=True):
        if figure is not None:
            figure.suptitle(_about(results), fontsize=8)
            figure.savefig(folder / name, dpi=110)
            drawn.append(folder / name)
            _close(figure)
    return drawn


def _close(figure: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)


def _about(results: Results) -> str:
    hardware, versions = results.about.get("hardware", {}), results.about.get("versions", {})
    text = f"{hardware.get('gpu', '?')}, torch {versions.get('torch', '?')}, {versions.get('tost_kernels', '?')}"
    return text + (": A DRY RUN, NO FIGURE MEANS ANYTHING" if results.about.get("dry_run") else "")


def layers(results: Results) -> Any:
    """Times faster than dense of the same precision, all three passes, over sparsity; a panel a layer and precision.

    The masks are those measured first: random ones, normally. The report has all.
    """
    rows = [r for r in results.of("layers", part=ALL) if r.variant != DENSE and r.ratio is not None]
    rows = [r for r in rows if r.case["mask"] == rows[0].case["mask"]]
    panels = list(dict.fromkeys((r.case["layer"], r.case["precision"]) for r in rows))
    if not panels:
        return None
    figure, axes_of = grid(len(panels))
    for axes, (layer, kind) in zip(axes_of, panels, strict=True):
        here = [r for r in rows if (r.case["layer"], r.case["precision"]) == (layer, kind)]
        for variant in (*LAYOUTS, CHOSEN, MASKED):
            points = sorted((r.case["sparsity"], r.ratio.median) for r in here if r.variant == variant and r.ratio)
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=variant)
        axes.axhline(1, color="gray", linewidth=0.8)
        axes.set(title=f"{layer}, {kind}", xlabel="sparsity", ylabel="times faster than dense")
        axes.legend(fontsize=7)
    return figure


def step(results: Results) -> Any:
    """A bar a variant: milliseconds; a panel a network and precision."""
    rows = {(r.case["network"], r.case["precision"], r.variant): r for r in results.of("step")}
    panels = list(dict.fromkeys(key[:2] for key in rows))
    if not panels:
        return None
    figure, axes_of = grid(len(panels), columns=2)
    for axes, panel in zip(axes_of, panels, strict=True):
        here = {key[2]: r.value for key, r in rows.items() if key[:2] == panel}
        spread = [[v.median - v.low for v in here.values()], [v.high - v.median for v in here.values()]]
        axes.barh(list(here), [v.median for v in here.values()], xerr=spread)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        case = next(r.case for key, r in rows.items() if key[:2] == panel)
        axes.set(title=", ".join(panel), xlabel=f"ms a training step, batch {case['batch']}, masks {case['sparsity']:.0%}")
    return figure


def roofs(results: Results) -> Any:
    """Useful FLOPs a second over FLOPs a byte that must move, under the measured ceilings; a panel a precision."""
    rows = [r for r in results.of(roofline.QUESTION) if r.case["flops"] > 0]
    # elementwise kernels have no FLOPs worth counting: bytes alone; the largest gaps
    streams = [r for r in results.of(roofline.QUESTION) if r.case["flops"] == 0][:_MOST_BARS]
    if not rows and not streams:
        return None
    limits = roofline.Ceilings.of(results)
    kinds = list(dict.fromkeys(r.case["precision"] for r in rows))
    figure, axes_of = grid(len(kinds) + bool(streams))
    for axes, kind in zip(axes_of, kinds, strict=False):
        here = [r for r in rows if r.case["precision"] == kind]
        intensity = [r.case["flops"] / r.case["bytes"] for r in here]
        reach = sorted([min(intensity) / 2, max(intensity) * 2, *(peak / limits.bandwidth for peak in limits.flops.values())])
        for unit in dict.fromkeys(["fp32", kind]):
            axes.plot(reach, [min(x * limits.bandwidth, limits.flops[unit]) for x in reach], label=ceilings.PRODUCTS[unit])
        for variant in dict.fromkeys(r.variant for r in here):
            points = [(r.case["flops"] / r.case["bytes"], r.case["flops_per_second"]) for r in here if r.variant == variant]
            axes.scatter(*zip(*points, strict=True), s=10, label=variant)
        axes.set(title=kind, xscale="log", yscale="log", xlabel="useful FLOPs a byte", ylabel="useful FLOP/s")
        axes.legend(fontsize=7)
    if streams:
        axes = axes_of[len(kinds)]
        names = [f"{r.variant} {r.case['op']} {r.case['layer']} {r.case['precision']} {r.case['part']}" for r in streams]
        axes.barh(names, [r.case["of_memory"] for r in streams])
        axes.axvline(1, color="gray", linewidth=0.8)
        axes.tick_params(axis="y", labelsize=5)
        axes.set(title="fused ops", xlabel="of the bandwidth of a copy")
    return figure
