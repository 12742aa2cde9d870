"""Independent random streams out of one user seed."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from e.g. `("batches", seed, epoch)`.

    Hashing keeps the streams of one run apart (weights, batches, pruning, ...), and makes each of them a function of its
    own parts alone: two runs of the same seed see the same batches whatever else they drew from any generator.
    """
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
