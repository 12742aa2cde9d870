"""The calls of ghost_skip_add that every backend is tested with, and how its results are compared."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import tost_kernels as tk
from tost_kernels.layout import as_layout

PARTS = ("u", "ghost", "shortcut")

SHAPES = {
    "ordinary": (4, 3, 5, 5),
    "one image": (1, 4, 3, 3),
    "odd batch": (17, 2, 3, 1),
    "one channel": (5, 1, 2, 2),
    "one pixel": (6, 3, 1, 1),
    "several blocks": (7, 2, 21, 33),
    "one column": (2, 5, 9, 1),
    "empty batch": (0, 3, 2, 2),
    "no channels": (2, 0, 2, 2),
    "features": (9, 6),
    "sequence": (3, 4, 7),
    "video": (2, 3, 2, 2, 3),
}
SHAPES_IN_LAYOUTS = [
    pytest.param(shape, layout, id=f"{name}-{layout}")
    for name, shape in SHAPES.items()
    for layout in ("contiguous", "channels_last", "batch_last")
    if layout == "contiguous" or len(shape) == 4
]
# name -> (norm of u, of the ghost, of the shortcut, activation); "" = the part is absent
CASES = {
    "a plain tail": ("batch", "", "none", "relu"),
    "all batch": ("batch", "batch", "batch", "pswish"),
    "all running": ("running", "running", "running", "pswish"),
    "no norm": ("none", "none", "none", "none"),
    "mixed": ("batch", "running", "", "relu"),
    "alone": ("batch", "", "", "none"),
}


@dataclass
class Case:
    """The arguments of one call, all leaves, and how to call."""

    tensors: dict[str, Tensor]
    act: str = "none"
    batch_stats: dict[str, bool] = field(default_factory=dict)
    normed: tuple[str, ...] = ()

    def to(self, dtype: torch.dtype, parameters: torch.dtype | None = None) -> "Case":
        kept = {k: t.detach().to(dtype if k in PARTS else parameters or dtype) for k, t in self.tensors.items()}
        return Case(kept, self.act, self.batch_stats, self.normed)

    def norm(self, part: str) -> tk.Norm | None:
        if part not in self.normed:
            return None
        given = {f: self.tensors.get(f"{part}_{f}") for f in ("weight", "bias", "mean", "var")}
        return tk.Norm(**given, eps=1e-3, batch_stats=self.batch_stats[part])

    def call(self) -> tk.GhostSkipAddOutput:
        t = self.tensors
        return tk.ghost_skip_add(
            t["u"],
            t.get("ghost"),
            t.get("alpha"),
            t.get("shortcut"),
            norm=self.norm("u"),
            ghost_norm=self.norm("ghost"),
            shortcut_norm=self.norm("shortcut"),
            act=self.act,
            beta=t.get("beta"),
        )

    def results(self, dy: Tensor, name: str) -> dict[str, Tensor]:
        """out, stats and the gradient of every tensor but the running statistics, computed by backend `name`."""
        leaves = {k: t.detach().requires_grad_() for k, t in self.tensors.items() if not k.endswith(("_mean", "_var"))}
        case = Case(self.tensors | leaves, self.act, self.batch_stats, self.normed)
        with tk.use_backend(name):
            out, stats = case.call()
        assert not stats.requires_grad
        grads = torch.autograd.grad(out, list(leaves.values()), dy.to(out.dtype))
        return {"out": out.detach(), "stats": stats} | dict(zip(leaves, grads, strict=True))

    def op_arguments(self) -> tuple[object, ...]:
        """What the op itself takes."""
        t, tensors = self.tensors, []
        for part in PARTS:
            tensors += [t.get(part), *(t.get(f"{part}_{f}") for f in ("weight", "bias", "mean", "var"))]
            tensors += [t.get("alpha")] if part == "ghost" else []
        norm = [0 if p not in self.normed else 2 if self.batch_stats[p] else 1 for p in PARTS]
        return (*tensors, t.get("beta"), self.act, norm, [1e-3] * 3, "")

    def without_ghost(self) -> "Case":
        kept = {k: t for k, t in self.tensors.items() if not k.startswith(("ghost", "alpha"))}
        return Case(kept, self.act, self.batch_stats, tuple(p for p in self.normed if p != "ghost"))


def make(
    shape: tuple[int, ...],
    kind: str = "all batch",
    layout: str = "contiguous",
    alpha: float = 0.7,
    beta_per_channel: bool = False,
) -> Case:
    *norms, act = CASES[kind]
    given = {part: norm for part, norm in zip(PARTS, norms, strict=True) if norm}
    return make_mixed(shape, given, act, layout, alpha, beta_per_channel)


def make_mixed(
    shape: tuple[int, ...],
    norms: dict[str, str],
    act: str,
    layout: str = "contiguous",
    alpha: float = 0.7,
    beta_per_channel: bool = False,
) -> Case:
    """A call with the parts that `norms` names, which are "none", "running" or "batch"."""
    channels = shape[1]
    case = Case({}, act)
    for part, norm in norms.items():
        case.tensors[part] = as_layout(torch.randn(shape) * 1.5 + 0.3, layout)
        if part == "ghost":
            case.tensors["alpha"] = torch.tensor(alpha)
        if norm == "none":
            continue
        case.normed += (part,)
        case.batch_stats[part] = norm == "batch"
        case.tensors[f"{part}_weight"] = torch.rand(channels) + 0.5
        case.tensors[f"{part}_bias"] = torch.randn(channels)
        if norm == "running":
            case.tensors[f"{part}_mean"] = torch.randn(channels)
            case.tensors[f"{part}_var"] = torch.rand(channels) + 0.5
    if act == "pswish":
        case.tensors["beta"] = torch.linspace(0.5, 2.0, channels) if beta_per_channel else torch.tensor(1.4)
    return case


def close(got: dict[str, Tensor], want: dict[str, Tensor], dy: Tensor, tolerance: float = 1e-5) -> None:
    """Every result within `tolerance` of the largest value. A sum may cancel: it is measured against its terms, |dy|."""
    assert got.keys() == want.keys()
    for key, exact in want.items():
        assert got[key].shape == exact.shape, key
        if exact.numel() == 0:
            continue
        is_sum = key not in (*PARTS, "out", "stats")
        scale = exact.abs().max() + (dy.double().abs().sum() / max(dy.shape[1], 1) if is_sum else 0.0)
        if key in PARTS:  # a gradient through the statistics of few values is a difference of terms like dy
            scale = scale + dy.double().abs().max()
        assert (got[key].double() - exact).abs().max() <= tolerance * scale, key
