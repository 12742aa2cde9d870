"""`Recipe`: which ToST tweaks a training run uses, and how strong each is.

ToST (Jaiswal et al., ICML 2022, "Training Your Sparse Neural Network Better with Any Mask") is four independent
tweaks: ghost skips, ghost swish, layer-wise re-scaled initialization, label smoothing. Each is one field here and can be
switched alone; `Recipe.vanilla()` has none of them, `Recipe.tost()` has all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from tost.checks import integer, number
from tost.choices import check_choice

__all__ = ["Recipe", "recipe_name"]


@dataclass(frozen=True)
class Recipe:
    """One choice of ToST tweaks. Immutable and validated; numbers are stored as plain float / int.

    Ghost skips and ghost swish (temporary unless `permanent`):
        ghost_skip: a dense 1x1 branch, with its own BatchNorm and the gate `alpha`, across each spatial convolution.
        ghost_swish: x * sigmoid(beta x) in place of ReLU while the ghosts live.
        swish: "swish", or "mish" for x * tanh(softplus(x)) in its place (https://arxiv.org/abs/1908.08681), which has no
            sharpness to fade, so it needs `permanent` and `ghost_swish`.
        fade_start, fade_end: fractions of the training in [0, 1] between which alpha falls linearly from `alpha_start`
            to 0 and beta grows geometrically from `beta_start` to `beta_end`; from `fade_end` on the network computes
            exactly the plain one (no ghost branch, ReLU). `fade_end=None`: the first drop of the learning rate.
        alpha_start: gate of the ghost skips before the fade, > 0.
        beta_start, beta_end: sharpness of the swish; max |swish - ReLU| is 0.2785 / beta, so at 10 it is 0.028.
        permanent: the ghosts never fade and `finalize` keeps them (a different network: it is accounted as such, and saved as
            its state_dict).

    Layer-wise re-scaled initialization (GradInit, arXiv 2102.08098; see `tost.rescale_init`):
        rescale_init: learn one scale per parameter tensor before training.
        rescale_iterations, rescale_eta, rescale_gamma, rescale_lr, rescale_clip: steps of the optimizer on the scales,
            length of the look-ahead step, bound of the gradient norm above which the norm itself is minimised,
            learning rate of the scales, and the bound each scale's gradient is clipped to.

    Loss:
        label_smoothing: a in y (1 - a) + a / K, in [0, 1).
        distillation: weight a in [0, 1] of a teacher's softened outputs, see `tost.losses.Distillation`; 0: no teacher. SLTH's
            CIFAR runs have 0.9.
        temperature: T > 0, by which both logits are divided there.

    Raises:
        TypeError: a field has the wrong type. ValueError: a field is out of range. Both name the field.
    """

    ghost_skip: bool = True
    ghost_swish: bool = True
    rescale_init: bool = True
    label_smoothing: float = 0.1
    distillation: float = 0.0
    temperature: float = 5.0
    fade_start: float = 0.0
    fade_end: float | None = None
    alpha_start: float = 1.0
    beta_start: float = 1.0
    beta_end: float = 10.0
    permanent: bool = False
    swish: str = "swish"
    rescale_iterations: int = 180
    rescale_eta: float = 0.1
    rescale_gamma: float = 1.0
    rescale_lr: float = 1e-2
    rescale_clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ghost_skip", "ghost_swish", "rescale_init", "permanent"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"Recipe.{name}: expected a bool, got {type(value).__name__} ({value!r})")
        iterations = integer("Recipe.rescale_iterations", self.rescale_iterations, least=1)
        object.__setattr__(self, "rescale_iterations", iterations)
        self._number("label_smoothing", least=0.0, below=1.0)
        self._number("distillation", least=0.0, most=1.0)
        self._number("temperature", above=0.0)
        self._number("fade_start", least=0.0, most=1.0)
        if self.fade_end is not None:
            self._number("fade_end", least=0.0, most=1.0)
            if self.fade_end < self.fade_start:
                raise ValueError(f"Recipe.fade_end: expected at least fade_start = {self.fade_start}, got {self.fade_end}")
        for name in (
            "alpha_start",
            "beta_start",
            "beta_end",
            "rescale_eta",
            "rescale_lr",
            "rescale_clip",
        ):
            self._number(name, above=0.0)
        self._number("rescale_gamma", least=0.0)
        if not isinstance(self.swish, str):
            raise TypeError(f"Recipe.swish: expected a str, got {type(self.swish).__name__} ({self.swish!r})")
        check_choice("Recipe.swish", self.swish, ("mish", "swish"))
        if self.swish == "mish" and not (self.permanent and self.ghost_swish):
            raise ValueError(
                "Recipe.swish: expected 'swish', or 'mish' with permanent=True and ghost_swish=True (Mish has no sharpness to "
                f"fade), got 'mish' with permanent={self.permanent} and ghost_swish={self.ghost_swish}"
            )
        if self.permanent and not self.has_ghosts:
            raise ValueError("Recipe.permanent: expected ghost_skip or ghost_swish with it, got neither")
        # At beta_end the activation becomes ReLU, so a fade that starts there would have no swish at all.
        if self.ghost_swish and not self.permanent and self.beta_end <= self.beta_start:
            raise ValueError(
                f"Recipe.beta_end: expected more than beta_start = {self.beta_start} (the swish must get sharper), "
                f"got {self.beta_end}"
            )

    def _number(self, name: str, **limits: float) -> None:
        # Frozen, yet 1 and 1.0 must give the same dict, hence the same hash of a run's configuration.
        object.__setattr__(self, name, number(f"Recipe.{name}", getattr(self, name), **limits))

    @property
    def has_ghosts(self) -> bool:
        """Whether the network is rewired while training: ghost skips, ghost swish or both."""
        return self.ghost_skip or self.ghost_swish

    @classmethod
    def vanilla(cls) -> Recipe:
        """None of the tweaks: plain training."""
        return cls(ghost_skip=False, ghost_swish=False, rescale_init=False, label_smoothing=0.0)

    @classmethod
    def tost(cls) -> Recipe:
        """All four tweaks at their default strength."""
        return cls()

    def as_dict(self) -> dict[str, bool | int | float | str | None]:
        """Field name -> value, plain JSON types; `Recipe.from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Recipe:
        """The Recipe of a mapping; absent fields take their default.

        Raises:
            TypeError: `fields` is no mapping. ValueError: a field is unknown (close matches are named).
        """
        if not isinstance(fields, Mapping):
            raise TypeError(f"Recipe.from_dict: fields: expected a mapping, got {type(fields).__name__}")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            check_choice("recipe", name, known)
        return cls(**fields)  # type: ignore[arg-type]  # __post_init__ checks every type


_TWEAKS = ("ghost_skip", "ghost_swish", "rescale_init", "label_smoothing")


def recipe_name(recipe: Recipe) -> str:
    """`vanilla`, `tost`, or what differs: first the tweaks that are on, then settings other than the default."""
    if recipe == Recipe.vanilla():
        return "vanilla"
    values, default = recipe.as_dict(), Recipe.tost().as_dict()
    tweaks = [name for name in _TWEAKS if values[name]]
    parts = ["tost" if tweaks == list(_TWEAKS) else "+".join(tweaks) or "vanilla"]
    off = [name for name in _TWEAKS if not values[name]]  # said by their absence
    parts += [f"{name}={value}" for name, value in values.items() if value != default[name] and name not in off]
    return " ".join(parts)
