"""One compiled kernel: a row of the table, whoever compiled it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.codegen.machines import programs_per_sm
from benchmarks.codegen.sass import Code

COLUMNS = ("kernel", "sm", "registers", "spills, B", "shared, KB", "tensor cores", "16-byte loads", "programs an SM")


@dataclass(frozen=True)
class Kernel:
    """name: the key of its budget. sm: the architecture, as 90. warps: of a program. shared: bytes of a program.
    tensor_memory: columns. matrix: whether it must use tensor cores.
    """

    name: str
    sm: int
    warps: int
    shared: int
    tensor_memory: int
    matrix: bool
    code: Code

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
        spilled = max(self.code.spills, self.code.stack)
        return [
            self.name, str(self.sm), str(self.code.registers), str(spilled), f"{self.shared / 1024:.1f}",
            f"{mma} x{self.code.tensor_core[mma]}" if mma else "-", f"{self.code.wide_loads} of {self.code.loads}",
            str(self.programs),
        ]  # fmt: skip
