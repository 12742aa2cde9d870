"""The GPU suite's dry run with the CUDA kernels, which the shim runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import fused, layer_variants, layers, small_shapes
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.device import StandIn
from benchmarks.gpu.results import Results
from benchmarks.gpu.settings import tiny
from benchmarks.gpu.suite import Suite, run_sections
from benchmarks.layer_calls import PARTS


@pytest.fixture(autouse=True)
def _emulated(emulated_cuda: str) -> None:
    if emulated_cuda != "cpu":
        pytest.skip("the suite itself runs them here")


CUDA = {name: choices for name, choices in tiny().options.items() if name.startswith("cuda")}


def dry(folder: Path, section: str) -> Results:
    rivals = {"compiler": {"backend": "eager"}, "compiled_layers": (), "csr": ()}  # which are not what is tested
    settings = replace(tiny(), masks=("random",), options=CUDA, fused_ops=("pswish",), **rivals)
    suite = Suite(StandIn(), settings, Results({"dry_run": True}), folder, Budget(1e6))
    run_sections(suite, {section: {"layers": layers.run, "fused": fused.run}[section]})
    assert suite.results.sections[section].failures == {}
    return suite.results


def test_fused_ops_are_measured_beside_tritons(tmp_path: Path) -> None:
    found = dry(tmp_path, "fused")
    sides = {record.variant for record in found.of("fused")}
    assert {"cuda", fused.EAGER, fused.COMPILED, fused.CHANNELS} <= sides
    parts = {(record.case["part"], record.case["precision"]) for record in found.of("fused") if record.variant == "cuda"}
    assert parts == {(part, kind) for part in (fused.FORWARD, fused.BACKWARD, fused.BOTH) for kind in ("fp32", "bf16")}


def test_layers_are_measured_with_every_algorithm(tmp_path: Path) -> None:
    found = dry(tmp_path, "layers")
    ours = {(r.variant, r.case["precision"], r.case["part"]) for r in found.of("layers") if r.variant in CUDA}
    kinds = {"cuda gather": ["bf16"], "cuda direct": ["bf16", "fp32"]}  # tensor cores have no products of fp32
    assert ours == {(name, kind, part) for name in CUDA for kind in kinds[name] for part in (*PARTS, layer_variants.ALL)}
    options = {r.case["options"] for r in found.of("layers") if r.variant == "cuda direct"}
    assert options <= set(CUDA["cuda direct"])


def test_small_shapes_for_the_sanitizers(capsys: pytest.CaptureFixture[str]) -> None:
    small_shapes.main(["cuda", "--dry-run"])
    said = capsys.readouterr().out
    assert said.startswith("calls of kernels on small shapes: ")
    assert int(said.split()[-2]) > 0
    assert said.endswith(" cuda\n")
