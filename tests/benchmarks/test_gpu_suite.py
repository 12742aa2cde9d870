"""The GPU suite without a GPU: its sections on tiny shapes, its deadlines and targets on made-up times, its command line."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.cases import Layer
from benchmarks.gpu import checks, figures, fused, layer_variants, layers, memory, report, roofline, run_suite, step, targets
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.budget import Budget, share_of
from benchmarks.gpu.build import Build, missing
from benchmarks.gpu.device import StandIn, precision
from benchmarks.gpu.measure import Calls, copies_for, per_second, timed
from benchmarks.gpu.results import Results
from benchmarks.gpu.settings import Settings, tiny
from benchmarks.gpu.suite import WEIGHTS, DeviceLost, Suite, run_sections
from benchmarks.ledger import Record
from benchmarks.timing import Summary
from tost_kernels.plan import own_plans

ROOT = Path(__file__).parent.parent.parent
SMALLEST = replace(
    tiny(),
    masks=("synflow",),
    precisions=("fp32",),
    fused_ops=("pswish",),
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TOST_CACHE_DIR", str(tmp_path / "cache"))
    with own_plans():
        yield


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def suite_in(folder: Path, seconds: float = 1e6, device: StandIn | None = None, settings: Settings = SMALLEST) -> Suite:
    return Suite(device or StandIn(), settings, Results({"dry_run": True}), folder, Budget(seconds), on_section=run_suite.publish)


def test_the_suite_runs_every_file_with_tests_of_a_gpu() -> None:
    files = set((ROOT / "tests").rglob("test_*.py")) - set((ROOT / "tests/cuda_host").iterdir()) - {Path(__file__)}
    texts = {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}
    marked = {name for name, text in texts.items() if "mark.gpu" in text or "emulated_cuda" in text}
    assert sorted([*marked, "tests/cuda_host"]) == sorted(Settings().tests)


def test_every_section_runs_and_everything_is_written(tmp_path: Path) -> None:
    suite = suite_in(tmp_path)
    suite.results.about = run_suite.about(suite.device, dry_run=True)
    names = ["build", "ceilings", "layers", "fused", "step", "memory", "roofline"]
    status = run_suite.answer(suite, run_suite.sections(names, Build(())))
    failures = {name: section.failures for name, section in suite.results.sections.items() if section.failures}
    assert failures == {}
    assert status == 0
    data = json.loads((tmp_path / "results.json").read_text())
    assert {name: section["state"] for name, section in data["sections"].items()} == dict.fromkeys(names, "done")
    assert {r["question"] for r in data["records"]} == {"ceilings", "layers", "fused", "step", "memory", "roofline"}
    assert all(r["value"]["low"] <= r["value"]["median"] <= r["value"]["high"] for r in data["records"])
    assert {"gpu", "cpu"} <= set(data["about"]["hardware"])
    assert {"torch", "triton", "tost_kernels"} <= set(data["about"]["versions"])
    # every figure is labelled with its precision
    assert {r["case"]["precision"] for r in data["records"] if r["question"] == "layers"} == {"fp32"}
    assert {r["case"]["precision"] for r in data["records"] if r["question"] == "step"} == {"fp32", "tf32", "bf16"}
    variants = {r["variant"] for r in data["records"] if r["question"] == "layers"}
    ours = {name for name in layers.LAYOUTS if name.startswith("triton")}  # CUDA's: tests/cuda_host/test_dry_run.py
    assert variants == {layers.DENSE, layers.MASKED, layers.COMPILED, layers.CSR, layers.CHOSEN, *ours}
    text = (tmp_path / "report.md").read_text()
    assert "A dry run" in text
    assert {row["state"] for row in data["targets"]} <= {targets.NOT_MEASURED, targets.DRY_RUN}
    for title in ("Targets", "Ceilings, measured", "Layers, all three", "Fused ops", "Training step", "Memory", "Roofline"):
        assert f"## {title}" in text
    for name in figures.FILES:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert Results.read(tmp_path) == suite.results
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) + 1 <= 7  # with checks.txt


def test_the_command_starts_itself_with_the_interpreter(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--dry-run", "--only", "ceilings"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Results.read(tmp_path).sections["ceilings"].state == "done"
    assert "| ceilings |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "expected more than 0"),
        (["--minutes", "nan"], "expected more than 0"),
        (["--only", "speed"], "invalid choice: 'speed'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", "nowhere", *arguments])
    assert message in capsys.readouterr().err


def test_a_step_cut_off_is_measured_whole_when_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ways stand side by side: those that were built before the cut are built again."""
    ways = [way for way in step.ways(0.95, False, ()) if not way.graph]
    names = [way.name for way in ways]
    monkeypatch.setattr(step, "ways", lambda *_: ways)
    suite = suite_in(tmp_path)
    suite.section = "step"
    suite.here.finished = [f"lenet5 fp32: {names[0]}"]
    step._measure(suite, "lenet5", "fp32")
    assert [record.variant for record in suite.results.records] == names
    assert sorted(suite.here.finished) == sorted(f"lenet5 fp32: {name}" for name in names)


def test_where_results_cannot_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for name, text in (("odd", "{"), ("list", "[]"), ("measured", json.dumps({"about": {"dry_run": False}}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    for arguments, message in (
        (["file"], "file: File exists"),
        (["new", "--continue"], "results.json: No such file or directory"),
        (["odd", "--continue"], "results.json: expected the results of a run to --continue, got something else"),
        (["list", "--continue"], "results.json: expected the results of a run to --continue, got something else"),
        (["measured", "--continue"], "measured: expected results of a dry run to --continue, got the other kind"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["--dry-run", "--out", str(tmp_path / arguments[0]), *arguments[1:]])
        assert message in capsys.readouterr().err


def test_a_budget_ends() -> None:
    clock = Clock()
    budget = Budget(10, clock)
    assert budget.left() == 10
    assert budget.allows()  # nothing is known about a case yet
    budget.took(4.0)
    clock.now += 5
    assert budget.allows()
    clock.now += 2
    assert not budget.allows()  # 3 s are left, a case takes 4
    assert budget.allows(2.0)
    for _ in range(3):  # the first case compiled for them
        budget.took(1.0)
    assert budget.allows()
    assert budget.part(0.5).left() == 1.5
    clock.now += 5
    assert budget.part(0.5).left() == 0
    assert not budget.part(1.0).allows(0.0)


def test_time_that_a_section_leaves_is_shared_by_those_after_it() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 1.0}
    assert share_of("a", ["a", "b", "c"], weights) == 0.25
    assert share_of("b", ["b", "c"], weights) == pytest.approx(2 / 3)
    assert share_of("c", ["c"], weights) == 1.0
    assert set(WEIGHTS) == set(run_suite.sections(list(WEIGHTS), Build(())))


def test_a_section_out_of_time_says_what_it_left_out(tmp_path: Path) -> None:
    clock = Clock()
    suite = suite_in(tmp_path)
    suite.budget = Budget(10, clock)

    def three(suite: Suite) -> None:
        for case in ("first", "second", "third"):
            if suite.wants(case):
                with suite.attempt(case):
                    clock.now += 6
                suite.budget.took(6.0)

    run_sections(suite, {"layers": three})
    section = suite.results.sections["layers"]
    assert (section.state, section.finished, section.left_out) == ("out of time", ["first"], ["second", "third"])
    assert "second" in (tmp_path / "report.md").read_text()


def test_what_goes_wrong_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    suite = suite_in(tmp_path)

    def one_bad(suite: Suite) -> None:
        for case in ("good", "bad", "better"):
            if suite.wants(case):
                with suite.attempt(case):
                    if case == "bad":
                        raise ArithmeticError("1e-2 away\nand more")

    def broken(suite: Suite) -> None:
        raise ValueError("no such thing")

    assert run_suite.answer(suite, {"layers": one_bad, "fused": broken}) == 1
    assert suite.results.sections["layers"].failures == {"bad": "ArithmeticError: 1e-2 away"}
    assert suite.results.sections["layers"].finished == ["good", "better"]
    assert suite.results.sections["fused"].state == "failed"


class Mortal(StandIn):
    """A device that does not answer once a kernel has gone wrong."""

    dead = False

    def synchronize(self) -> None:
        if self.dead:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_lost_device_is_left_and_another_process_goes_on_behind_the_bad_case(tmp_path: Path) -> None:
    ran = []

    def section(suite: Suite) -> None:
        for case in ("good", "bad", "better"):
            if suite.wants(case):
                with suite.attempt(case):
                    ran.append(case)
                    if case == "bad":
                        suite.device.dead = True  # type: ignore[attr-defined]
                        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceLost, match="layers: after bad the device does not answer"):
        run_suite.answer(suite_in(tmp_path, device=Mortal()), {"layers": section})
    again = suite_in(tmp_path)
    again.results = Results.read(tmp_path)
    assert run_suite.answer(again, {"layers": section}) == 1  # what failed stays a failure
    assert ran == ["good", "bad", "better"]
    assert again.results.sections["layers"].state == "done"
    run_suite.answer(again, {"layers": section})
    assert ran == ["good", "bad", "better"]  # over is over


def layer_record(variant: str, ms: float, ratio: float, **case: object) -> Record:
    about = {"layer": "128@16", "mask": "random", "sparsity": 0.95, "precision": "tf32", "part": layer_variants.ALL} | case
    return Record("layers", about, variant, 1, Summary(ms, ms, ms), Summary(ratio, ratio, ratio), "dense tf32")


def states(records: list[Record]) -> dict[str, tuple[str, object]]:
    return {row["target"]: (row["state"], row["worst"]) for row in targets.judge(Results({}, records=records))}


def test_targets_are_met_missed_or_not_measured() -> None:
    assert {state for state, _ in states([]).values()} == {targets.NOT_MEASURED}

    def wide(sparsity: int, against: str = "TF32") -> str:
        return f"3x3 of 128 channels or more at {sparsity}% against {against}, forward and backward"

    long, short = "chosen against dense, layers of 100 us or more", "chosen against dense, shorter layers"
    found = states(
        [
            layer_record(layers.DENSE, 0.2, 1.0),
            layer_record(layers.CHOSEN, 0.2, 0.98),
            layer_record("triton tiles", 0.2, 1.2),
            layer_record("triton direct", 0.2, 0.4),
            layer_record("cuda direct", 0.2, 1.05),
            layer_record("cuda direct", 0.2, 2.1, precision="fp32"),
            layer_record("cuda gather", 0.2, 0.8, precision="bf16"),
            layer_record("cuda gather", 0.2, 1.6, precision="bf16", sparsity=0.98),
            layer_record(layers.DENSE, 0.05, 1.0, sparsity=0.98),
            layer_record(layers.CHOSEN, 0.06, 0.85, sparsity=0.98),
            layer_record("cuda gather", 0.06, 9.0, sparsity=0.98, layer="64@32"),  # not a layer of the target
        ]
    )
    assert found[long] == (targets.MET, 0.98)
    assert found[short] == (targets.MISSED, 0.85)
    assert found[wide(95)] == (targets.MET, 1.2)  # by the best of ours
    assert found[wide(98)] == (targets.MISSED, 0.85)
    assert found[wide(95, "IEEE fp32")] == (targets.MET, 2.1)
    assert found[wide(98, "IEEE fp32")] == (targets.NOT_MEASURED, None)
    assert found[wide(95, "bf16")] == (targets.MISSED, 0.8)
    assert found[wide(98, "bf16")] == (targets.MET, 1.6)


def test_the_faster_of_our_fused_kernels_counts() -> None:
    def record(variant: str, ratio: float, layer: str = "64@32") -> Record:
        case = {"op": "pswish", "part": fused.BACKWARD, "layer": layer, "precision": "fp32"}
        return Record("fused", case, variant, 1, Summary(1, 1, 1), Summary(ratio, ratio, ratio), "torch.compile")

    ours = [record("cuda", 1.4), record("triton", 1.2), record("cuda", 1.1, "4@4"), record("triton", 1.5, "4@4")]
    found = states([*ours, record(fused.COMPILED, 0.1)])
    assert found["pswish backward with dbeta against torch.compile"] == (targets.MET, 1.4)


def test_the_worst_case_decides() -> None:
    target = targets.Target("t", 1.5, lambda results: [], stretch=2.0)
    row = targets.verdict(target, [("a", 2.5), ("b", 1.4), ("c", 1.5)])
    assert (row["state"], row["worst"], row["worst_case"], row["reached"], row["cases"]) == (targets.MISSED, 1.4, "b", 2, 3)
    assert targets.verdict(target, [("a", 1.5)]) | {"state": targets.MET, "stretch_met": False} == targets.verdict(
        target, [("a", 1.5)]
    )
    assert targets.verdict(target, [("a", 2.0)])["stretch_met"] is True


def test_targets_of_steps_and_memory() -> None:
    def step_record(ratio: float, against: str, network: str = "resnet18") -> Record:
        case = {"network": network, "precision": "tf32", "sparsity": 0.95}
        return Record("step", case, step.GRAPH, 1, Summary(1, 1, 1), Summary(ratio, ratio, ratio), against)

    about = {"network": "n", "sparsity": 0.9, "part": memory.STATE, "kept": 100, "bytes": 1200}
    held = Record("memory", about, "sparse", 1, Summary(1, 1, 1), unit="MiB")
    found = states(
        [
            step_record(1.8, f"{step.MASKED} channels_last"),
            step_record(1.05, step.COMPILED["default"]),
            step_record(0.5, step.COMPILED["reduce-overhead"]),  # reported, no target
            step_record(2.0, f"{step.MASKED} contiguous", network="resnet32"),
            held,
        ]
    )
    assert found["step of ResNet-18 against masked-dense eager"] == (targets.MET, 1.8)
    assert found["step of ResNet-32 against masked-dense eager"] == (targets.MISSED, 2.0)
    assert found["step against torch.compile'd dense, default"] == (targets.MISSED, 1.05)
    assert found["weights, gradients and momentum: 12 bytes a kept weight"] == (targets.MET, 1.0)


def test_the_cases_that_targets_are_about_come_first() -> None:
    order = layers.cases(Settings())
    first = order[:12]
    assert {(c.mask, c.layer.kernel) for c in first} == {("random", 3)}
    assert {c.sparsity for c in first} == {0.95, 0.98}
    assert {c.precision for c in first} == {"tf32", "bf16"}
    assert all(c.layer.channels >= 128 for c in first)
    assert [c.precision for c in order[16:24]] == ["fp32"] * 8  # of the same layers, masks and sparsities
    assert {(c.layer, c.mask, c.sparsity) for c in order[16:24]} == {(c.layer, c.mask, c.sparsity) for c in order[:16]}
    assert len(order) == len(set(order)) == 10 * 2 * 4 * 3
    for case in order:  # SynFlow's masks are those of a layer that the network has
        network, side = Settings().networks[case.network]
        assert layers.layer_of(network, side, case.layer)


def test_the_roofline_by_hand() -> None:
    ceilings = roofline.Ceilings(bandwidth=1e12, flops={"fp32": 1e13, "tf32": 1e14, "bf16": 2e14}, launch=2e-6)
    assert roofline.bound(ceilings, 1e9, 1e10, "tf32") == (1e-3, "memory")
    assert roofline.bound(ceilings, 1e6, 1e12, "tf32") == (1e-2, "arithmetic")
    assert roofline.bound(ceilings, 10, 10, "tf32") == (2e-6, "launch")
    record = layer_record("cuda gather", 4.0, 1.0, part="forward", bytes=1e9, flops=2e10)
    judged = roofline.judge(ceilings, record)
    assert judged.value.median == pytest.approx(4.0)
    assert judged.case["bytes_per_second"] == pytest.approx(0.25e12)
    assert judged.case["of_arithmetic"] == pytest.approx(0.05)
    # a direct kernel has no tensor cores to use
    for backend in layers.BACKENDS:
        assert roofline.judge(ceilings, replace(record, variant=f"{backend} direct")).case["unit"] == "fp32"
    with pytest.raises(LookupError, match="one kernel in a graph"):
        roofline.Ceilings.of(Results({}))


def test_inputs_rotate_past_the_cache(tmp_path: Path) -> None:
    assert copies_for(1 << 30, 0) == 1
    assert copies_for(1 << 30, 1 << 20) == 2  # it leaves the cache by itself; the other is there for the writes
    assert copies_for(1 << 20, 4 << 20) == 9
    assert copies_for(1, 4 << 20) == 16
    assert per_second(1e9, Summary(2.0, 1.0, 4.0)) == Summary(5e11, 2.5e11, 1e12)
    seen: list[int] = []
    calls = Calls([lambda i=i: seen.append(i) for i in range(3)])  # type: ignore[misc]
    times = timed(suite_in(tmp_path), {"a": calls, "b": Calls([lambda: None], replayed=False)})
    assert seen[:6] == [0, 1, 2, 0, 1, 2]
    assert set(times.ms) == {"a", "b"}


def test_precision_is_put_back() -> None:
    def now() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = now()
    for name, allowed in (("fp32", False), ("tf32", True)):
        with precision(name):
            assert now() == (allowed, allowed)
        assert now() == before


def test_a_wrong_kernel_is_not_timed() -> None:
    problem = layer_variants.Problem.of(Layer.parse("8@4"), 2, "fp32", 1, "cpu")
    pattern = layers.tk.Pattern(torch.rand(8, 8, 3, 3) < 0.5)
    right = layer_variants.expected(problem, pattern)
    calls = layer_variants.ours(problem, pattern, layers.Plan("dense"), "channels_last")
    layer_variants.check("dense", "fp32", calls, right)
    off = {layer_variants.INPUT: Calls([lambda: right[layer_variants.INPUT] + 1e-3])}
    with pytest.raises(ArithmeticError, match="off, input gradient: expected dense's result"):
        layer_variants.check("off", "fp32", off, right)


MEMCHECK = "========= COMPUTE-SANITIZER\ncalls of kernels: 24 cuda\n========= ERROR SUMMARY: {} errors\n"
RACECHECK = "========= COMPUTE-SANITIZER\n24 cuda\n========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)\n"
memcheck, racecheck = (partial(checks.judge_sanitizer, tool) for tool in ("memcheck", "racecheck"))


@pytest.mark.parametrize(
    ("judge", "status", "output", "failure", "note"),
    [
        (checks.judge_tests, 0, "...\n==== 3 passed, 1 skipped in 2.50s ====\n", None, "3 passed, 1 skipped in 2.50s"),
        (checks.judge_tests, 1, "==== 1 failed, 2 passed in 2.50s ====", "pytest ended with 1: 1 failed", "ended with 1"),
        (checks.judge_tests, 4, "usage: pytest", "pytest ended with 4: usage: pytest", "ended with 4"),
        (memcheck, 0, MEMCHECK.format(0), None, "memcheck found no errors; calls of kernels: 24 cuda"),
        (memcheck, 9, MEMCHECK.format(2), "memcheck: 2 errors, status 9", "found errors"),
        (memcheck, 1, "Device not supported", None, "memcheck refused here: Device not supported"),
        (memcheck, 1, "no such thing", None, "memcheck refused here: no such thing"),
        (racecheck, 0, RACECHECK.format(0, 0), None, "racecheck found no errors; 24 cuda"),
        (racecheck, 9, RACECHECK.format(3, 3), "racecheck: 3 errors, status 9", "found errors"),
        (checks.judge_small_shapes, 1, "ArithmeticError: x", "ended with 1: ArithmeticError: x", "ArithmeticError: x"),
        (checks.judge_plain, 0, "", None, "no output"),
    ],
)
def test_what_the_checks_say(
    judge: Callable[[int, str], tuple[str | None, str]], status: int, output: str, failure: str | None, note: str
) -> None:
    got = judge(status, output)
    assert note in got[1]
    assert got[0] is None if failure is None else failure in (got[0] or "")


def test_checks_run_side_by_side_and_are_stopped_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(code: str) -> checks.Job:
        return checks.Job([sys.executable, "-c", code], checks.judge_plain)

    found = {
        "quick": job("print('all well')"),
        "bad": job("print('not well'); raise SystemExit(3)"),
        "endless": job("import time; print('began', flush=True); time.sleep(600)"),
    }
    monkeypatch.setattr(checks, "jobs", lambda suite: found)
    suite = suite_in(tmp_path, seconds=5.0)
    run_sections(suite, {"checks": checks.run})
    section = suite.results.sections["checks"]
    assert section.notes[0].startswith("quick: all well")
    assert section.failures == {"bad": "ArithmeticError: ended with 3: not well"}
    assert [entry.split(":")[0] for entry in section.left_out] == ["endless"]
    assert "began" in (tmp_path / checks.FILE).read_text()


@pytest.mark.parametrize("failed", [0, 1])
def test_tests_that_are_stopped_say_how_far_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: int) -> None:
    lines = ["a.py::test_a[PASSED or not] PASSED [ 1%]", "[gw3] [  2%] PASSED a.py::test_b", "c.py::test_c SKIPPED (no GPU)"]
    lines += ["d.py::test_d FAILED [ 4%]"] * failed
    code = f"import time; print({chr(10).join(lines)!r}, flush=True); time.sleep(600)"
    monkeypatch.setattr(checks, "jobs", lambda suite: {"tests": checks.Job([sys.executable, "-c", code], checks.judge_tests)})
    suite = suite_in(tmp_path, seconds=3.0)
    run_sections(suite, {"checks": checks.run})
    section = suite.results.sections["checks"]
    assert section.notes == [f"2 tests passed and {failed} failed until then"]
    wanted = "ArithmeticError: 1 tests failed before the others were stopped: see checks.txt"
    assert section.failures == ({"tests": wanted} if failed else {})


def test_every_sanitizer_looks_at_the_cuda_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "is_gpu", True)
    monkeypatch.setattr(checks.shutil, "which", lambda name: f"/bin/{name}")
    found = {
        name: job.command for name, job in checks.jobs(suite_in(tmp_path)).items() if "/bin/compute-sanitizer" in job.command
    }
    tools = {name: command[command.index("--tool") + 1] for name, command in found.items()}
    assert tools == {"sanitizer": "memcheck", "racecheck": "racecheck", "synccheck": "synccheck"}
    assert {name: command[-1] for name, command in found.items()} == {
        "sanitizer": "benchmarks.gpu.small_shapes",  # Triton's kernels, too
        "racecheck": "cuda",
        "synccheck": "cuda",
    }


def test_the_jobs_of_a_dry_run_need_no_gpu(tmp_path: Path) -> None:
    for job in checks.jobs(suite_in(tmp_path)).values():
        assert job.command[0] == sys.executable


def test_parts_built_for_another_python_are_missing(tmp_path: Path) -> None:
    assert missing(tmp_path) == ("_pattern", "_cpu")
    (tmp_path / "_cpu.abi3.so").touch()
    (tmp_path / "_pattern.cpython-27-x86_64-linux-gnu.so").touch()
    assert missing(tmp_path) == ("_pattern",)
    assert missing(tmp_path, cuda=True) == ("_pattern", "_cuda")
    (tmp_path / "_cuda.abi3.so").touch()  # carried from another machine: it serves every Python
    assert missing(tmp_path, cuda=True) == ("_pattern",)


def test_a_report_of_nothing(tmp_path: Path) -> None:
    suite = suite_in(tmp_path)
    run_suite.report_build(replace_section(suite, "build"), Build(("_cpu",), 3.0, 1, "no compiler"))
    assert suite.results.failed()
    text = "\n".join(report.lines(suite.results))
    assert "the build ended with 1: no compiler" in text
    assert figures.draw(suite.results, tmp_path) == []


def replace_section(suite: Suite, name: str) -> Suite:
    suite.section = name
    return suite


def test_interleaving_is_by_rounds_of_all(tmp_path: Path) -> None:
    ticks = itertools.count()
    suite = suite_in(tmp_path, settings=replace(SMALLEST, rounds=3))
    suite.device.measure = lambda call, repeats: float(next(ticks))  # type: ignore[method-assign]
    times = timed(suite, {name: Calls([lambda: None, lambda: None]) for name in "ab"})
    assert sorted(itertools.chain(*times.ms.values())) == [0, 0.5, 1, 1.5, 2, 2.5]  # halves: two copies a call
