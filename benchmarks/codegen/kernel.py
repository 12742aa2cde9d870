"""One compiled kernel: a row of the table, whoever compiled it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.codegen.machines import programs_per_sm
from benchmarks.codegen.sass import Code

COLUMNS = (
    "kernel", "sm", "registers", "spills, B", "stack, B", "shared, KB: static + dynamic", "tensor cores",
    "moves: of 16 bytes / all", "programs x warps an SM",
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """name: the key of its budget. sm: the architecture, as 90. warps: of a program (a block). tensor_memory: columns of it.
    static_shared, dynamic_shared: bytes of a program, known to the compiler or said by the launch.
    matrix: whether it must use tensor cores. wide: those of sass.MOVES of which it must have some of 16 bytes.
    """

    name: str
    sm: int
    warps: int
    static_shared: int
    dynamic_shared: int
    tensor_memory: int
    matrix: bool
    code: Code
    wide: tuple[str, ...] = ()

    @property
    def shared(self) -> int:
        """Bytes of a program."""
        return self.static_shared + self.dynamic_shared

    @property
    def programs(self) -> int:
        """How many can be resident on an SM."""
        return programs_per_sm(self.sm, self.warps, self.code.registers, self.shared, self.tensor_memory)

    @property
    def needs(self) -> dict[str, int]:
        """What has a budget."""
        return {"registers": self.code.registers, "shared": self.shared}

    def row(self) -> list[str]:
        """The cells of COLUMNS."""
        mma = max(self.code.tensor_core, key=self.code.tensor_core.__getitem__, default=None)
        moves = [f"{kind} {wide}/{all_of_them}" for kind, (wide, all_of_them) in self.code.moves.items()]
        return [
            self.name, str(self.sm), str(self.code.registers), str(self.code.spills), str(self.code.stack),
            f"{self.static_shared / 1024:.1f} + {self.dynamic_shared / 1024:.1f}",
            f"{mma} x{self.code.tensor_core[mma]}" if mma else "-", " ".join(moves), f"{self.programs} x {self.warps}",
        ]  # fmt: skip
