"""What the compilers make of the kernels: planted faults are caught, and the real kernels keep their budget."""

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.codegen.__main__ as codegen
from benchmarks.codegen import budget, cuda_kernels
from benchmarks.codegen.cuda_uses import Use
from benchmarks.codegen.kernel import COLUMNS, Kernel
from benchmarks.codegen.machines import programs_per_sm
from benchmarks.codegen.sass import Code, code_of, read

ROOT = Path(__file__).parent.parent.parent


def gpu_check(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.codegen", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def kernel(name: str = "k", sm: int = 90, registers: int = 32, shared: int = 1024, matrix: bool = False) -> Kernel:
    return Kernel(name, sm, 4, 0, shared, 0, matrix, Code(registers, 0, 0, 0, {}, {"LDG": (1, 2)}))


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
    assert (good["moves"]["LDG"], narrow["moves"]["LDG"][0]) == ([1, 1], 0)
    assert good["registers"] > 13
    assert all("MMA" in name for name in found["product"]["code"]["tensor_core"])
    assert found["product"]["code"]["tensor_core"]
    spilled = max(found["spills"]["code"]["spills"], found["spills"]["code"]["stack"])
    assert found["spills"]["code"]["spills"] > 0
    assert data["problems"][2:] == [
        "no-tensor-cores on sm_90: expected tensor-core instructions, got none",
        f"spills on sm_90: spills: budget 0 bytes, got {spilled}",
        f"good on sm_90: registers: budget 13, got {good['registers']}",
        f"product on sm_90: shared: budget 8, got {found['product']['dynamic_shared']}",
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
    made_with = budget.load(budget.FOLDER / "triton_budget.json")["compiler"]
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
    assert budget.excesses(both, budget.load(file), "gpu-check", True) == [
        "k: it has no budget: run `make gpu-check ARGS=--accept` and commit what it writes, if this is meant",
        "other: it has no budget: run `make gpu-check ARGS=--accept` and commit what it writes, if this is meant",
    ]
    budget.save(file, both, "c 1")
    accepted = budget.load(file)
    assert accepted["kernels"]["k"] == {"80": {"registers": 32, "shared": 1024}, "90": {"registers": 40, "shared": 1024}}
    assert budget.excesses(both, accepted, "gpu-check", True) == []
    assert budget.excesses([kernel(registers=41)], accepted, "gpu-check", False) == ["k on sm_90: registers: budget 40, got 41"]
    gone = budget.excesses(both[:2], accepted, "cuda-check", True)
    assert gone == [
        "other: a budget without a kernel: run `make cuda-check ARGS=--accept` and commit what it writes, if this is meant"
    ]
    assert len(budget.excesses(both[1:], accepted, "gpu-check", True)) == 1  # an architecture is gone
    assert budget.other_compiler(accepted, "c 1") is None
    assert str(budget.other_compiler(accepted, "c 2")).startswith("c 1 compiled the kernels for the budget, this is c 2")


def test_flaws_need_no_budget() -> None:
    assert budget.flaws([kernel()]) == []
    assert budget.flaws([kernel(matrix=True)]) == ["k on sm_90: expected tensor-core instructions, got none"]
    assert len(budget.flaws([kernel(shared=227 * 1024 + 1)])) == 1
    assert budget.flaws([kernel(shared=227 * 1024)]) == []
    asked = dataclasses.replace(kernel(), wide=("LDG", "STG"))
    assert budget.flaws([asked]) == ["k on sm_90: expected STG of 16 bytes a thread, got none, and 0 of fewer"]


def cuda_library() -> Path:
    """The one that was built here. It is what the compiler made of the sources, whether or not it can be loaded."""
    try:
        library = cuda_kernels.library()
    except RuntimeError as error:
        pytest.skip(str(error))
    if importlib.util.find_spec("triton") is None and shutil.which("cuobjdump") is None:
        pytest.skip("triton is not installed, nor a CUDA toolkit with cuobjdump")
    return library


def test_the_cuda_kernels_keep_their_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert codegen.main(["--cuda", "--library", str(cuda_library())]) == 0, capsys.readouterr().err


def test_planted_faults_of_cuda_kernels_are_each_caught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = cuda_library()
    narrow, wide = "pswish_forward_kernel<float, 1, 1>", "pswish_forward_kernel<float, 4, 1>"
    uses = (
        Use(narrow, matrix=True, wide=("STG",)),
        Use(wide, dynamic_shared=8),
        Use("pswish_forward_kernel<bf16.*", threads=2048),
    )
    monkeypatch.setattr(codegen, "USES", uses)
    limits = {name: {"90": {"registers": 255, "shared": 0}} for name in (narrow, wide)}
    limits[narrow]["90"]["registers"] = 1
    file = tmp_path / "budget.json"
    check = "--cuda", "--library", str(library), "--budget", str(file), "--sm", "90", "--only", "pswish_forward"

    file.write_text(json.dumps({"compiler": cuda_kernels.compiler(library), "kernels": limits}))
    assert codegen.main([*check]) == 1
    out, err = capsys.readouterr()
    row = re.search(rf"\| {narrow} \| 90 \| (\d+) \|", out)
    assert row is not None
    stores = re.search(r"STG 0/(\d+)", out)
    assert stores is not None
    assert re.sub(r"at most \d+,", "at most n,", err).splitlines() == [
        *(
            f"pswish_forward_kernel<bf16, {sizes}>: threads: expected at most n, its __launch_bounds__, got 2048"
            for sizes in ("1, 1", "8, 1", "8, 8")
        ),
        "pswish_forward_kernel<float, 4, 4>: expected a line for it in benchmarks/codegen/cuda_uses.py, found none",
        f"{narrow} on sm_90: expected tensor-core instructions, got none",
        f"{narrow} on sm_90: expected STG of 16 bytes a thread, got none, and {stores[1]} of fewer",
        f"{narrow} on sm_90: registers: budget 1, got {row[1]}",
        f"{wide} on sm_90: shared: budget 0, got 8",
    ]

    file.write_text(json.dumps({"compiler": "nvcc 1.0", "kernels": limits}))  # numbers are reported, faults remain faults
    assert codegen.main([*check]) == 1
    out, rest = capsys.readouterr()
    assert rest.splitlines() == err.splitlines()[:-2]
    assert out.count(": budget ") == 2
    assert "nvcc 1.0 compiled the kernels for the budget" in out


def test_what_a_cuda_check_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels, "PACKAGE", tmp_path)
    (tmp_path / "why_not_built.txt").write_text("no nvcc")
    assert codegen.main(["--cuda"]) == 2
    assert capsys.readouterr().err == (
        f"nothing was checked: expected the library of CUDA kernels in {tmp_path}, found none: no nvcc\n"
    )


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZN4tost20running_stats_kernelENS_12RunningStatsE", "running_stats_kernel"),
        (
            "_ZN4tost47_GLOBAL__N__61502d1b_9_pswish_cu_75e1759b_2607814pswish_forwardI13__nv_bfloat16Li8ELb0EEEvPKT_PKfPS3_NS_4WalkE",
            "pswish_forward<bf16, 8, false>",
        ),
        ("plain", "plain"),
    ],
)
def test_a_readable_name(symbol: str, name: str) -> None:
    assert cuda_kernels.readable(symbol) == name


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
        ("LDG.E.128.CONSTANT", "moves", {"LDG": (1, 1)}),
        ("LDGSTS.E.BYPASS.LTC128B.128", "moves", {"LDGSTS": (1, 1)}),
        ("LDG.E.LTC128B.64", "moves", {"LDG": (0, 1)}),
        ("LDG.E.LTC128B", "moves", {"LDG": (0, 1)}),
        ("LDGDEPBAR", "moves", {}),
        ("LDS.128", "moves", {"LDS": (1, 1)}),
        ("STS.U16", "moves", {"STS": (0, 1)}),
        ("STG.E.128", "moves", {"STG": (1, 1)}),
        ("LDSM.16.MT88.4", "moves", {"LDSM": (1, 1)}),
        ("LDSM.16.M88", "moves", {"LDSM": (0, 1)}),
    ],
)
def test_one_instruction(instruction: str, field: str, value: object) -> None:
    assert getattr(code_of([instruction], 1, 0, 0), field) == value


def test_what_is_no_cubin(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "x.cubin").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="cuobjdump failed with exit code"):
        read(tmp_path / "x.cubin")


def test_the_budget_of_a_part_is_not_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        codegen.main(["--accept", "--only", "k"])
    assert "--accept takes the budget of all kernels" in capsys.readouterr().err
