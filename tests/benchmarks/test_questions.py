"""Every question on tiny cases: its rows, its records, its figure. A false clock stands in for the real one: nothing is timed."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import tost_kernels as tk
from benchmarks import csr, fused, growth, kernels, layer_calls, layer_times, memory, odd, plot, rate, run, scaling, step, tiles
from benchmarks import ledger as ledger_module
from benchmarks.cases import Layer
from benchmarks.layer_calls import Problem, check, dense_calls, plan_of, sparse_calls
from benchmarks.ledger import Record
from benchmarks.machine_limits import Limits
from benchmarks.networks import Variant
from benchmarks.table import Table
from benchmarks.timing import Summary
from tost_kernels.backend import why_not
from tost_kernels.plan import Plan, own_plans

compiled = pytest.mark.skipif(why_not("masked_conv2d", "cpu") is not None, reason="the compiled kernels are what is measured")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What is tuned here stays here, in memory and on disk."""
    monkeypatch.setenv("TOST_CACHE_DIR", str(tmp_path / "cache"))
    with own_plans():
        yield


@pytest.fixture(autouse=True)
def false_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock finds it 10 ms later."""
    ticks = itertools.count()

    def clock_for(threads: int) -> Callable[[], float]:
        return lambda: 0.01 * next(ticks)

    for module in (layer_times, fused, odd, step, csr):
        monkeypatch.setattr(module, "clock_for", clock_for)
    monkeypatch.setattr(scaling.time, "perf_counter", clock_for(1))


def answer(question: str, *options: str) -> list[Record]:
    threads = torch.get_num_threads()
    try:
        records: list[Record] = run.question_module(question).run(run.parser().parse_args([question, *options]), 1)
    finally:
        torch.set_num_threads(threads)
    return records


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "---"][1:]


@compiled
def test_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    records = answer("kernels", "--layers", "8-16@6s2", "linear24-8", "--sparsity", "0.5", "0.9", "--batch", "4", "--rounds", "3")
    rows = table_rows(capsys.readouterr().out)
    assert [row[:2] for row in rows] == [[name, s] for name in ("8-16@6s2", "linear24-8") for s in ("50%", "90%")]
    # each part takes one tick of 10 ms, so does each of the dense pair
    assert rows[0][2:] == [
        "10.0 / 20.0",
        "10.0 (1.00x)",
        "10.0",
        "10.0",
        "30.0 (0.67x [0.67, 0.67])",
        "30.0",
        "1.00x",
        "0.67x",
    ]
    ours = [r for r in records if r.variant == "sparse float32" and r.case["part"] == "all three"]
    assert [(r.case["layer"], r.case["sparsity"]) for r in ours] == [(row[0], float(row[1][:-1]) / 100) for row in rows]
    assert {r.against for r in ours} == {"dense float32"}
    assert ours[0].ratio is not None
    assert ours[0].ratio.median == pytest.approx(2 / 3)


@compiled
def test_a_kernel_that_is_wrong_is_not_timed() -> None:
    problem = Problem.of(Layer.parse("8@5"), 4)
    pattern = tk.Pattern(torch.rand(8, 8, 3, 3) < 0.5)
    forward, input_grad, values_grad = sparse_calls(problem, pattern, Plan("cpu"))
    check(problem, pattern, (forward, input_grad, values_grad))

    def slightly_off() -> torch.Tensor:
        out = input_grad()
        assert isinstance(out, torch.Tensor)
        return out + 1e-3

    with pytest.raises(ArithmeticError, match="8@5, input gradient: expected torch's result"):
        check(problem, pattern, (forward, slightly_off, values_grad))


@compiled
@pytest.mark.parametrize("name", ["8@6", "6-9@7k1s2", "8@6g4", "4@9k5d2", "linear12-5"])
@pytest.mark.parametrize("plan", [Plan("cpu"), Plan("dense"), Plan("reference")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_plan_is_three_calls_that_agree_with_torch(name: str, plan: Plan, dtype: torch.dtype) -> None:
    layer = Layer.parse(name)
    problem = Problem.of(layer, 5)
    pattern = tk.Pattern(torch.rand(layer.weight_shape) < 0.5)
    assert len(dense_calls(problem, dtype)) == (1 if layer.is_linear else 2)
    check(problem, pattern, sparse_calls(problem, pattern, plan, dtype), dtype)


def test_plans_by_name() -> None:
    layer = Layer.parse("8@6")
    x = tk.to_batch_last(torch.randn(8, 8, 6, 6))
    pattern = tk.Pattern(torch.ones(8, 8, 3, 3))
    assert plan_of("kernel", layer, x, pattern) == Plan("cpu")
    assert plan_of("tile=4x4,block=32", layer, x, pattern) == Plan("cpu", "tile=4x4,block=32")
    assert plan_of("rule", layer, x, pattern) == layer_calls.static_plan("masked_conv2d", x, pattern)


@compiled
def test_a_tuned_plan_is_the_layers_own(tmp_path: Path) -> None:
    for name, op in (("8@6s2", "masked_conv2d"), ("linear12-5", "masked_linear")):
        layer = Layer.parse(name)
        x = tk.to_batch_last(torch.randn(layer.input_shape(4)))
        pattern = tk.Pattern(torch.rand(layer.weight_shape) < 0.5)
        plan = plan_of("tuned", layer, x, pattern)
        assert plan.backend in ("cpu", "dense")
        assert plan_of("tuned", layer, x, pattern) == plan  # out of the cache
        stored = [json.loads(file.read_text()) for file in (tmp_path / "cache").glob("*/*.json")]
        assert op in str(stored)
        problem = Problem.of(layer, 4)
        check(problem, pattern, sparse_calls(problem, pattern, plan))


@compiled
def test_odd(capsys: pytest.CaptureFixture[str]) -> None:
    layers = ("4@5n1", "4@6g4", "linear12-5")
    records = answer("odd", "--layers", *layers, "--sparsity", "0.5", "--batch", "4", "--rounds", "2")
    rows = table_rows(capsys.readouterr().out)
    assert [(row[0], row[1]) for row in rows] == [(layer, "50%") for layer in layers]
    assert [r.case["batch"] for r in records] == [1, 4, 4]
    assert {r.against for r in records} == {"dense float32"}
    assert all(r.case["plan"].split()[0] in ("cpu", "dense") for r in records)
    assert all(row[2] == "batch_last" for row in rows)  # the false clock makes all alike, and this one is the first


@compiled
def test_fused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_COPIED", 1 << 16)
    records = answer("fused", "--layers", "4@8", "--batch", "8", "--rounds", "3")
    rows = table_rows(capsys.readouterr().out)
    assert [(row[1], row[2]) for row in rows] == [(d, op) for d in ("float32", "bfloat16") for op in fused.TAILS]
    # 4 channels of 8x8, 8 images: 8 KB; bn-relu moves 16 KB forward and 24 KB backward, the copy 128 KB in a tick
    floor = next(r for r in records if r.case["op"] == "bn-relu" and r.case["part"] == "backward")
    assert floor.ratio is not None
    assert floor.ratio.median == pytest.approx(24 / 128)
    assert rows[0][-2:] == ["8.00", "5.33"]


@compiled
def test_step_and_its_figure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kinds = [kind for kind in step.KINDS if kind != "compiled"]
    chosen = ("--sparsity", "0.9", "--rounds", "1", "--plan", "rule")  # to tune takes minutes
    records = answer("step", "--networks", "resnet20@4", *chosen, "--kinds", *kinds)
    titles = [row[0] for row in table_rows(capsys.readouterr().out)]
    assert titles == [step.TITLES[k] for k in ("dense", "bf16", "masked", "sparse", "sparse", "sparse-bf16", "ghosts")]
    assert [(r.variant, r.case["method"]) for r in records if r.variant == "sparse"] == [("sparse", "random"), ("sparse", "erk")]
    draw("step", records, tmp_path)


@compiled
def test_a_step_is_tuned_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = []
    monkeypatch.setattr(tk, "tune", lambda net, x: tuned.append((x.shape[0], torch.is_autocast_enabled("cpu"))))
    records = answer("step", "--networks", "resnet20@3", "--sparsity", "0.9", "--rounds", "1", "--kinds", "sparse", "sparse-bf16")
    assert tuned == [(3, False), (3, True)]
    assert [r.case.get("plan") for r in records] == [None, "tuned", "tuned"]
    assert "tuned" in Variant("sparse", "batch_last", 0.9, plan="tuned").name


def test_step_names() -> None:
    assert step.parse("vgg16@128") == ("vgg16", 128)
    for wrong in ("vgg16", "vgg16@", "vgg16@0", "vgg17@8", "@8"):
        with pytest.raises(ValueError, match="network: expected name@batch"):
            step.parse(wrong)


@compiled
def test_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    records = answer("scaling", "--layers", "8@6", "--networks", "resnet20@2", "--batch", "4", "--rounds", "1")
    rows = table_rows(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["8@6"] * 3 + ["resnet20@2"] * 3
    assert {r.against for r in records} == {"1 thread"}


@compiled
def test_growth_and_its_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(growth, "SWEEPS", {"sparsity": (0.5, 0.9), "batch": (1, 4), "width": (8, 16)})
    records = answer("growth", "--layers", "8@6", "--batch", "4", "--rounds", "2")
    sparse = [r for r in records if r.variant == "sparse float32"]
    assert [(r.case["sweep"], r.case["at"]) for r in sparse] == [
        *(("sparsity", 0.5), ("sparsity", 0.9), ("batch", 1), ("batch", 4), ("width", 8), ("width", 16)),
    ]
    assert sparse[-1].case["layer"] == "8@6"  # the series' name; its width is `at`
    assert 0 < sparse[-1].case["kept"] < 0.1 * 16 * 16 * 9
    draw("growth", records, tmp_path)


def test_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = (
        "--widths",
        "16",
        "32",
        "--sparsity",
        "0.9",
        "--rows",
        "16",
        "--network",
        "resnet20",
        "--steps",
        "1",
        "--chunks",
        "8",
        "32",
    )
    answers = answer("tiles", *chosen, "--masks", "random", "magnitude")
    records = [record for record in answers if "chunk" not in record.case]
    shown = table_rows(capsys.readouterr().out)
    rows, of_chunks = shown[:4], shown[5:]  # between them a head
    assert [row[3] for row in of_chunks] == ["float32", "bfloat16"] * 4
    counts = [(record.variant, record.value.median) for record in answers if "chunk" in record.case]
    assert [name for name, _ in counts] == ["kept", "padded", "read"] * 32
    assert all(0 < kept <= padded <= read for (_, kept), (_, padded), (_, read) in zip(*[iter(counts)] * 3, strict=True))
    assert [(row[0], row[1]) for row in rows] == [
        *(("random", f"{width}x{width}x3x3") for width in (16, 32)),
        *(("magnitude", f"{layer}.2.conv2, {width}x{width}x3x3") for layer, width in (("layer1", 16), ("layer2", 32))),
    ]
    assert [record.variant for record in records] == ["natural", "permuted"] * 8
    # 16 rows of 16 channels are one group, which keeps something at each tap: 16 columns of 16
    assert [record.value.median for record in records[:4]] == [1.0] * 4
    pairs = zip(records[::2], records[1::2], strict=True)
    assert all(natural.value.median >= permuted.value.median > 0 for natural, permuted in pairs)


@compiled
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_csr() -> None:
    records = answer("csr", "--layers", "4-6@7s2", "5@4k1", "--batch", "3", "--sparsity", "0.5", "--rounds", "1")
    assert [r.variant for r in records] == ["MKL CSR product", "MKL CSR with columns", "sparse float32"] * 2
    with pytest.raises(ValueError, match="layers: expected convolutions without groups, got 4@4g2"):
        answer("csr", "--layers", "4@4g2")


@pytest.mark.parametrize("name", ["3-4@5", "3-4@6s2", "3-4@7k5d2", "3-4@5k1", "3-4@5k1s2"])
def test_columns_are_im2col(name: str) -> None:
    layer = Layer.parse(name)
    x = torch.randn(2, 3, layer.side, layer.side)
    expected = torch.nn.functional.unfold(x, layer.kernel, layer.dilation, layer.padding, layer.stride)  # (N, C k k, H W)
    built = csr.columns(tk.to_batch_last(x), layer)
    torch.testing.assert_close(built.view(expected.shape[1], -1, 2), expected.permute(1, 2, 0))


@compiled
def test_rate_is_work_over_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rate, "measure", lambda: Limits(512, 0.001, 0.002, 3.0, 4.0, 5.0))
    records = answer("rate", "--layers", "8@6", "--batch", "4", "--sparsity", "0.5", "--rounds", "1")
    kept = next(int(r.value.median * 1e7 / 2 / (4 * 36) + 0.5) for r in records if r.case.get("part") == "forward")
    assert 0.3 * 576 < kept < 0.7 * 576  # of a tick of 10 ms at two operations a multiply-add
    assert "(512 bits)" not in capsys.readouterr().out
    assert rate.rate_of(5_000_000, Summary(10.0, 5.0, 20.0)) == Summary(1.0, 0.5, 2.0)


def test_the_highest_level_of_a_series() -> None:
    assert memory.highest([]) == 0
    assert memory.highest([5, -3, 4, -6, 2]) == 6
    assert memory.highest([-3, 2], 10) == 10


@compiled
def test_memory_counts_tensors_exactly() -> None:
    peaks = {kind: memory.measure("lenet300100", 4, Variant(kind, layout, s), 1) for kind, layout, s in _MEMORY}
    weights = 4 * (3 * 32 * 32 * 300 + 300 * 100 + 100 * 10 + 410)
    # weights, gradients and momentum (fused, SGD needs no gradient with weight decay beside them); little else at 4 images
    assert 2.9 * weights < peaks["dense"].tensors < 3.1 * weights
    assert peaks["masked"].tensors > peaks["dense"].tensors > 2 * peaks["sparse"].tensors


@compiled
def test_a_sparse_step_holds_no_more_than_a_dense_one() -> None:
    """Activations too: two tensors a layer, the input of the convolution and that of its tail, as torch's own."""
    variants = [Variant(kind, layout, s) for kind, layout, s in (_MEMORY[0], _MEMORY[2])]
    dense, sparse = (memory.measure("resnet20", 8, variant, 1).tensors for variant in variants)
    assert sparse <= dense


_MEMORY = [("dense", "contiguous", None), ("masked", "contiguous", 0.95), ("sparse", "batch_last", 0.95)]


def draw(question: str, records: list[Record], folder: Path) -> None:
    ledger_module.append(records, folder)
    rows = plot.newest(map(json.loads, (folder / f"{question}.jsonl").read_text().splitlines()))
    figure = plot.PLOTS[question](rows)
    assert any(axes.has_data() for axes in figure.axes)


@compiled
def test_figure_of_kernels(tmp_path: Path) -> None:
    records = answer("kernels", "--layers", "8@4", "--sparsity", "0.5", "0.9", "--batch", "4", "--rounds", "2")
    draw("kernels", records, tmp_path)


def test_the_environment_of_a_fair_comparison() -> None:
    given = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1", "PYTHONPATH": "/x", "HOME": "/h"}
    made = run.environment(True, given)
    assert made["GLIBC_TUNABLES"].split(":")[-2:] == ["glibc.malloc.hugetlb=1", "glibc.malloc.arena_max=1"]
    assert made["PYTHONPATH"].split(":") == [str(run.ROOT), "/x"]
    assert made["HOME"] == "/h"
    assert "hugetlb" not in run.environment(False, {})["GLIBC_TUNABLES"]


def test_the_command_line_knows_every_question() -> None:
    for name in run.QUESTIONS:
        options = run.parser().parse_args([name])
        assert (options.question, options.seed, options.json) == (name, 0, False)
        assert options.rounds == run.question_module(name).DEFAULT_ROUNDS
        assert options.threads
    assert kernels.DEFAULT_ROUNDS > 1


def test_all_answers_every_question_with_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setenv("TOST_BENCHMARK", "1")
    monkeypatch.setattr(run, "answer", asked.append)
    run.main(["all", "--json", "--seed", "3"])
    assert [options.question for options in asked] == list(run.QUESTIONS)
    assert {(options.json, options.seed, options.no_huge_pages) for options in asked} == {(True, 3, False)}
    assert {tuple(options.threads) for options in asked} == {(1,), (2,)}


def test_a_table_row_has_as_many_cells_as_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("t", ("a", "b"))
    table.row("1", "2")
    assert capsys.readouterr().out == "\n### t\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    with pytest.raises(ValueError, match="cells: expected 2, got 1"):
        table.row("1")


def test_gathered_columns() -> None:
    """Worked out by hand: 16 rows, two of which keep channels 0, 4 and 8, and channel 1 at a second tap."""
    mask = torch.zeros(16, 16, 1, 2)
    mask[0, [0, 4, 8], 0, 0] = mask[3, 8, 0, 0] = mask[3, 1, 0, 1] = 1
    forward, transposed = tiles.gathered_columns(tk.Pattern(mask), 16, 8, 1)
    # channels 0, 4 and 8 are of the same bank, so the read of the four takes three; the padding is a read
    assert forward == (4 / 32, 8 / 32, (3 + 1) * 4 / 32)
    # outputs 0 and 3 at tap 0, 3 at tap 1
    assert transposed == (3 / 32, 8 / 32, (2 + 1) * 4 / 32)
