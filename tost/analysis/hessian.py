"""The largest eigenvalues of the Hessian of the loss, in the space of the weights that are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tost_kernels as tk

__all__ = ["Eigenpairs", "Hessian", "require_scipy"]


def require_scipy() -> None:
    """Raise ModuleNotFoundError with the remedy where scipy is missing."""
    try:
        import scipy.sparse.linalg  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "scipy":
            raise  # it is there, but broken: its own message says more
        raise ModuleNotFoundError("eigenvalues need scipy: run `pip install 'tost-sparse[analysis]'`") from error


class Eigenpairs(NamedTuple):
    """Eigenvalues, the largest first, and their eigenvectors.

    values: (k,). vectors: float64 (k, n), each of length 1 over the n weights that move; the entry that is largest in size is
    positive.
    """

    values: tuple[float, ...]
    vectors: Tensor


class Hessian:
    """The second derivative of the mean cross entropy of one batch, without label smoothing, as the product with a vector.

    The network is used in eval mode and left as it was found. Products are computed in its own dtype: in float32 the largest
    eigenvalue of a ResNet-20 (batch of 128) is that of float64 to 1.4e-7, at an eighth of the time; vectors are float64.

    Args:
        net: of plain torch modules, as `tost.analysis.networks.network_of` gives it.
        weights: name -> (parameter, bool mask of its shape): what moves, as `tost.analysis.networks.active` gives it. Weights
            outside the masks take no part.
        inputs, targets: the batch, (N, C, H, W) and int64 (N,).
    """

    def __init__(
        self, net: nn.Module, weights: Mapping[str, tuple[nn.Parameter, Tensor]], inputs: Tensor, targets: Tensor
    ) -> None:
        self._parameters = [parameter for parameter, _ in weights.values()]
        self._masks = [mask for _, mask in weights.values()]
        was_training = net.training
        try:
            # the compiled ops of ghosts can be differentiated once only
            with tk.use_backend("reference"), torch.enable_grad():
                loss = F.cross_entropy(net.eval()(inputs), targets)
                slopes = torch.autograd.grad(loss, self._parameters, create_graph=True, materialize_grads=True)
        finally:
            net.train(was_training)
        self._slope = self._flat(slopes)
        if not self._slope.numel():
            raise ValueError("weights: expected at least one that is kept, got none")
        if not bool(self._slope.isfinite().all()):
            raise ArithmeticError("the gradient of the loss is not finite: this network has diverged")
        self.products = 0

    def __len__(self) -> int:
        """How many weights move."""
        return self._slope.numel()

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Hessian times vector: (n,) -> (n,), in the dtype of the network."""
        self.products += 1
        if not self._slope.requires_grad:
            return torch.zeros_like(self._slope)
        curved = torch.autograd.grad(
            self._slope, self._parameters, vector.to(self._slope), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return self._flat(curved)

    def _flat(self, parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([part[mask] for part, mask in zip(parts, self._masks, strict=True)])

    def top(self, start: Tensor, count: int = 1, which: str = "LA", tolerance: float = 1e-3) -> Eigenpairs:
        """The `count` largest eigenvalues and their vectors, by Lanczos iterations (scipy's `eigsh`, ARPACK).

        Args:
            start: (n,), the first vector; random, so that no eigenvector is at a right angle to it.
            count: how many, less than n.
            which: "LA", the largest, or "LM", the largest in size.
            tolerance: relative, of the eigenvalues.

        Raises:
            ArithmeticError: the iterations do not converge, or a product is not finite.
        """
        require_scipy()
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

        size = len(self)
        if not 1 <= count < size:
            raise ValueError(f"count: expected 1 to {size - 1} (one less than the weights that move), got {count}")

        moved = False

        def product(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            nonlocal moved
            curved = self @ torch.from_numpy(vector.reshape(-1))
            moved = moved or bool(curved.any())
            if not bool(curved.isfinite().all()):
                raise ArithmeticError("a product with the Hessian is not finite: this network has diverged")
            return curved.double().numpy()

        try:
            values, vectors = eigsh(
                LinearOperator((size, size), matvec=product, dtype=np.float64),
                k=count,
                which=which,
                tol=tolerance,
                v0=start.double().numpy(),
                ncv=min(size, max(2 * count + 1, _LEAST_VECTORS)),
            )
        except ArpackError as error:
            if not moved:  # the Hessian is 0, as where no path leads to the output; ARPACK refuses it
                return Eigenpairs((0.0,) * count, torch.eye(count, size, dtype=torch.float64))
            raise ArithmeticError(f"the eigenvalues of the Hessian do not converge: {error}") from error
        order = np.argsort(values if which == "LA" else np.abs(values))[::-1]
        found = torch.from_numpy(np.ascontiguousarray(vectors.T[order]))
        signs = found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
        return Eigenpairs(tuple(values[order].tolist()), found * signs)


_LEAST_VECTORS = 6  # scipy's 20 would take as many products before it looks whether fewer were enough; 5 are restarted more often
