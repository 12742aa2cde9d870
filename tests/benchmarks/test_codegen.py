"""What the compilers make of the kernels: planted faults are caught, and the real kernels keep their budget."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.codegen import budget
from benchmarks.codegen.kernel import COLUMNS, Kernel
from benchmarks.codegen.machines import programs_per_sm
from benchmarks.codegen.sass import Code, code_of, read

ROOT = Path(__file__).parent.parent.parent


def gpu_check(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.codegen", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def kernel(name: str = "k", sm: int = 90, registers: int = 32, shared: int = 1024, matrix: bool = False) -> Kernel:
    return Kernel(name, sm, 4, shared, 0, matrix, Code(registers, 0, 0, 0, {}, 2, 1))


def test_planted_faults_are_each_caught(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    limits = {"good": {"registers": 13, "shared": 0}, "gone": {"registers": 1, "shared": 0}}
    for name in ("narrow", "product", "no-tensor-cores", "spills"):
        limits[name] = {"registers": 255, "shared": 2**20}
    limits["product"]["shared"] = 8
    (tmp_path / "budget.json").write_text(json.dumps({"compiler": "", "kernels": {n: {"90": v} for n, v in limits.items()}}))
    out = tmp_path / "out.json"
    files = "--budget", str(tmp_path / "budget.json"), "--json", str(out)
    done = gpu_check("--modules", "tests.benchmarks.planted_kernels", "--sm", "90", *files)
    assert done.returncode == 1
    data = json.loads(out.read_text())
    found = {row["name"]: row for row in data["kernels"]}
    assert sorted(found) == ["good", "narrow", "no-tensor-cores", "product", "spills"]
    good, narrow = found["good"]["code"], found["narrow"]["code"]
    assert (good["wide_loads"], good["loads"], narrow["wide_loads"]) == (1, 1, 0)
    assert good["registers"] > 13
    assert all("MMA" in name for name in found["product"]["code"]["tensor_core"])
    assert found["product"]["code"]["tensor_core"]
    spilled = max(found["spills"]["code"]["spills"], found["spills"]["code"]["stack"])
    assert found["spills"]["code"]["spills"] > 0
    assert data["problems"][2:] == [
        "no-tensor-cores on sm_90: expected tensor-core instructions, got none",
        f"spills on sm_90: spills: budget 0 bytes, got {spilled}",
        f"good on sm_90: registers: budget 13, got {good['registers']}",
        f"product on sm_90: shared: budget 8, got {found['product']['shared']}",
    ]
    broken, misnamed = data["problems"][:2]
    assert broken.startswith("no-kernel on sm_90: it does not compile: CompilationError")
    assert misnamed.endswith("ValueError: expected signature to name ['BLOCK', 'n', 'x', 'y'], got ['x']")
    assert all(problem in done.stderr for problem in data["problems"])
    head, _, *rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert head == f"| {' | '.join(COLUMNS)} |"
    assert [row.split(" | ")[0] for row in rows] == ["| good", "| narrow", "| product", "| no-tensor-cores", "| spills"]


def test_the_kernels_keep_their_budget() -> None:
    triton = pytest.importorskip("triton")
    made_with = budget.load(budget.FILE)["compiler"]
    if made_with != f"triton {triton.__version__}":
        pytest.skip(f"the budget is that of {made_with}, here is triton {triton.__version__}")
    done = gpu_check()
    assert done.returncode == 0, done.stderr


def test_every_kernel_has_a_specimen() -> None:
    """Told from the source: a kernel is a Triton function that no other one calls; a module's specimens come last in it."""
    modules = [file.read_text() for file in sorted((ROOT / "tost_kernels/triton").glob("*.py"))]
    functions = re.findall(r"^@triton\.jit\b[^@]*?^def (\w+)\(", "\n".join(modules), re.MULTILINE)
    kernels = {name for name in functions if not any(re.search(rf"(?<!def )\b{name}\(", module) for module in modules)}
    assert {"_tiles_kernel", "_sum", "running_stats_kernel"} <= kernels
    listed = {word for module in modules for word in re.findall(r"\w+", "".join(module.split("def specimens()")[1:]))}
    assert sorted(kernels - listed) == []


def test_a_budget_is_what_was_accepted(tmp_path: Path) -> None:
    file = tmp_path / "budget.json"
    both = [kernel(sm=80), kernel(sm=90, registers=40), kernel("other", shared=0)]
    assert budget.excesses(both, budget.load(file), "c 1", True) == [
        "k: it has no budget: run `make gpu-check ARGS=--accept` and commit what it writes, if this is meant",
        "other: it has no budget: run `make gpu-check ARGS=--accept` and commit what it writes, if this is meant",
    ]
    budget.save(file, both, "c 1")
    accepted = budget.load(file)
    assert accepted["kernels"]["k"] == {"80": {"registers": 32, "shared": 1024}, "90": {"registers": 40, "shared": 1024}}
    assert budget.excesses(both, accepted, "c 1", True) == []
    assert budget.excesses([kernel(registers=41)], accepted, "c 2", False) == [
        "k on sm_90: registers: budget 40, got 41",
        "c 1 compiled the kernels for the budget, this is c 2, whose numbers may differ with nothing wrong: "
        "`pip install c==1` and check again; spills and tensor cores are to be right with any",
    ]
    gone = budget.excesses(both[:2], accepted, "c 1", True)
    assert [line.split(": run")[0] for line in gone] == ["other: a budget without a kernel"]
    assert len(budget.excesses(both[1:], accepted, "c 1", True)) == 1  # an architecture is gone


def test_flaws_need_no_budget() -> None:
    assert budget.flaws([kernel()]) == []
    assert budget.flaws([kernel(matrix=True)]) == ["k on sm_90: expected tensor-core instructions, got none"]
    assert len(budget.flaws([kernel(shared=227 * 1024 + 1)])) == 1
    assert budget.flaws([kernel(shared=227 * 1024)]) == []


def test_programs_an_sm() -> None:
    assert programs_per_sm(90, warps=4, registers=128, shared=0) == 4  # 65536 / (128 threads * 128 registers)
    assert programs_per_sm(90, warps=4, registers=129, shared=0) == 3
    assert programs_per_sm(90, warps=1, registers=16, shared=0) == 32
    assert programs_per_sm(90, warps=8, registers=32, shared=0) == 8  # 64 warps
    assert programs_per_sm(80, warps=4, registers=32, shared=81 * 1024) == 2  # and 1 KB each: 164 KB
    assert programs_per_sm(80, warps=4, registers=32, shared=81 * 1024 + 1) == 1
    assert programs_per_sm(100, warps=4, registers=32, shared=0, tensor_memory=256) == 2
    assert programs_per_sm(90, warps=16, registers=255, shared=0) == 0


@pytest.mark.parametrize(
    ("instruction", "field", "value"),
    [
        ("HMMA.16816.F32.BF16", "tensor_core", {"HMMA.16816.F32.BF16": 1}),
        ("HGMMA.64x128x8.F32.TF32", "tensor_core", {"HGMMA.64x128x8.F32.TF32": 1}),
        ("UTCHMMA", "tensor_core", {"UTCHMMA": 1}),
        ("HFMA2.MMA", "tensor_core", {}),  # a constant into a register
        ("STL.64", "spills", 8),
        ("LDL.LU", "spills", 4),
        ("STL.U8", "spills", 1),
        ("LDLX", "spills", 0),
        ("LDG.E.128.CONSTANT", "wide_loads", 1),
        ("LDGSTS.E.BYPASS.LTC128B.128", "wide_loads", 1),
        ("LDG.E.LTC128B.64", "wide_loads", 0),
        ("LDG.E.LTC128B", "loads", 1),
        ("LDGDEPBAR", "loads", 0),
        ("LDS.128", "loads", 0),
    ],
)
def test_one_instruction(instruction: str, field: str, value: object) -> None:
    assert getattr(code_of([instruction], 1, 0, 0), field) == value


def test_what_is_no_cubin(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "x.cubin").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="cuobjdump failed with exit code"):
        read(tmp_path / "x.cubin")


def test_the_budget_of_a_part_is_not_accepted() -> None:
    done = gpu_check("--accept", "--only", "k")
    assert done.returncode == 2
    assert "--accept takes the budget of all kernels" in done.stderr
