"""Imports point one way: tost -> tost_kernels -> compiled code; inside tost_kernels: nn -> ops -> plan, layout, pattern."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# (who, whom it must not import)
FORBIDDEN = [
    ("tost_kernels", "tost"),
    ("tost_kernels/ops", "tost_kernels.nn"),
    ("tost_kernels/pattern.py", "tost_kernels.ops"),
    ("tost_kernels/pattern.py", "tost_kernels.nn"),
    ("tost_kernels/backend.py", "tost_kernels.ops"),
    ("tost_kernels/plan.py", "tost_kernels.ops"),
    ("tost_kernels/layout.py", "tost_kernels.nn"),
    ("tost_kernels/layout.py", "tost_kernels.ops"),
    ("tost_kernels/register.py", "tost_kernels.ops"),
    ("tost_kernels/ops", "tost_kernels.tuning"),
    ("tost_kernels/tuning", "tost_kernels.nn"),
    ("tost_kernels/triton", "tost_kernels.nn"),
    ("tost_kernels/triton", "tost_kernels.tuning"),
    ("tost_kernels/triton", "tost_kernels.tune"),
    ("tost/masks", "tost.ghosts"),
    ("tost/masks", "tost.training"),
    ("tost/masks/selection.py", "tost.masks.probe"),
    ("tost/masks/distributions.py", "tost.masks.probe"),
    ("tost/masks/schedules.py", "tost.masks.probe"),
    ("tost/masks/scores.py", "tost.masks.selection"),
    ("tost/masks/scores.py", "tost.masks.distributions"),
    ("tost/progress.py", "tost.callbacks"),
    ("tost/masks", "tost.models"),
    ("tost/masks", "tost.data"),
    ("tost/masks", "tost.report"),
    ("tost/masks", "tost.optim"),
    ("tost/optim", "tost.training"),
    ("tost/optim", "tost.loop"),
    ("tost/optim", "tost.callbacks"),
    ("tost/optim", "tost.config"),
    ("tost/optim", "tost.models"),
    ("tost/optim", "tost.ghosts"),
    ("tost/optim", "tost.report"),
    ("tost/optim", "tost.analysis"),
    ("tost/optim", "tost.cli"),
    ("tost/optim/prox.py", "tost.masks"),
    ("tost/report", "tost.cli"),
    ("tost/report/sheet.py", "tost.grid"),
    ("tost/report/sheet.py", "tost.analysis"),
    ("tost/report/figures.py", "tost.grid"),
    ("tost/report/figures.py", "tost.analysis"),
    ("tost/cli/analyses/action.py", "tost.cli.analyze"),
    ("tost/ghosts", "tost.masks"),
    ("tost/tracer.py", "tost.ghosts"),
    ("tost/tracer.py", "tost.shrinking"),
    ("tost/shrinking", "tost.ghosts.trace"),
    ("tost/ghosts", "tost.training"),
    ("tost/ghosts", "tost.models"),
    ("tost/models", "tost.training"),
    ("tost/models", "tost.ghosts"),
    ("tost/models", "tost.masks"),
    ("tost/macs.py", "tost.models"),
    ("tost/macs.py", "tost.training"),
    ("tost/data", "tost.training"),
    ("tost/data", "tost.models"),
    ("tost/distributed.py", "tost.ghosts"),
    ("tost/distributed.py", "tost.training"),
    ("tost/distributed.py", "tost.loop"),
    ("tost/distributed.py", "tost.runs"),
    ("tost/files.py", "tost.tensor_file"),
    ("tost/tensor_file.py", "tost.masks"),
    ("tost/tensor_file.py", "tost.checkpoint"),
    ("tost/checkpoint.py", "tost.training"),
    ("tost/loop.py", "tost.ghosts"),
    ("tost/loop.py", "tost.callbacks"),
    ("tost/update.py", "tost.ghosts"),
    ("tost/update.py", "tost.loop"),
    ("tost/update.py", "tost.callbacks"),
    ("tost/update.py", "tost.runs"),
    ("tost/run_state.py", "tost.ghosts"),
    ("tost/run_state.py", "tost.callbacks"),
    ("tost/run_state.py", "tost.runs"),
    ("tost/callbacks", "tost.training"),
    ("tost/callbacks", "tost.runs"),
    ("tost/callbacks", "tost.update"),
    ("tost/runs.py", "tost.loop"),
    ("tost/teacher.py", "tost.training"),
    ("tost/preparation.py", "tost.loop"),
    ("tost/preparation.py", "tost.runs"),
    ("tost/ghosts", "tost.data"),
    ("tost/ghosts", "tost.loop"),
    ("tost/models", "tost.data"),
    ("tost/data", "tost.config"),
    ("tost/data", "tost.masks"),
    ("tost/data", "tost.ghosts"),
    ("tost/data", "tost.cli"),
    ("tost/training.py", "tost.experiment"),
    ("tost/training.py", "tost.cli"),
    ("tost/training.py", "tost.report"),
    ("tost/experiment.py", "tost.cli"),
    ("tost/grid.py", "tost.report"),
    ("tost/grid.py", "tost.cli"),
    ("tost/grid.py", "tost.experiment"),
    ("tost/grid.py", "tost.training"),
    ("tost/variants.py", "tost.grid"),
    ("tost/ablations.py", "tost.masks"),
    ("tost/grid_plan.py", "tost.experiment"),
    ("tost/grid_plan.py", "tost.training"),
    ("tost/experiment.py", "tost.report"),
    ("tost/analysis", "tost.report"),
    ("tost/analysis", "tost.cli"),
    ("tost/analysis/hessian.py", "tost"),
    ("tost/analysis/networks.py", "tost.training"),
    ("tost/analysis/of_runs.py", "tost.training"),
    ("tost/analysis/what_filters_see.py", "tost.runs"),
    ("tost/analysis/what_filters_see.py", "tost.optim"),
    ("tost/analysis/what_differs.py", "tost.analysis.networks"),
    ("tost/report/lines.py", "tost.analysis"),
    ("tost/report/structure_figures.py", "tost.report.grid_figures"),
    ("tost/masks", "tost.analysis"),
    ("tost/training.py", "tost.tickets"),
    ("tost/training.py", "tost.searches"),
    ("tost/searches.py", "tost.training"),
    ("tost/searches.py", "tost.grid"),
    ("tost/searches.py", "tost.grid_plan"),
    ("tost/tickets.py", "tost.searches"),
    ("tost/variants.py", "tost.searches"),
    ("tost/tickets.py", "tost.cli"),
    ("tost/tickets.py", "tost.report"),
    ("tost/presets.py", "tost.config"),
    ("tost/presets.py", "tost.grid"),
    ("tost/presets.py", "tost.cli"),
    ("tost/reproduction.py", "tost.report"),
    ("tost/reproduction.py", "tost.cli"),
    ("tost/reproduction.py", "tost.experiment"),
    ("tost/cli/tree.py", "tost.cli.main"),
    ("tost/launch", "tost.training"),
    ("tost/launch", "tost.runs"),
    ("tost/launch", "tost.config"),
    ("tost/watch.py", "tost.launch"),
    ("tost/watch.py", "tost.training"),
    ("tost/parallel.py", "tost.experiment"),
    ("tost/parallel.py", "tost.grid"),
    ("tost/parallel.py", "tost.cli"),
    ("tost/shrinking", "tost.models"),
    ("tost/shrinking", "tost.training"),
    ("tost/shrinking", "tost.runs"),
    ("tost/shrinking", "tost.report"),
    ("tost/shrinking", "tost.cli"),
    ("tost/shrinking/channels.py", "tost.shrinking.layers"),
    ("tost/shrinking/rules.py", "tost.shrinking.walk"),
    ("tost/shrinking/walk.py", "tost.shrinking.needs"),
    ("tost/shrinking/saved.py", "tost.shrinking.removal"),
]


def imports(file: Path) -> Iterator[str]:
    """Every module that `file` imports, at any depth of its code, with what it takes from it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write the full name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(files: list[Path], forbidden: str) -> list[str]:
    return [
        f"{file.name} imports {name}"
        for file in files
        for name in imports(file)
        if name == forbidden or name.startswith(forbidden + ".")
    ]


@pytest.mark.parametrize(("who", "forbidden"), FORBIDDEN)
def test_imports_point_one_way(who: str, forbidden: str) -> None:
    place = ROOT / who
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files, f"{who} is gone: mend this list"
    assert violations(files, forbidden) == []


def test_triton_is_imported_only_where_it_can_run() -> None:
    """`library.load_all` imports the kernels, by name; the plan options of triton, without a kernel, are asked for lazily."""
    files = [file for file in (ROOT / "tost_kernels").rglob("*.py") if file.parent.name != "triton"]
    named = {f"{file.relative_to(ROOT)}: {name}" for file in files for name in imports(file) if "triton" in name.split(".")}
    assert {who for who in named if "tost_kernels.triton.options" not in who} == set()
    assert not [file for file in (ROOT / "tost").rglob("*.py") if any("triton" in name.split(".") for name in imports(file))]


def test_no_imports_run_in_a_circle() -> None:
    def name_of(file: Path) -> str:
        return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    modules = {name_of(file): file for package in ("tost", "tost_kernels") for file in (ROOT / package).rglob("*.py")}
    for package in ("tost", "tost_kernels"):  # their own __init__ hand everything out
        del modules[package]
    # a module's own packages are not in its way: they are imported before it in any case
    graph = {
        name: {other for other in imports(file) if other in modules and not f"{name}.".startswith(f"{other}.")}
        for name, file in modules.items()
    }
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules)  # CycleError names the circle


def test_a_backward_import_is_caught(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from tost import masks\n")
    assert violations([bad], "tost") == ["bad.py imports tost", "bad.py imports tost.masks"]
    bad.write_text("import tost_kernels\n")
    assert violations([bad], "tost") == []


def test_the_training_loop_knows_no_ghosts() -> None:
    text = (ROOT / "tost/loop.py").read_text()
    assert "def steps(" in text
    assert "ghost" not in text.lower()


def test_schemas_are_defined_in_python_only() -> None:
    for source in (ROOT / "csrc").rglob("*.c*"):
        text = source.read_text()
        assert "STABLE_TORCH_LIBRARY(" not in text, f"{source.name} defines a schema"
        assert "STABLE_TORCH_LIBRARY_FRAGMENT(" not in text, f"{source.name} defines a schema"


def test_compiled_code_needs_nothing_that_torch_2_11_lacks() -> None:
    """Headers of torch 2.13 have a macro that those of 2.11 do not have; they build it from one that both have."""
    newer = "STABLE_TORCH_ERROR_CODE_CHECK("
    assert [str(path) for path in (ROOT / "csrc").rglob("*.*") if newer in path.read_text()] == []
