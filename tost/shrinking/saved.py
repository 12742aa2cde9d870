"""Shrunk networks on disk: the weights, and what to cut out of the original architecture for them to fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from tost import tensor_file
from tost.files import DamagedFile
from tost.masks.of_model import Masked
from tost.shrinking.cut import Cut, cut_out
from tost.shrinking.layers import FORMS, form_of, geometry, is_mixer, is_norm, why_fixed
from tost_kernels.nn import Conv2d, densify, sparsify
from tost_kernels.nn.surgery import duplicate

__all__ = ["load_shrunk", "save"]

_FORMAT, _VERSION, _WHAT = "tost shrunk network", 1, "shrunk network"
_MASKS = {"sparse": "weight_mask", "prune": "weight_mask", "parametrization": "parametrizations.weight.0.mask"}


def save(path: str | os.PathLike[str], model: nn.Module, cuts: Mapping[str, Cut]) -> None:
    """See `Shrunk.save`."""
    state = model.state_dict()
    odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise ValueError(f"{path}: expected tensors in the network's state, got {type(state[odd]).__name__} for {odd!r}")
    forms = {
        name: form_of(module)
        for name, module in model.named_modules()
        if is_mixer(module) and why_fixed(module) is None and form_of(module) != "plain"
    }
    plan = {
        "cuts": {name: [list(c.inputs), list(c.outputs), list(c.of), c.groups, c.bias] for name, c in cuts.items()},
        "forms": forms,
    }
    metadata = {"format": _FORMAT, "version": str(_VERSION), "plan": json.dumps(plan, separators=(",", ":"))}
    tensor_file.write(path, state, metadata)


def load_shrunk(model: nn.Module | Callable[[], nn.Module], path: str | os.PathLike[str]) -> nn.Module:
    """The network of `Shrunk.save`, with its masks in the form they had; on the device of `model`, in its mode and dtype.

    Args:
        model: a network of the original architecture, which is not changed, or a function that makes one. Its weights do not
            matter; where it is masked or sparse, it is taken as dense.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: (a ValueError) it is damaged, or of another kind.
        ValueError: it belongs to another architecture.
        TypeError: `model` is no network, and makes none.
    """
    net = model if isinstance(model, nn.Module) else model() if callable(model) else model
    if not isinstance(net, nn.Module):
        raise TypeError(f"load_shrunk: model: expected a torch.nn.Module or a function that makes one, got {type(net).__name__}")
    state, metadata = tensor_file.read(path, _WHAT, _FORMAT, _VERSION)
    cuts, forms = _plan(Path(path), metadata)
    net = _dense(net)
    _check_architecture(path, net, cuts, forms)
    for name, cut in cuts.items():
        module = net.get_submodule(name)
        if is_mixer(module) and not cut.bias:
            module.register_parameter("bias", None)
    cut_out(net, cuts, {})
    masks = {name: state.get(f"{name}.{_MASKS[form]}") for name, form in forms.items()}
    try:
        net = _masked(net, forms, masks)
        net.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: expected weights that fit {type(net).__name__}: {' '.join(str(error).split())[:500]}"
        ) from error
    return net


def _plan(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Cut], dict[str, str]]:
    try:
        plan = json.loads(metadata["plan"])
        cuts = {}
        for name, (inputs, outputs, of, groups, bias) in plan["cuts"].items():
            cut = Cut(tuple(inputs), tuple(outputs), (of[0], of[1]), groups, bias)
            numbers = [*cut.inputs, *cut.outputs, *of, groups]
            if not all(type(n) is int and n >= 0 for n in numbers) or len(of) != 2 or groups < 1 or not isinstance(bias, bool):
                raise ValueError(f"{name}: no places of channels")
            for places, count in zip((cut.inputs, cut.outputs), cut.of, strict=True):
                if not places or any(a >= b for a, b in zip(places, (*places[1:], count), strict=True)):
                    raise ValueError(f"{name}: places that do not ascend below {count}")
            cuts[name] = cut
        forms = dict(plan["forms"])
        if not all(form in FORMS[1:] for form in forms.values()):
            raise ValueError("an unknown form of a mask")
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DamagedFile(
            path, f"damaged: it does not say what is left of the layers: {' '.join(str(error).split())[:200]}"
        ) from error
    return cuts, forms


def _dense(model: nn.Module) -> nn.Module:
    """A copy whose layers have plain weights."""
    kept_layout = any(isinstance(module, Conv2d) for module in model.modules())
    net = densify(duplicate(model), inplace=True)
    for module in net.modules():
        if not is_mixer(module) or why_fixed(module) is not None:
            continue
        if form_of(module) == "prune":
            torch_prune.remove(module, "weight")  # type: ignore[no-untyped-call]
        elif form_of(module) == "parametrization":
            parametrize.remove_parametrizations(module, "weight")
    return sparsify(net, {}, inplace=True) if kept_layout else net


def _check_architecture(path: Any, net: nn.Module, cuts: Mapping[str, Cut], forms: Mapping[str, str]) -> None:
    modules = dict(net.named_modules())
    for name in (*cuts, *forms):
        module = modules.get(name)
        if module is None or not (is_mixer(module) or is_norm(module)):
            raise ValueError(f"{path}: expected a network with a layer {name!r}, got {type(net).__name__} without")
        has = tuple(getattr(module, attribute) for attribute in geometry(module))
        if name in cuts and has != cuts[name].of:
            raise ValueError(f"{path}: expected {cuts[name].of[0]} inputs and {cuts[name].of[1]} outputs at {name!r}, got {has}")
        if name in cuts and not _fits(cuts[name], int(getattr(module, "groups", 1)), is_norm(module)):
            raise ValueError(f"{path}: expected what is left of {name!r} to be whole groups of channels")


def _fits(cut: Cut, groups: int, norm: bool) -> bool:
    """Whether a layer of `groups` groups has as many inputs and outputs in each that is left as it had before."""
    if norm:
        return cut.inputs == cut.outputs and cut.groups == 1
    if groups == 1:
        return cut.groups == 1
    return all(len(left) * groups == cut.groups * of for left, of in zip((cut.inputs, cut.outputs), cut.of, strict=True))


def _masked(net: nn.Module, forms: Mapping[str, str], masks: Mapping[str, Tensor | None]) -> nn.Module:
    sparse = {name: mask for name, mask in masks.items() if mask is not None and forms[name] == "sparse"}
    if sparse:
        net = sparsify(net, sparse, inplace=True)
    for name, form in forms.items():
        mask = masks[name]
        if mask is None:
            raise ValueError(f"a mask of {name!r} is missing")
        module: Any = net.get_submodule(name)
        if mask.shape != module.weight.shape:
            raise ValueError(f"the mask of {name!r} has shape {tuple(mask.shape)}, its weight {tuple(module.weight.shape)}")
        if form == "prune":
            with torch.no_grad():
                torch_prune.custom_from_mask(module, "weight", mask.to(module.weight.device))  # type: ignore[no-untyped-call]
        elif form == "parametrization":
            parametrize.register_parametrization(module, "weight", Masked(mask.to(module.weight.device)))
    return net
