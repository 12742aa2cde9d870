"""20 steps of tost.optim.SplitLBI against the iteration of the papers in float64 numpy, numpy_split_lbi.py."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tost.optim import numpy_split_lbi
from tost.optim import SplitLBI

STEPS = 20
SHAPE = (6, 3, 2, 2)  # a convolution's weight: six filters of twelve weights
CLOSE = {"rtol": 1e-11, "atol": 1e-13}


class Regression:
    """A network of a convolution's weight W, a linear layer's U and a bias b, and its loss with the gradients by hand.

    L = ||X W^T - Y||^2 / (2 n) + ||P U^T + 1 b^T - Q||^2 / (2 n), W seen as a matrix (6, 12).
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        random = np.random.default_rng(0)
        self.x, self.y = random.normal(size=(30, 12)), random.normal(size=(30, 6)) * np.array([3, 2, 1.5, 1, 0.3, 0.1])
        self.p, self.q = random.normal(size=(30, 5)), random.normal(size=(30, 4)) * np.array([2, 1, 0.5, 0.2])
        self.start = [random.normal(size=SHAPE) / 4, random.normal(size=(4, 5)) / 4, random.normal(size=4)]
        self.weights = [nn.Parameter(torch.tensor(start, dtype=dtype)) for start in self.start]

    def loss(self) -> Tensor:
        w, u, b = self.weights
        x, y, p, q = (torch.tensor(data, dtype=w.dtype) for data in (self.x, self.y, self.p, self.q))
        first = ((x @ w.flatten(1).T - y) ** 2).sum() / 60
        second: Tensor = ((p @ u.T + b - q) ** 2).sum() / 60
        return first + second

    def gradients(self, w: Any, u: Any, b: Any) -> list[Any]:
        first = (self.x @ w.reshape(6, 12).T - self.y) / 30
        second = (self.p @ u.T + b - self.q) / 30
        return [(first.T @ self.x).reshape(SHAPE), second.T @ self.p, second.sum(0)]


CASES: dict[str, dict[str, Any]] = {
    "group": {},
    "lasso": {"prox": "lasso", "lam": 0.08},
    "group_sqrt_d": {"sqrt_d": True, "lam": 0.06},
    "lasso_sqrt_d": {"prox": "lasso", "sqrt_d": True, "lam": 0.08},
    "kappa": {"kappa": 3.0},
    "lasso_kappa": {"prox": "lasso", "kappa": 0.5, "lam": 0.05},
    "momentum": {"momentum": 0.9},
    "lasso_momentum": {"prox": "lasso", "momentum": 0.9, "lam": 0.08},
    "weight_decay": {"weight_decay": 0.05},
    "momentum_decay": {"momentum": 0.9, "weight_decay": 0.05},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    "nesterov_kappa_sqrt_d": {"momentum": 0.8, "nesterov": True, "kappa": 2.0, "sqrt_d": True, "lam": 0.06},
    "adam": {"optimizer": "adam", "lr": 0.03, "nu": 0.5},
    "adam_decay_kappa": {
        "optimizer": "adam",
        "lr": 0.03,
        "nu": 0.5,
        "weight_decay": 0.1,
        "kappa": 2.0,
        "betas": (0.8, 0.95),
        "eps": 1e-3,
    },
    "adam_lasso": {"optimizer": "adam", "lr": 0.03, "nu": 0.5, "prox": "lasso", "lam": 0.08},
    "no_threshold": {"lam": 0.0},
    "plain": {"prox": None, "momentum": 0.9, "weight_decay": 0.05, "kappa": 2.0},
}


def options_of(case: str) -> dict[str, Any]:
    return {"lr": 0.1, "nu": 2.0, "lam": 0.25, **CASES[case]}


def iterations(options: dict[str, Any]) -> list[numpy_split_lbi.SplitLBI]:
    """W and U as the options say; the bias without decay and Gamma."""
    written = {name: value for name, value in options.items() if name not in ("lr", "optimizer")}
    written |= {"alpha": options["lr"], "adam": options.get("optimizer") == "adam"}
    weights = [numpy_split_lbi.SplitLBI(**written) for _ in range(2)]
    return [*weights, numpy_split_lbi.SplitLBI(**written | {"prox": None, "weight_decay": 0.0})]


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps(case: str, foreach: bool) -> None:
    problem, options = Regression(), options_of(case)
    optimizer = SplitLBI(problem.weights, foreach=foreach, **options)
    written = iterations(options)
    ours, theirs = problem.weights, [start.copy() for start in problem.start]
    densities: list[float] = []
    with_gamma = [] if options.get("prox", "group") is None else [0, 1]
    found, expected = [], []  # of all steps: W, U, b, then V and Gamma of W and U
    for _ in range(STEPS):
        optimizer.zero_grad()
        problem.loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found += [weight.detach().numpy().copy() for weight in ours]
        found += [read(ours[i]).numpy() for i in with_gamma for read in (optimizer.dual, optimizer.gamma)]
        gradients = problem.gradients(*theirs)  # all of the old weights
        theirs = [iteration.step(*pair) for iteration, *pair in zip(written, theirs, gradients, strict=True)]
        expected += [*theirs, *(np.asarray(value) for i in with_gamma for value in (written[i].v, written[i].gamma))]
        for i in with_gamma:
            inside = np.asarray(written[i].gamma) != 0
            assert (optimizer.support(ours[i]).numpy() == inside).all()
            densities.append(inside.mean())
    assert [array.shape for array in found] == [array.shape for array in expected]
    np.testing.assert_allclose(*(np.concatenate([array.ravel() for array in arrays]) for arrays in (found, expected)), **CLOSE)
    if case not in ("plain", "no_threshold"):
        assert min(densities) == 0
        assert any(0 < density < 1 for density in densities)  # some of the filters entered, so that both branches were taken
