"""`SplitLBIOptions`: how `tost.train` runs SplitLBI. Apart from `tost.optim`, so that a configuration is read without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from tost.checks import number
from tost.choices import check_choice

__all__ = ["SplitLBIOptions"]

_PROXES = ("group", "lasso")


@dataclass(frozen=True)
class SplitLBIOptions:
    """Options of `tost.optim.SplitLBI` beside those of SGD (https://arxiv.org/abs/2007.02010). Numbers are stored as float.

    kappa: > 0; scales the sparse copy Gamma, and the step of the weights.
    nu: > 0; how loosely Gamma follows the weights.
    lam: threshold of convolutions, >= 0.
    lam_linear: that of linear layers; None: `lam`.
    prox, prox_linear: "group" (whole filters or units enter) or "lasso" (single weights).
    sqrt_d: the threshold of a group of d weights is lam sqrt(d).

    Raises:
        TypeError, ValueError: a field has a wrong type or value; the message names the field.
    """

    kappa: float = 1.0
    nu: float = 10.0
    lam: float = 1.0
    lam_linear: float | None = None
    prox: str = "group"
    prox_linear: str = "lasso"
    sqrt_d: bool = False

    def __post_init__(self) -> None:
        for name, limits in (("kappa", {"above": 0.0}), ("nu", {"above": 0.0}), ("lam", {"least": 0.0})):
            object.__setattr__(self, name, number(f"split_lbi.{name}", getattr(self, name), **limits))
        if self.lam_linear is not None:
            object.__setattr__(self, "lam_linear", number("split_lbi.lam_linear", self.lam_linear, least=0.0))
        for name in ("prox", "prox_linear"):
            check_choice(f"split_lbi.{name}", getattr(self, name), _PROXES)
        if not isinstance(self.sqrt_d, bool):
            raise TypeError(f"split_lbi.sqrt_d: expected a bool, got {type(self.sqrt_d).__name__} ({self.sqrt_d!r})")

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> SplitLBIOptions:
        """The options of a mapping; absent fields take their default. ValueError: a field is unknown."""
        for name in fields:
            check_choice("split_lbi", name, [field.name for field in dataclasses.fields(cls)])
        return cls(**fields)  # type: ignore[arg-type]  # __post_init__ checks every type
