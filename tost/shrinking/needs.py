"""Which channels the outputs of the network depend on in a way that cannot be left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tost.shrinking.channels import Array, Slots
from tost.shrinking.layers import Mixer
from tost.shrinking.walk import Layer

__all__ = ["Needs"]


class Needs:
    """What stays of a network.

    A group of united slots stays if it is pinned, or if some filter that stays reads one of its channels where that is not
    constant, or where its constant would leak into a padding. Beginning at the pins, the network's output among them, this is
    followed back as far as it leads: what it does not reach is read by nothing that stays, and goes, loops of a residual stream
    through itself included. Every layer keeps at least one input and one output.
    """

    def __init__(self, slots: Slots, layers: Sequence[Layer]) -> None:
        self._roots = slots.roots()
        count = len(self._roots)
        self._reasons: dict[int, str] = {}
        self._notes: dict[int, str] = {}
        for slot, note in sorted(slots.notes.items()):
            self._notes.setdefault(int(self._roots[slot]), note)
        self._needed = np.zeros(count, dtype=bool)  # of the roots
        self._layers = list(layers)
        for slot, reason in slots.pins.items():
            self._need(self._roots[[slot]], reason)
        self._follow()
        for layer in self._layers:
            for side in (layer.outputs, layer.inputs):
                if not self.of(side).any():
                    self._need(self._roots[side[:1]], f"{layer.path!r} keeps at least one")
                    self._follow()

    def of(self, slots: Array) -> Array:
        """bool: which of the slots stay."""
        return self._needed[self._roots[slots]]

    def reason(self, slot: int) -> str:
        """Why a slot stays."""
        root = int(self._roots[slot])
        return self._notes.get(root) or self._reasons[root]

    def _need(self, roots: Array, reason: str) -> None:
        self._needed[roots] = True
        for root in roots.tolist():
            self._reasons.setdefault(root, reason)

    def _follow(self) -> None:
        changed = True
        while changed:
            changed = False
            for layer in reversed(self._layers):
                if not (layer.mixes and isinstance(layer.kind, Mixer) and layer.seen is not None):
                    continue
                alive, leaking = layer.kind.reads(self.of(layer.outputs), layer.seen)
                leak = f"its constant would leak into the padding of {layer.path!r}"
                for read, reason in ((alive, f"{layer.path!r} reads it"), (leaking, leak)):
                    roots = self._roots[layer.inputs[read]]
                    new = np.unique(roots[~self._needed[roots]])
                    if len(new):
                        self._need(new, reason)
                        changed = True
