"""The committed budget of every kernel, and what breaks it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.codegen.kernel import Kernel

FOLDER = Path(__file__).parent

# {"compiler": "triton 3.6.0", "kernels": {kernel: {architecture: {"registers": n, "shared": bytes}}}}
Budget = dict[str, Any]


def load(file: Path) -> Budget:
    """The budget in `file`; an empty one if there is none."""
    budget: Budget = json.loads(file.read_text()) if file.exists() else {"compiler": "", "kernels": {}}
    return budget


def save(file: Path, kernels: Iterable[Kernel], compiler: str) -> None:
    """Write what the kernels need as their budget: one line for each kernel, so that a diff shows what changed."""
    entries: dict[str, dict[str, dict[str, int]]] = {}
    for kernel in kernels:
        entries.setdefault(kernel.name, {})[str(kernel.sm)] = kernel.needs
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items()))
    file.write_text(f'{{\n  "compiler": {json.dumps(compiler)},\n  "kernels": {{\n{lines}\n  }}\n}}\n')


def flaws(kernels: Iterable[Kernel]) -> list[str]:
    """What no budget allows: spills, a matrix kernel without tensor cores, narrow moves, a kernel too large to be launched."""
    found = []
    for kernel in kernels:
        who = f"{kernel.name} on sm_{kernel.sm}"
        spilled = max(kernel.code.spills, kernel.code.stack)
        if spilled:
            found.append(f"{who}: spills: budget 0 bytes, got {spilled}")
        if kernel.matrix and not kernel.code.tensor_core:
            found.append(f"{who}: expected tensor-core instructions, got none")
        for kind in kernel.wide:
            wide, all_of_them = kernel.code.moves.get(kind, (0, 0))
            if not wide:
                found.append(f"{who}: expected {kind} of 16 bytes a thread, got none, and {all_of_them} of fewer")
        if kernel.programs == 0:
            found.append(f"{who}: {kernel.needs} with {kernel.warps} warps are more than an SM has: it cannot be launched")
    return found


def excesses(kernels: Sequence[Kernel], budget: Budget, check: str, all_kernels: bool) -> list[str]:
    """Where the kernels need more than `budget`, or it does not know them; with `all_kernels` also whom it knows in vain.

    check: the target of the Makefile that writes this budget.
    """
    accept = f"run `make {check} ARGS=--accept` and commit what it writes, if this is meant"
    entries = budget["kernels"]
    found, unknown = [], []
    for kernel in kernels:
        allowed = entries.get(kernel.name, {}).get(str(kernel.sm))
        if allowed is None:
            unknown.append(kernel.name)
            continue
        for field, got in kernel.needs.items():
            if got > allowed[field]:
                found.append(f"{kernel.name} on sm_{kernel.sm}: {field}: budget {allowed[field]}, got {got}")
    found += [f"{name}: it has no budget: {accept}" for name in dict.fromkeys(unknown)]
    if all_kernels:
        known = {(kernel.name, str(kernel.sm)) for kernel in kernels}
        gone = [name for name, entry in entries.items() if any((name, sm) not in known for sm in entry)]
        found += [f"{name}: a budget without a kernel: {accept}" for name in gone]
    return found


def other_compiler(budget: Budget, compiler: str) -> str | None:
    """Why excesses do not count, where another compiler made the budget."""
    if budget["compiler"] in ("", compiler):
        return None
    return (
        f"{budget['compiler']} compiled the kernels for the budget, this is {compiler}, whose numbers may differ with nothing "
        "wrong: what follows is reported, and no failure; spills, tensor cores and 16-byte moves are to be right with any"
    )
