"""What one SM of each architecture has to give, and how many programs of a kernel that is enough for.

The figures are those of the CUDA programming guide, "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

from typing import NamedTuple

_REGISTERS = 65536  # of 32 bits; a warp is given them in portions of 256
_WARPS = 64
_PROGRAMS = 32
_RESERVED = 1024  # bytes of shared memory that every program costs on top of its own


class Machine(NamedTuple):
    """shared: bytes an SM. tensor_memory: columns of it (only Blackwell has it)."""

    shared: int
    tensor_memory: int = 0


MACHINES = {80: Machine(164 * 1024), 90: Machine(228 * 1024), 100: Machine(228 * 1024, 512)}


def programs_per_sm(sm: int, warps: int, registers: int, shared: int, tensor_memory: int = 0) -> int:
    """The most programs that can be resident on one SM at a time; 0: not even one, the kernel cannot be launched.

    warps: of a program. registers: of a thread. shared: bytes of a program. tensor_memory: its columns.
    """
    machine = MACHINES[sm]
    registers_of_a_warp = -(-registers * 32 // 256) * 256
    warps_by_registers = _REGISTERS // 4 // registers_of_a_warp * 4  # each of the SM's four parts has its own registers
    bounds = [
        _PROGRAMS,
        min(_WARPS, warps_by_registers) // warps,
        machine.shared // (-(-shared // 128) * 128 + _RESERVED),
    ]
    if tensor_memory:
        bounds.append(machine.tensor_memory // tensor_memory)
    return min(bounds)
