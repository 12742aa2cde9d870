"""SplitLBI in float64 numpy, one tensor, from the papers' formulas (arXiv 2007.02010, 1905.09449); nothing shared with tost.

L(W, Gamma) = L(W) + ||W - Gamma||^2 / (2 nu);  V = Gamma = 0 at the start.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def lasso(v: Array, threshold: float) -> Array:
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


def group(v: Array, threshold: float) -> Array:
    """One group for each output filter v[o]."""
    result = np.zeros_like(v)
    for o in range(len(v)):
        norm = math.sqrt((v[o] ** 2).sum())
        if norm > threshold:
            result[o] = v[o] * (1 - threshold / norm)
    return result


@dataclass
class SplitLBI:
    """`step` maps W, with the gradient of L there, to the next W; `v` and `gamma` follow. prox=None: W alone."""

    alpha: float
    kappa: float = 1
    nu: float = 10
    lam: float = 1
    prox: str | None = "group"
    momentum: float = 0
    weight_decay: float = 0
    nesterov: bool = False
    sqrt_d: bool = False
    adam: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    v: Array | float = 0.0
    gamma: Array | float = 0.0
    steps: int = 0
    buffers: list[Array | float] = field(default_factory=lambda: [0.0, 0.0])

    def direction(self, w: Array, gradient: Array) -> Array:
        """What of the step comes from the loss; the coupling is in no moment."""
        g = gradient + self.weight_decay * w
        self.steps += 1
        if self.adam:
            first, second = self.betas
            self.buffers[0] = first * self.buffers[0] + (1 - first) * g
            self.buffers[1] = second * self.buffers[1] + (1 - second) * g**2
            mean, square = self.buffers[0] / (1 - first**self.steps), self.buffers[1] / (1 - second**self.steps)
            return mean / (np.sqrt(square) + self.eps)
        self.buffers[0] = self.momentum * self.buffers[0] + g
        return g + self.momentum * self.buffers[0] if self.nesterov else np.asarray(self.buffers[0])

    def step(self, w: Array, gradient: Array) -> Array:
        if self.prox is None:
            return w - self.kappa * self.alpha * self.direction(w, gradient)
        new_w = w - self.kappa * self.alpha * (self.direction(w, gradient) + (w - self.gamma) / self.nu)
        self.v = self.v - self.alpha / self.nu * (self.gamma - w)
        filter_size = w[0].size
        if self.prox == "lasso":
            self.gamma = self.kappa * lasso(self.v, self.lam)
        else:
            self.gamma = self.kappa * group(self.v, self.lam * math.sqrt(filter_size) if self.sqrt_d else self.lam)
        return new_w
