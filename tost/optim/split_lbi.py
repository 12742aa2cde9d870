"""SplitLBI: a torch optimizer whose second set of weights, Gamma, grows from nothing to the structure that the network needs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.optimizer import Optimizer, ParamsT
from torch.optim.sgd import sgd

from tost.checks import number
from tost.optim.prox import GROUP, LASSO, Scratch, group_prox, group_threshold, lasso_prox
from tost.optim.read_out import PathPoint, path_point, supports

__all__ = ["SplitLBI", "stable_lr"]

# state -> what it is, in the order of the state_dict
DUAL, GAMMA = "dual", "gamma"
_LOSS_STATE = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq")}


def stable_lr(lipschitz: float, kappa: float = 1.0, nu: float = 10.0) -> float:
    """The learning rate at which SplitLBI (SGD without momentum) stops being stable, where the loss has curvature `lipschitz`.

    A weight and its Gamma, once it is in the support, descend together on L(W) + (W - Gamma)^2 / (2 nu), whose Hessian is
    [[h + 1/nu, -1/nu], [-1/nu, 1/nu]] at curvature h. Steps of kappa lr are stable below 2 over its larger eigenvalue,
    1/nu + h/2 + sqrt(h^2/4 + 1/nu^2). The papers' bound, 2 / (kappa (h + 1/nu)) (https://arxiv.org/abs/2007.02010), is that of
    W alone, with Gamma at rest: the same where h nu is large, and twice as much where h is 0.

    Args:
        lipschitz: the largest eigenvalue h >= 0 of the loss's Hessian, such as `tost.analysis` estimates.
        kappa, nu: as for `SplitLBI`.

    Raises TypeError, ValueError: an argument is no number of its range.
    """
    half = number("lipschitz", lipschitz, least=0) / 2
    coupling = 1 / number("nu", nu, above=0)
    return 2 / (number("kappa", kappa, above=0) * (coupling + half + math.hypot(half, coupling)))


class SplitLBI(Optimizer):
    """Split linearized Bregman iteration (SplitLBI, DessiLBI) for dense weights.

    Beside each weight tensor W it keeps V and Gamma of the same shape, 0 at first, and minimises the loss L(W) plus
    ||W - Gamma||^2 / (2 nu). With learning rate alpha, and the old W and Gamma on every right side, a step is

        W     <- W - kappa alpha (D + (W - Gamma) / nu)
        V     <- V - (alpha / nu) (Gamma - W)
        Gamma <- kappa prox(V)

    D is the direction in which the loss is descended: the gradient, with momentum, Nesterov momentum or Adam's scaling if
    asked for. The coupling is added after it and is in no moment. prox is soft thresholding at `lam`: of single weights
    ("lasso") or of the norms of filters ("group"), see `tost.optim.prox`. Weights enter Gamma's support one by one, what the
    loss needs most first; supp(Gamma) is a mask, W * 1[Gamma != 0] a sparse network, at every step of the training.

        groups = tost.optim.split_lbi_groups(model, conv={"lam": 0.1}, linear={"lam": 0.03})
        optimizer = tost.optim.SplitLBI(groups, lr=0.1, nu=100, momentum=0.9, weight_decay=1e-4)

    Parameters of less than two dimensions (biases, BatchNorm) and groups with prox=None have no Gamma: they are trained by
    the optimizer of W with the learning rate kappa alpha, as a part of the W of the papers.

    References: https://arxiv.org/abs/2007.02010, https://arxiv.org/abs/1905.09449.

    Stability: below `stable_lr`, which needs the curvature of the loss. The curvature is unknown here, and only what holds for
    any loss is checked, at each step: from kappa lr / nu = 1 on, the weights of the support swing about Gamma with growing
    amplitude even where the loss is flat. That is a UserWarning, once an optimizer. Nothing else is checked: neither the
    curvature, nor what momentum, Adam or noisy gradients do to it.

    With torch.amp.GradScaler: a step whose gradients overflowed is left out whole, V and Gamma with it. Under DDP all
    processes see the same gradients, so their V and Gamma are the same bits; nothing is sent.

    Args:
        params: as for any torch optimizer: dense, real weights, those with a Gamma of float32 or float64 (V sums up small
            differences, which half precision would lose: train such networks under autocast). Index o of dimension 0 is a filter.
        lr: alpha, >= 0. Any torch schedule may change it. (OneCycleLR and CyclicLR take an optimizer that has `betas` for Adam:
            give them cycle_momentum=False with "sgd".)
        kappa: > 0; scales Gamma, and the step of W.
        nu: > 0; how loosely Gamma follows W.
        lam: the threshold, >= 0.
        prox: "group", "lasso", or None: no Gamma.
        momentum, nesterov: of the loss's gradient, as torch.optim.SGD has them, without dampening.
        weight_decay: L2, added to the loss's gradient before momentum or Adam; not for parameters of less than two dimensions.
        sqrt_d: the threshold of a filter of d weights is lam sqrt(d). For "lasso" each weight is its own group, of d = 1.
        optimizer: "sgd" or "adam": of D. Adam's are `betas` and `eps`; it has no momentum beside.
        maximize: climb the loss instead; the coupling is the same.
        foreach: treat all tensors of a group together (fast). False: one after the other, the same bits.

    Every option but params can be another in each parameter group.

    Raises:
        TypeError, ValueError: an option is not as above; a parameter is complex, sparse, half precision, or the packed
            `values` of a sparse layer (known by the name, where params are named; or because nothing has a Gamma; `supports`
            knows them by the module).
    """

    _warned: bool
    _scratch: Scratch

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        kappa: float = 1.0,
        nu: float = 10.0,
        lam: float = 1.0,
        prox: str | None = GROUP,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        sqrt_d: bool = False,
        optimizer: str = "sgd",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "kappa": kappa,
            "nu": nu,
            "lam": lam,
            "prox": prox,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "sqrt_d": sqrt_d,
            "optimizer": optimizer,
            "betas": betas,
            "eps": eps,
            "maximize": maximize,
            "foreach": foreach,
        }
        self._scratch = {}
        super().__init__(params, defaults)
        if next(self._coupled(), None) is None and any(group["prox"] is not None for group in self.param_groups):
            raise ValueError(
                "params: expected weights of two or more dimensions for Gamma to follow, got none; the packed `values` of sparse "
                "layers are vectors: use the dense network (tost_kernels.densify)"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._warned = False
        self._scratch = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with options of its own. Raises as the constructor does; nothing is added then."""
        unknown = param_group.keys() - set(self._options()) - {"params", "param_names", "initial_lr"}
        if unknown:
            raise ValueError(f"params: unknown option {min(unknown)!r} of a group; there are {', '.join(self._options())}")
        super().add_param_group(param_group)
        try:
            _check_options(self.param_groups[-1])
            _check_parameters(self.param_groups[-1])
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise
        self._warned = False

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step, as in the class's description. Parameters without a gradient stay as they are, with V and Gamma.

        closure: computes the loss and the gradients anew; its loss is returned.

        Raises RuntimeError for a sparse gradient, before anything has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._warn_if_unstable()
        batches = [(group, alike) for group in self.param_groups for alike in _alike(group)]  # all, before anything changes
        for group, alike in batches:
            states = [self.state[p] for p in alike]
            if _has_gamma(group, alike[0]):
                _split_step(group, alike, states, self._scratch)
            else:
                _descend(group, alike, states)
        return loss

    # ---- what has been found -------------------------------------------------------------------------------------------

    def gamma(self, param: Tensor) -> Tensor:
        """A copy of Gamma of a parameter, of its shape; zeros before the first step.

        Raises ValueError if the parameter is none of this optimizer's, or has no Gamma.
        """
        return self._value(param, GAMMA)

    def dual(self, param: Tensor) -> Tensor:
        """A copy of V of a parameter, of its shape; zeros before the first step. Raises as `gamma`."""
        return self._value(param, DUAL)

    def support(self, param: Tensor) -> Tensor:
        """Where Gamma is not 0: bool, of the parameter's shape and on its device. Raises as `gamma`."""
        return self.gamma(param) != 0

    def has_gamma(self, param: Tensor) -> bool:
        """Whether a Gamma belongs to `param` (which may be any tensor)."""
        return any(own is param for own in self._coupled())

    def supports(self, model: nn.Module) -> dict[str, Tensor]:
        """Module name -> support of its weight, bool on the CPU: what `tost.Masks` takes.

        Of the Conv2d and Linear layers of `model` (not its DDP wrapper) whose weights have a Gamma here.

        Raises ValueError if there is none, such a layer is tied to another, or weights that should have a Gamma are packed.
        """
        return supports(self, model)

    def path_point(self, model: nn.Module) -> PathPoint:
        """Where the path is now: of each layer of `supports` its mask and its filters' norms ||W_o||. Raises as `supports`."""
        return path_point(self, model)

    def _value(self, param: Tensor, name: str) -> Tensor:
        if not self.has_gamma(param):
            raise ValueError(f"param: expected a parameter of this optimizer with a Gamma, got one of shape {tuple(param.shape)}")
        value = self.state[param].get(name) if param in self.state else None
        return torch.zeros_like(param, requires_grad=False) if value is None else value.clone()

    # ---- state ---------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state and the options of another SplitLBI of the same parameters: the next steps have the same bits.

        The tensors get the memory format of their parameters, whatever the file made of it.

        Raises ValueError if the state is not one of such an optimizer and such parameters; nothing has changed then.
        """
        for number_, group in enumerate(state_dict["param_groups"]):
            missing = set(self._options()) - group.keys()
            if missing:
                raise ValueError(f"state_dict: expected a state of SplitLBI, got a group {number_} without {min(missing)!r}")
        before = self.state, self.param_groups
        super().load_state_dict(state_dict)
        try:
            for group in self.param_groups:
                _check_options(group)
                for p in group["params"]:
                    if p in self.state:
                        self.state[p] = _fitted(p, self.state[p])
        except (TypeError, ValueError) as error:
            self.state, self.param_groups = before
            raise ValueError(f"state_dict: {error}") from error

    def _options(self) -> list[str]:
        return [name for name in self.defaults if name != "differentiable"]  # torch adds that one when it copies an optimizer

    def _coupled(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"] if _has_gamma(group, p))

    def _warn_if_unstable(self) -> None:
        if self._warned:
            return
        for number_, group in enumerate(self.param_groups):
            step = group["kappa"] * group["lr"] / group["nu"]
            if group["prox"] is not None and step >= 1:
                self._warned = True
                warnings.warn(
                    f"SplitLBI: kappa * lr / nu is {step:.3g} in group {number_}; from 1 on W and Gamma swing apart whatever the "
                    f"loss: expected lr < nu / kappa = {group['nu'] / group['kappa']:.3g}, and less where the loss is curved",
                    UserWarning,
                    stacklevel=5,
                )


def _split_step(group: Mapping[str, Any], params: list[Tensor], states: list[dict[str, Any]], scratch: Scratch) -> None:
    for p, state in zip(params, states, strict=True):
        if GAMMA not in state:
            state[DUAL], state[GAMMA] = torch.zeros_like(p), torch.zeros_like(p)
    duals, gammas = [state[DUAL] for state in states], [state[GAMMA] for state in states]
    kappa, per_nu = group["kappa"], group["lr"] / group["nu"]
    # Gamma is computed anew below: until then its memory holds the difference, and nothing is allocated
    torch._foreach_sub_(gammas, params)
    torch._foreach_add_(duals, gammas, alpha=-per_nu)
    _descend(group, params, states)
    torch._foreach_add_(params, gammas, alpha=kappa * per_nu)
    if group["prox"] == LASSO:
        lasso_prox(duals, kappa, group["lam"], out=gammas)
    else:
        thresholds = [group_threshold(p, group["lam"], group["sqrt_d"]) for p in params]
        group_prox(duals, kappa, thresholds, out=gammas, scratch=scratch)


def _descend(group: Mapping[str, Any], params: list[Tensor], states: list[dict[str, Any]]) -> None:
    """W <- W - kappa alpha D, by torch's own SGD or Adam."""
    options: dict[str, Any] = {
        "lr": group["kappa"] * group["lr"],
        "weight_decay": group["weight_decay"] if params[0].dim() >= 2 else 0.0,
        "maximize": group["maximize"],
        "foreach": group["foreach"],
    }
    grads = [p.grad for p in params if p.grad is not None]
    if group["optimizer"] == "sgd":
        buffers = [state.get("momentum_buffer") for state in states]
        momentum, nesterov = group["momentum"], group["nesterov"]
        sgd(params, grads, buffers, momentum=momentum, nesterov=nesterov, dampening=0.0, fused=False, **options)
        if momentum:
            for state, buffer in zip(states, buffers, strict=True):
                state["momentum_buffer"] = buffer
    else:
        for p, state in zip(params, states, strict=True):
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state.update({name: torch.zeros_like(p) for name in _LOSS_STATE["adam"]})
        averages, squares, steps = ([state[name] for state in states] for name in (*_LOSS_STATE["adam"], "step"))
        betas = dict(zip(("beta1", "beta2"), group["betas"], strict=True))
        adam(
            params,
            grads,
            averages,
            squares,
            [],
            steps,
            amsgrad=False,
            eps=group["eps"],
            fused=False,
            **betas,
            **options,
        )


def _has_gamma(group: Mapping[str, Any], p: Tensor) -> bool:
    return group["prox"] is not None and p.dim() >= 2


def _alike(group: Mapping[str, Any]) -> list[list[Tensor]]:
    """The parameters with a gradient that one call can treat together: of one device and type, matrices and vectors apart."""
    together: dict[tuple[object, ...], list[Tensor]] = {}
    for p in group["params"]:
        if p.grad is not None:
            if p.grad.layout is not torch.strided:
                raise RuntimeError(f"SplitLBI: expected dense gradients, got one of layout {p.grad.layout}")
            together.setdefault((p.dim() >= 2, p.device, p.dtype), []).append(p)
    batches = list(together.values())
    return batches if group["foreach"] else [[p] for batch in batches for p in batch]


def _fitted(p: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """`state` with the strides of its parameter: sums over other strides would be in another order."""
    fitted = dict(state)
    for name, value in state.items():
        if not isinstance(value, Tensor) or name == "step":
            continue
        if value.shape != p.shape:
            raise ValueError(f"{name}: expected shape {tuple(p.shape)}, got {tuple(value.shape)}")
        if value.stride() != p.stride():
            fitted[name] = torch.empty_like(p, requires_grad=False).copy_(value)
    return fitted


def _check_options(group: Mapping[str, Any]) -> None:
    for name in ("lr", "lam", "weight_decay"):
        number(name, group[name], least=0)
    for name in ("kappa", "nu", "eps"):
        number(name, group[name], above=0)
    _choice("prox", group["prox"], (GROUP, LASSO, None))
    _choice("optimizer", group["optimizer"], tuple(_LOSS_STATE))
    for name in ("nesterov", "sqrt_d", "maximize", "foreach"):
        _choice(name, group[name], (True, False))
    momentum = number("momentum", group["momentum"], least=0, below=1)
    if group["optimizer"] == "adam" and (momentum or group["nesterov"]):
        raise ValueError(f"momentum, nesterov: expected none beside Adam's betas, got {momentum:g} and {group['nesterov']}")
    if group["nesterov"] and not momentum:
        raise ValueError("nesterov: expected momentum > 0 with it, got 0")
    betas = group["betas"]
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas: expected two numbers, got {betas!r}")
    for beta in betas:
        number("betas", beta, least=0, below=1)


def _choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_parameters(group: Mapping[str, Any]) -> None:
    names = group.get("param_names") or [f"parameter {i} of its group" for i in range(len(group["params"]))]
    for name, p in zip(names, group["params"], strict=True):
        if p.dim() == 1 and name.split(".")[-1] == "values":
            raise ValueError(
                f"params: {name} is the packed weight of a sparse layer, and Gamma has to follow the pruned weights too: use the "
                "dense network (tost_kernels.densify)"
            )
        if p.layout is not torch.strided or p.is_complex():
            raise TypeError(f"params: {name}: expected a dense real tensor, got {p.dtype}, layout {p.layout}")
        if _has_gamma(group, p) and p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"params: {name}: expected float32 or float64, got {p.dtype}, in which V would lose most of what is added to it; "
                "keep the weights in float32 and use autocast"
            )
