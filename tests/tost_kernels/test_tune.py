"""tune: choice, cache and table. Nothing is timed: times come from a fake timer."""

import copy
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import tost_kernels as tk
from tost_kernels import info, library
from tost_kernels import plan as plan_module
from tost_kernels.plan import Case, Plan, forget, plan_for, precision_of, remember, remembered_backends, watching
from tost_kernels.tuning import bench, candidates, store
from tost_kernels.tuning.cpu_timer import interleaved
from tost_kernels.tuning.cuda_timer import searching
from tost_kernels.tuning.trial import WHOLE, Trial

compiled = pytest.mark.skipif(library.reason("cpu") is not None, reason="the compiled CPU library is not built")


class FakeTimer:
    """Every trial runs once, and takes what `ms` says of it."""

    def __init__(self, ms: Callable[[Trial], float]) -> None:
        self.ms = ms
        self.seen: list[Trial] = []

    def __call__(self, trials: Sequence[Trial], rounds: int) -> list[float]:
        for trial in trials:
            trial.run()
        self.seen += trials
        return [self.ms(trial) for trial in trials]


def dense_wins(trial: Trial) -> float:
    return 1.0 if trial.plan.backend == "dense" else 2.0


def cpu_wins(trial: Trial) -> float:
    return 2.0 if trial.plan.backend == "dense" else 1.0


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TOST_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_WARNED", set())
    forget()
    yield tmp_path / "cache"
    forget()


def network(density: float = 0.2, seed: int = 0) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2, padding=1), nn.Flatten())
    model.append(nn.Dropout()).append(nn.Linear(128, 10))
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name in ("0", "2", "5"):
        weight = model.get_submodule(name).weight
        kept = torch.randperm(weight.numel(), generator=generator)[: round(density * weight.numel())]
        masks[name] = torch.zeros(weight.numel(), dtype=torch.bool).index_fill(0, kept, True).view(weight.shape)
    return tk.sparsify(model, masks)


def batch(n: int = 8) -> torch.Tensor:
    return tk.to_batch_last(torch.randn(n, 3, 8, 8))


def cases_of(function: Callable[[], object]) -> list[Case]:
    met: list[Case] = []
    with watching(lambda case, pattern: met.append(case)):
        function()
    return met


def plans_used(net: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans by which the convolutions of `net` run on x."""
    from tost_kernels.ops import masked_conv2d as module

    used = []
    original = module.plan_for
    monkeypatch.setattr(module, "plan_for", lambda *a: used.append(original(*a)) or used[-1])
    net(x)
    monkeypatch.undo()
    return used


@compiled
@pytest.mark.parametrize(("ms", "backend"), [(dense_wins, "dense"), (cpu_wins, "cpu")])
def test_the_fastest_backend_is_chosen_and_used(ms, backend, monkeypatch):
    net, x = network(), batch()
    report = tk.tune(net, x, timer=FakeTimer(ms))
    assert {tuned.plan.backend for tuned in report.cases} == {backend}
    assert {tuned.source for tuned in report.cases} == {"measured"}
    assert plans_used(net, x, monkeypatch) == [Plan(backend)] * 2
    out = net.eval()(x)
    with tk.use_backend("reference"):
        torch.testing.assert_close(net(x), out)


@compiled
def test_each_pass_gets_its_own_options():
    wishes = {"forward": "tile=1x4x1", "input_grad": "block=4", "values_grad": "tile=2x4x1,block=8"}
    parts = {(which, part) for which, wish in wishes.items() for part in wish.split(",")}

    def ms(trial: Trial) -> float:
        if trial.which == WHOLE:
            return 10.0 - len(trial.plan.options)
        return 10.0 - sum((trial.which, part) in parts for part in trial.plan.options.split(","))

    net = network()
    (tuned,) = [t for t in tk.tune(net, batch(64), timer=FakeTimer(ms)).cases if t.layers == ("2",) and t.case.grads]
    # The values gradient packs 8 channels: its block of 8 is all of them. The input gradient packs the 8 outputs.
    assert tuned.plan == Plan("cpu", "forward.tile=1x4x1,values_grad.tile=2x4x1,values_grad.block=8")
    shared = FakeTimer(lambda trial: 1.0 if "tile=1x4x1" in trial.plan.options else 2.0)
    forget()
    assert tk.tune(net, batch(64), timer=shared, remeasure=True).plan_of("2") == Plan("cpu", "tile=1x4x1")


@compiled
def test_the_kernels_own_rule_stays_where_nothing_is_clearly_faster():
    fake = FakeTimer(lambda trial: 1.0 - 0.001 * len(trial.plan.options) if trial.plan.backend == "cpu" else 2.0)
    assert {tuned.plan for tuned in tk.tune(network(), batch(64), timer=fake).cases} == {Plan("cpu")}


@compiled
@pytest.mark.parametrize(
    ("plan", "forward", "input_grad", "values_grad"),
    [
        ("", "", "", ""),
        ("block=32,tile=2x4", *["tile=2x4x1,block=32"] * 3),
        ("input_grad.block=64,tile=1x4", "tile=1x4x1", "tile=1x4x1,block=64", "tile=1x4x1"),
        ("values_grad.tile=2x2x2,tile=1x4,forward.block=8,block=4", *[f"tile={t},block={b}" for t, b in
          [("1x4x1", 8), ("1x4x1", 4), ("2x2x2", 4)]]),
        ("forward.tile=2x4", "tile=2x4x1", "", ""),
    ],
)  # fmt: skip
def test_a_prefixed_option_holds_for_its_pass_alone(plan, forward, input_grad, values_grad):
    asked = [torch.ops.tost.cpu_plan(plan, which) for which in ("forward", "input_grad", "values_grad")]
    assert asked == [forward, input_grad, values_grad]


@compiled
def test_the_values_gradient_runs_by_its_own_options():
    """Its tile decides the order of its sum, so the bits tell which one ran. (The other passes' bits hang on nothing.)"""
    pattern = tk.Pattern(torch.rand(20, 40, 3, 3) < 0.5)
    x, grad = tk.to_batch_last(torch.randn(20, 40, 9, 9)), torch.randn(20, 20, 9, 9)

    def run(plan: str) -> torch.Tensor:
        geometry = ([20, 40, 3, 3], [1, 1], [1, 1], [1, 1], 1, plan)
        return torch.ops.tost.masked_conv2d_values_grad_cpu(grad, x, pattern.index, pattern.nnz, *geometry)

    assert not torch.equal(run("tile=1x1x4"), run("tile=2x4"))
    assert torch.equal(run("tile=1x1x4,values_grad.tile=2x4"), run("tile=2x4"))
    assert torch.equal(run("tile=2x4,forward.tile=1x1x4,input_grad.tile=1x1x4"), run("tile=2x4"))


@compiled
@pytest.mark.parametrize(
    "plan", ["backward.tile=2x4", "forward.tile=", "forward.", "values_grad.tile=3x3", "forward.forward.block=1"]
)
def test_every_pass_checks_the_whole_plan(plan):
    pattern = tk.Pattern(torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="masked_linear_cpu: plan: expected"):
        torch.ops.tost.masked_linear_cpu(torch.ones(4, 3), torch.ones(6), None, pattern.index, [2, 3], plan)


@compiled
def test_every_candidate_runs(own_cache):
    """The fake timer runs each; tiles and blocks fit shapes of all kinds."""
    fake = FakeTimer(lambda trial: 1.0)
    convs = [
        (1, 5, 7, tk.SparseConv2d(5, 6, 3, mask=torch.ones(6, 5, 3, 3))),
        (50, 8, 6, tk.SparseConv2d(8, 8, 5, 2, 2, groups=4, mask=torch.rand(8, 2, 5, 5) < 0.5)),
        (64, 20, 9, tk.SparseConv2d(20, 12, (3, 1), (2, 1), "valid", 2, bias=False, mask=torch.rand(12, 20, 3, 1) < 0.1)),
        (8, 4, 4, tk.SparseConv2d(4, 4, 2, padding="same", padding_mode="circular", mask=torch.zeros(4, 4, 2, 2))),
    ]
    for n, channels, side, conv in convs:
        report = tk.tune(conv, tk.to_batch_last(torch.randn(n, channels, side, side)), timer=fake)
        assert {tuned.plan for tuned in report.cases} <= {Plan("dense"), Plan("cpu")}
    linear = tk.SparseLinear(300, 20, mask=torch.rand(20, 300) < 0.1)
    tk.tune(linear, torch.randn(2, 32, 300, requires_grad=True), timer=fake)
    assert any(trial.plan.options == "tile=1x1x4" for trial in fake.seen)
    assert {trial.which for trial in fake.seen} == {"whole", "forward", "input_grad", "values_grad"}


def test_a_forced_backend_and_an_explicit_plan_win(monkeypatch):
    net, x = network(), batch()
    for case in cases_of(lambda: net(x)):
        remember(case, Plan("dense"))
    with tk.use_backend("reference"):
        assert plans_used(net, x, monkeypatch) == [Plan("reference")] * 2
    assert plans_used(net, x, monkeypatch) == [Plan("dense")] * 2
    layer = net[0]
    with watching(lambda *_: pytest.fail("an explicit plan asks nobody")):
        tk.masked_conv2d(x, layer.values, layer.pattern, layer.bias, plan=Plan("reference"))


def test_other_cases_keep_the_static_rule(monkeypatch):
    net, x = network(), batch()
    static = plans_used(net, x, monkeypatch)
    for case in cases_of(lambda: net(x)):
        remember(case, Plan("reference"))
    assert plans_used(net, x, monkeypatch) == [Plan("reference")] * 2
    for other in (batch(9), x.contiguous(), x.detach().requires_grad_()):
        assert plans_used(net, other, monkeypatch)[0] in (*static, Plan("dense"))
    with torch.no_grad():
        assert plans_used(net, x, monkeypatch) == static
    assert plans_used(network(density=0.1), x, monkeypatch) == static
    assert plans_used(network(seed=5), x, monkeypatch) == [Plan("reference")] * 2  # another mask of the same density


def test_the_number_of_threads_is_part_of_the_case():
    net, x = network(), batch()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = cases_of(lambda: net(x))
        remember(one[0], Plan("reference"))
        layer = net[0]
        arguments = ("masked_conv2d", x, layer.values, layer.pattern, layer.bias, (1, 1, 1, 1, 1, 1, 1))
        assert plan_for(*arguments) == Plan("reference")
        torch.set_num_threads(2)
        assert plan_for(*arguments) != Plan("reference")
        assert [case.threads for case in cases_of(lambda: net(x))] == [2] * 3
    finally:
        torch.set_num_threads(before)
    assert {case.threads for case in one} == {1}


@compiled
def test_a_second_run_measures_nothing_whatever_its_seed(own_cache):
    first = tk.tune(network(), batch(), timer=FakeTimer(dense_wins))
    forget()
    nothing = FakeTimer(lambda trial: pytest.fail("measured again"))
    second = tk.tune(network(seed=3), batch(), timer=nothing)
    assert {tuned.source for tuned in second.cases} == {"cache"}
    assert [(t.case, t.plan, t.candidates) for t in first.cases] == [(t.case, t.plan, t.candidates) for t in second.cases]
    assert len(list(own_cache.rglob("*.json"))) == len(first.cases) == store.count()
    again = tk.tune(network(), batch(), timer=FakeTimer(cpu_wins), remeasure=True)
    assert {tuned.plan.backend for tuned in again.cases} == {"cpu"}
    assert {t.plan.backend for t in tk.tune(network(), batch(), timer=nothing).cases} == {"cpu"}


@compiled
def test_without_cache_nothing_is_written(own_cache):
    report = tk.tune(network(), batch(), timer=FakeTimer(dense_wins), cache=False)
    assert report.cache is None
    assert not own_cache.exists()


@compiled
def test_another_process_reads_the_cache(own_cache):
    tk.tune(network(), batch(), timer=FakeTimer(dense_wins))
    (row,) = {(t.plan.backend, t.source) for t in tk.tune(network(), batch(), timer=FakeTimer(cpu_wins)).cases}
    assert row == ("dense", "cache")
    code = f"""
import sys, torch, tost_kernels as tk
torch.set_num_threads({torch.get_num_threads()})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_tune import batch, network
def nothing(trials, rounds):
    raise AssertionError("measured again")
report = tk.tune(network(seed=7), batch(), timer=nothing)
print(sorted({{(t.plan.backend, t.source) for t in report.cases}}))
"""
    root = str(Path(tk.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=os.environ | {"PYTHONPATH": root}, timeout=120
    )
    assert result.stdout.strip() == "[('dense', 'cache')]", result.stderr


@compiled
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"environment": {}}', "\x00\x01", "foreign", "bad plan", "bad options"],
)
def test_a_damaged_file_is_measured_anew_with_one_warning(own_cache, text):
    tk.tune(network(), batch(), timer=FakeTimer(dense_wins))
    edited = ("foreign", "bad plan", "bad options")
    for file in own_cache.rglob("*.json"):
        entry = json.loads(file.read_text())
        if text == "foreign":
            entry["environment"]["cpu"] = "another"
        elif text == "bad plan":
            entry["plan"]["backend"] = "abacus"
        elif text == "bad options":  # well formed, but nothing that the kernels accept
            entry["plan"] = {"backend": "cpu", "options": "tile=3x3"}
        file.write_text(json.dumps(entry) if text in edited else text)
    with pytest.warns(RuntimeWarning, match="damaged file") as caught:
        report = tk.tune(network(), batch(), timer=FakeTimer(cpu_wins))
    assert len(caught) == 1
    assert {(t.plan.backend, t.source) for t in report.cases} == {("cpu", "measured")}
    assert {t.source for t in tk.tune(network(), batch(), timer=FakeTimer(dense_wins)).cases} == {"cache"}


@compiled
def test_a_folder_that_cannot_be_written_warns_once_and_tuning_goes_on(own_cache):
    own_cache.write_text("a file where the folder should be")  # root may write anywhere, but not here
    with pytest.warns(RuntimeWarning, match=r"cache .*cache cannot be .*TOST_CACHE_DIR") as caught:
        report = tk.tune(network(), batch(), timer=FakeTimer(dense_wins))
    assert 1 <= len(caught) <= 2  # once for reading, once for writing
    assert {t.plan.backend for t in report.cases} == {"dense"}
    assert store.count() == 0


@compiled
@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root and Windows ignore the permission")
def test_a_read_only_folder(own_cache):
    own_cache.mkdir()
    own_cache.chmod(0o500)
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        tk.tune(network(), batch(), timer=FakeTimer(dense_wins))
    own_cache.chmod(0o700)


@compiled
def test_processes_that_tune_at_once_leave_whole_files(own_cache):
    case, *_ = cases_of(lambda: network()(batch()))
    plans = [Plan("cpu", f"block={i + 1}") for i in range(8)]

    def write(plan: Plan) -> None:
        for _ in range(10):
            store.save(case, plan, [(plan, 1.0)] * 20)

    threads = [threading.Thread(target=write, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        stored = store.load(case, lambda plan: None)  # a part of a file would warn, and warnings are errors
        assert stored is None or stored[0] in plans
    assert [file.suffix for file in own_cache.rglob("*") if file.is_file()] == [".json"]


def test_the_folder_follows_the_environment(monkeypatch):
    assert store.folder() == Path(os.environ["TOST_CACHE_DIR"])
    monkeypatch.delenv("TOST_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert store.folder() == Path("/somewhere/tost")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert store.folder() == Path("/home/me/.cache/tost")


def test_hardware_and_versions_are_in_the_name(monkeypatch):
    case, *_ = cases_of(lambda: network()(batch()))
    store.save(case, Plan("dense"), [])
    assert store.load(case, lambda plan: None) == (Plan("dense"), [])
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert store.load(case, lambda plan: None) is None
    assert store.count() == 0


@compiled
def test_the_model_and_the_random_numbers_stay_as_they_are():
    net, x = network(), batch()
    net[0].values.grad = torch.ones_like(net[0].values)
    calls = []
    net[2].register_forward_hook(lambda *_: calls.append(1))
    state, x_before = copy.deepcopy(net.state_dict()), x.clone()
    hooks = [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in net.modules()]
    flags = [m.training for m in net.modules()]
    random_state = torch.get_rng_state()
    tk.tune(net, x, timer=FakeTimer(dense_wins))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(net[0].values.grad, torch.ones_like(net[0].values))
    assert hooks == [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in net.modules()]
    assert flags == [m.training for m in net.modules()]
    assert net[2].values.grad is None
    assert torch.equal(x, x_before)
    assert torch.is_grad_enabled()


def test_what_is_tuned_follows_the_mode():
    modes = {}
    for mode in (True, False):
        report = tk.tune(network().train(mode), batch(), timer=FakeTimer(cpu_wins), cache=False)
        modes[mode] = [(t.layers, t.case.grads) for t in report.cases]
    assert modes[False] == [(("0",), ""), (("2",), ""), (("5",), "")]
    assert modes[True][:4] == [(("0",), "values"), (("0",), ""), (("2",), "x+values"), (("2",), "")]


def test_layers_alike_share_a_case_and_frozen_ones_do_not():
    layers = [tk.SparseConv2d(8, 8, 3, padding=1, mask=torch.ones(8, 8, 3, 3)) for _ in range(3)]
    layers[2].requires_grad_(False)
    report = tk.tune(nn.Sequential(*layers), batch(8).new_ones(8, 8, 4, 4), timer=FakeTimer(cpu_wins), cache=False)
    assert [t.layers for t in report.cases if t.case.grads] == [("0",), ("1",), ("2",)]
    assert [t.case.grads for t in report.cases if t.case.grads] == ["values", "x+values", "x"]
    assert [t.layers for t in report.cases if not t.case.grads] == [("0", "1", "2")]


def test_without_a_kernel_there_may_be_one_candidate():
    linear = tk.SparseLinear(6, 4, dtype=torch.double, mask=torch.ones(4, 6))
    never = FakeTimer(lambda trial: pytest.fail("nothing to choose"))
    report = tk.tune(linear, torch.ones(3, 6, dtype=torch.double), timer=never)
    assert {(t.plan, t.source) for t in report.cases} == {(Plan("dense"), "only candidate")}


def test_a_dense_convolution_is_tried_in_both_layouts():
    fake = FakeTimer(lambda trial: 1.0 if trial.plan.options == "layout=contiguous" else 2.0)
    net, x = network().double(), batch().double()
    out = net.eval()(x)
    report = tk.tune(net, x, timer=fake)
    assert report.plan_of("0") == Plan("dense", "layout=contiguous")
    assert {trial.plan.options for trial in fake.seen} == {"", "layout=contiguous"}
    torch.testing.assert_close(net(x), out)
    assert tk.is_batch_last(net[0](x))
    layer = net[0]
    with pytest.raises(ValueError, match="expected the options of a dense plan to be one of"):
        tk.masked_conv2d(x, layer.values, layer.pattern, layer.bias, plan=Plan("dense", "layout=batch_last"))


@compiled
def test_autocast_counts_as_the_layer_sees_it():
    with torch.autocast("cpu", torch.bfloat16):
        report = tk.tune(network(), batch(), timer=FakeTimer(cpu_wins), cache=False)
    assert {t.case.dtype for t in report.cases} == {"bfloat16"}


def test_inference_mode_outside():
    net = network()
    with torch.inference_mode():
        report = tk.tune(net, batch(), timer=FakeTimer(cpu_wins), cache=False)
    assert {t.case.grads for t in report.cases} == {"values", "x+values", ""}


@compiled
def test_compile_takes_the_plan_and_follows_a_change():
    net, x = network().eval(), batch()
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(str(graph.graph))
        return graph

    tk.tune(net, x, timer=FakeTimer(dense_wins))
    compiled_net = torch.compile(net, backend=keep, fullgraph=True)
    with torch.no_grad():
        out = compiled_net(x)
        assert len(graphs) == 1
        assert graphs[0].count("conv2d") >= 2
        assert "masked_conv2d" not in graphs[0]
        tk.tune(compiled_net, x, timer=FakeTimer(cpu_wins), remeasure=True)
        torch.testing.assert_close(compiled_net(x), out)
    assert len(graphs) == 2
    assert "conv2d(" not in graphs[1].replace("masked_conv2d", "")


@compiled
def test_a_symbolic_batch_size_stays_symbolic():
    layer, graphs = tk.SparseConv2d(4, 4, 3, mask=torch.ones(4, 4, 3, 3)), []
    for case in cases_of(lambda: layer(torch.randn(8, 4, 6, 6))):
        remember(case, Plan("reference"))

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(str(graph.graph))
        return graph

    f = torch.compile(layer, fullgraph=True, backend=keep, dynamic=True)
    for n in (5, 6, 7, 8):
        torch.testing.assert_close(f(x := torch.randn(n, 4, 6, 6)), layer(x))
    assert ["masked_conv2d_reference" in graph for graph in graphs] == [False, True]  # one for 5 to 7, one for 8


@compiled
def test_torch_func_and_vmap_use_the_plan():
    layer, x = tk.SparseConv2d(4, 4, 3, mask=torch.ones(4, 4, 3, 3)), torch.randn(8, 4, 6, 6)
    for case in cases_of(lambda: layer(x)):
        remember(case, Plan("cpu", "tile=2x2x2"))

    def loss(values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"values": values}, x).square().sum()

    wanted = torch.autograd.grad(loss(layer.values), layer.values)[0]
    torch.testing.assert_close(torch.func.grad(loss)(layer.values), wanted)
    stacked = torch.stack([layer.values, 2 * layer.values]).detach()
    torch.testing.assert_close(torch.func.vmap(loss)(stacked), torch.stack([loss(v) for v in stacked]))


@pytest.fixture
def fake_triton(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Trial], object]], list[Trial]]:
    """Makes triton, or the backends named, candidates on the CPU; trials do what is given, and are kept in the list returned."""

    def install(run: Callable[[Trial], object], *names: str) -> list[Trial]:
        made: list[Trial] = []

        def trial(which: str, plan: Plan, original: Callable[[], Trial]) -> Trial:
            if plan.backend not in (names or ("triton",)):
                return original()
            made.append(Trial(which, plan, lambda: run(fake)))
            fake = made[-1]
            return fake

        one_pass, whole = bench.Bench.one_pass, bench.Bench.whole
        monkeypatch.setattr(bench.Bench, "one_pass", lambda b, which, p: trial(which, p, lambda: one_pass(b, which, p)))
        monkeypatch.setattr(bench.Bench, "whole", lambda b, plan: trial(WHOLE, plan, lambda: whole(b, plan)))
        monkeypatch.setattr(candidates, "compiled_backends", lambda case: [*(names or ("triton",))])
        return made

    return install


def test_a_candidate_of_a_later_backend_joins_by_the_table(monkeypatch, fake_triton):
    """A backend that can run here is a candidate without a line of code more than its own."""
    fake_triton(lambda trial: None)
    monkeypatch.delitem(candidates.FRAMES, "triton")
    monkeypatch.setitem(candidates.OPTIONS, "triton", {"warps": lambda case, which, chosen: ["4", "8"]})
    fake = FakeTimer(lambda trial: 0.5 if "warps=8" in trial.plan.options else 1.0)
    report = tk.tune(network(), batch(), timer=fake, cache=False)
    assert {t.plan for t in report.cases} == {Plan("triton", "warps=8")}
    assert {trial.plan.backend for trial in fake.seen} == {"triton", "dense"}


class OutOfResources(Exception):
    """As triton's: told by where it is defined."""

    __module__ = "triton.runtime.errors"


def gpu_layer() -> tuple[nn.Module, torch.Tensor]:
    """One layer with every kind of frame, and an input that wants a gradient."""
    layer = tk.SparseConv2d(32, 48, 3, padding=1, mask=torch.rand(48, 32, 3, 3) < 0.1)
    return layer, torch.randn(16, 32, 4, 4, requires_grad=True)


def test_the_options_of_the_passes_are_searched_in_the_fastest_frame(fake_triton):
    """Rows of 32 are the best for two passes, and the third does without."""
    wishes = {"forward": "warps=8", "input_grad": "stages=4", "values_grad": "split=16"}

    def ms(trial: Trial) -> float:
        if trial.which == WHOLE:
            return 10.0 - len(trial.plan.options) / 100 if trial.plan.backend == "triton" else 20.0
        direct = trial.plan.options.endswith("direct") or "algo=direct," in trial.plan.options
        frame = 5.0 if trial.which == "values_grad" and direct else 6.0 if "tiles,rows=32" in trial.plan.options else 9.0
        return frame - (wishes[trial.which] in trial.plan.options)

    made = fake_triton(lambda trial: None)
    fake = FakeTimer(ms)
    layer, x = gpu_layer()
    report = tk.tune(layer, x, timer=fake, cache=False)
    parts = "forward.warps=8,input_grad.stages=4,values_grad.algo=direct,values_grad.split=16"
    assert report.plan_of("", training=True) == Plan("triton", f"algo=tiles,rows=32,{parts}")
    assert report.plan_of("", training=False) == Plan("triton", "algo=tiles,rows=32,warps=8")
    frames = {trial.plan.options for trial in made if trial.which == "forward" and "forward" not in trial.plan.options}
    tiles = {f"algo=tiles,rows={rows}" for rows in (16, 32, 64)}  # 48 outputs: 128 rows would be mostly empty
    assert frames == {"algo=direct", *tiles, "algo=blocks,rows=64,block=32"}
    searched = {trial.plan.options.split(",", 2)[1] for trial in made if "forward.warps" in trial.plan.options}
    assert searched == {"rows=32"}


def test_frames_without_hope_are_not_searched(fake_triton):
    made = fake_triton(lambda trial: None)
    layer, x = gpu_layer()
    report = tk.tune(layer, x, timer=FakeTimer(lambda t: 1.0 if t.plan.backend == "dense" else 9.0), cache=False)
    assert {tuned.plan for tuned in report.cases} == {Plan("dense")}
    assert not [trial for trial in made if "bn=" in trial.plan.options]
    assert len([trial for trial in made if trial.which == "forward"]) == 5  # training and inference share the look


def cuda_frame(options: str) -> str:
    """What a plan begins with, before the options of its passes."""
    return ",".join(item for item in options.split(",") if item.startswith(("algo=", "rows=", "chunk=")))


def test_cuda_plans_are_searched_in_their_frames(fake_triton):
    """Gathered rows for two passes; the values' gradient on CUDA cores, by the index that the gathered one begins with."""
    wishes = {"forward": "warps=16", "input_grad": "pixels=16", "values_grad": "split=4"}

    def ms(trial: Trial) -> float:
        if trial.which == WHOLE:
            return 10.0 - len(trial.plan.options) / 100 if trial.plan.backend == "cuda" else 20.0
        frame = cuda_frame(trial.plan.options)
        if trial.which == "values_grad":
            best = frame == "algo=direct,rows=1" or "values_grad.algo=direct" in trial.plan.options
        else:
            best = frame == "algo=gather,rows=16,chunk=32"
        return (5.0 if best else 9.0) - (wishes[trial.which] in trial.plan.options)

    made = fake_triton(lambda trial: None, "cuda")
    layer, x = gpu_layer()
    report = tk.tune(layer, x, timer=FakeTimer(ms), cache=False)
    parts = "forward.warps=16,input_grad.pixels=16,values_grad.algo=direct,values_grad.split=4"
    assert report.plan_of("", training=True) == Plan("cuda", f"algo=gather,rows=16,chunk=32,{parts}")
    assert report.plan_of("", training=False) == Plan("cuda", "algo=gather,rows=16,chunk=32,warps=16")
    looks = {trial.plan.options for trial in made if trial.which == "forward" and "forward" not in trial.plan.options}
    gather = {f"algo=gather,rows={rows},chunk={chunk}" for rows in (16, 32) for chunk in (16, 32, 64)}
    direct = {f"algo=direct,rows={sizes}" for sizes in ("1", "1,chunk=8", "1,chunk=32", "2,chunk=16", "4,chunk=16")}
    assert looks == direct | gather
    assert {cuda_frame(t.plan.options) for t in made if "forward.warps" in t.plan.options} == {"algo=gather,rows=16,chunk=32"}


def test_where_rows_share_nothing_cuda_has_one_frame(monkeypatch):
    case, *_ = cases_of(lambda: tk.SparseConv2d(8, 8, 3, groups=8, mask=torch.ones(8, 1, 3, 3))(torch.randn(4, 8, 6, 6)))
    assert candidates.FRAMES["cuda"](case) == ("algo=direct,rows=1",)
    case, *_ = cases_of(lambda: tk.SparseConv2d(3, 8, 3, mask=torch.ones(8, 3, 3, 3))(torch.randn(4, 3, 6, 6)))
    assert candidates.FRAMES["cuda"](case) == ("algo=direct,rows=1", "algo=direct,rows=1,chunk=8")  # 8 outputs are no 16 rows
    wide = case._replace(weight=(64, 64, 3, 3), precision="tf32")
    assert any("gather" in frame for frame in candidates.FRAMES["cuda"](wide))
    assert not any("gather" in frame for frame in candidates.FRAMES["cuda"](wide._replace(precision="ieee")))


@pytest.mark.parametrize(
    ("cuda", "searched"),
    [
        (0.5, {("cuda", "algo=direct,rows=1"), ("cuda", "algo=direct,rows=4,chunk=16")}),
        (0.9, {("cuda", "algo=direct,rows=1"), ("triton", "algo=tiles,rows=32")}),
        (1.2, {("cuda", "algo=direct,rows=1"), ("triton", "algo=tiles,rows=32")}),
        (1.4, {("triton", "algo=tiles,rows=32"), ("triton", "algo=tiles,rows=64")}),
    ],
)
def test_the_fastest_frames_of_all_backends_are_searched(cuda, searched, fake_triton):
    """Two at most; another backend's before a second one of the same."""

    def ms(trial: Trial) -> float:
        frames = {"rows=1,chunk": 1.1, "direct,rows=4": 1.07, "direct,rows=1": 1.0, "tiles,rows=32": 1.0, "tiles,rows=64": 1.05}
        frame = next((factor for frame, factor in frames.items() if frame in trial.plan.options), 1.08)
        return frame * {"cuda": cuda, "triton": 1.0, "dense": 6.0}[trial.plan.backend]

    made = fake_triton(lambda trial: None, "cuda", "triton")
    layer, x = gpu_layer()
    tk.tune(layer, x, timer=FakeTimer(ms), cache=False)
    tried = [t for t in made if "forward.warps=" in t.plan.options and t.which == "forward"]
    assert {(t.plan.backend, t.plan.options.partition(",forward")[0]) for t in tried} == searched


def test_passes_that_all_leave_the_frame_have_a_plan_without_it():
    same = dict.fromkeys(("forward", "input_grad"), "algo=direct,pixels=4")
    frame = "algo=gather,rows=16,chunk=32"
    assert candidates.whole_plan("cuda", same, frame) == Plan("cuda", "algo=direct,rows=1,pixels=4")
    same["forward"] = "algo=direct"
    assert candidates.whole_plan("cuda", same, frame) == Plan("cuda", "algo=direct,rows=1,input_grad.pixels=4")
    assert candidates.whole_plan("triton", {"forward": "algo=direct"}, "algo=tiles,rows=16") == Plan("triton", "algo=direct")


def test_candidates_that_do_not_fit_the_device_are_dropped_and_told(fake_triton, capsys):
    def run(trial: Trial) -> None:
        if "rows=64" in trial.plan.options or "stages=4" in trial.plan.options:
            raise OutOfResources("shared memory, Required: 300000\nHardware limit: 232448")

    fake_triton(run)
    layer, x = gpu_layer()
    report = tk.tune(layer, x, timer=FakeTimer(lambda t: 2.0 if t.plan.backend == "dense" else 1.0), cache=False)
    assert {tuned.plan.backend for tuned in report.cases} == {"triton"}
    dropped = report.cases[0].dropped
    assert "algo=tiles,rows=64" in {each.plan.options for each in dropped}
    assert all("rows=64" in each.plan.options or "stages=4" in each.plan.options for each in dropped)
    assert {each.reason for each in dropped} == {"OutOfResources: shared memory, Required: 300000"}
    assert len(dropped) == len(set(dropped))
    assert "candidates cannot run on this device" in str(report)
    assert report.as_dict()["cases"][0]["dropped"][0]["reason"].startswith("OutOfResources")


def test_the_tiles_of_the_candidates_do_not_stay(fake_triton):
    layer, x = gpu_layer()
    fake_triton(lambda trial: layer.pattern.tiled(16 if "rows=16" in trial.plan.options else 32))
    seen = []
    tk.tune(layer, x, timer=FakeTimer(lambda trial: seen.append(len(layer.pattern._grouped)) or 1.0), cache=False)
    assert max(seen) == 2
    assert not layer.pattern._grouped


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (OutOfResources("registers"), "triton"),
        (RuntimeError("PassManager::run failed"), "triton"),
        (RuntimeError("masked_conv2d_cuda: the kernel does not fit this device: invalid argument"), "cuda"),
        (RuntimeError("masked_conv2d_cuda: plan: expected chunk=64 to fit into shared memory, but ..."), "cuda"),
    ],
)
def test_where_no_candidate_fits_dense_is_taken(error, name, fake_triton):
    def run(trial: Trial) -> None:
        raise error

    fake_triton(run, name)
    layer, x = gpu_layer()
    report = tk.tune(layer, x, timer=FakeTimer(lambda trial: 1.0), cache=False)
    assert {tuned.plan for tuned in report.cases} == {Plan("dense")}


def test_other_errors_of_a_candidate_are_errors(fake_triton):
    def run(trial: Trial) -> None:
        raise RuntimeError("a bug")

    fake_triton(run)
    with pytest.raises(RuntimeError, match="a bug"):
        tk.tune(*gpu_layer(), timer=FakeTimer(lambda trial: 1.0), cache=False)


@pytest.mark.parametrize(
    ("module", "name", "algorithms"),
    [
        ("tost_kernels.triton.options", "triton", ("direct", "tiles", "blocks")),
        ("tost_kernels.cuda_options", "cuda", ("direct", "gather")),
    ],
)
def test_every_plan_of_the_search_is_one_that_the_kernels_take(module, name, algorithms, fake_triton):
    """Whatever is the fastest, each string tried names a variant that the kernels have."""
    options = pytest.importorskip(module, reason="there are no such kernels")
    made = fake_triton(lambda trial: None, name)
    linear = tk.SparseLinear(40, 20, mask=torch.rand(20, 40) < 0.3).bfloat16()
    for wish in algorithms:
        for layer, x in (gpu_layer(), (linear, torch.randn(8, 40, dtype=torch.bfloat16, requires_grad=True))):
            forget()
            tk.tune(layer, x, timer=FakeTimer(lambda t, wish=wish: 2.0 - (wish in t.plan.options)), cache=False)
            op, geometry = ("masked_conv2d", (1, 1, 1, 1, 1, 1, 1)) if x.dim() == 4 else ("masked_linear", ())
            for plan in {trial.plan for trial in made}:
                options.complete(op, plan.options, x, layer.pattern, geometry)
            made.clear()


@pytest.mark.parametrize("which", ["forward", "input_grad"])
def test_a_pass_of_tritons_kernels_is_called_as_the_layer_calls_it(which, monkeypatch):
    """By its tiled index and completed options: the same bits as the op's own forward and backward, interpreted."""
    reason = tk.backend.why_not("masked_conv2d", "triton")
    if reason is not None or torch.cuda.is_available():
        pytest.skip(reason or "there are gpu tests of it")
    layer = tk.SparseConv2d(16, 16, 3, padding=1, bias=False, mask=torch.rand(16, 16, 3, 3) < 0.2)
    layer.values.requires_grad_(False)
    (case,) = cases_of(lambda: layer(tk.to_batch_last(torch.randn(16, 16, 2, 2)).requires_grad_()))
    made = bench.Bench(case, layer.pattern)
    plan = Plan("triton", "algo=tiles,rows=16")
    whole, one = made.whole(plan).run(), made.one_pass(which, plan).run()
    if which == "forward":
        ((x, _),) = made._pairs
        whole = [tk.masked_conv2d(x, made._values, layer.pattern, padding=1, plan=plan)]
    assert torch.equal(one, whole[0])


def test_dead_filters_make_another_case_and_a_candidate():
    mask = torch.rand(16, 8, 3, 3) < 0.5
    alive = tk.SparseConv2d(8, 16, 3, mask=mask)
    mask[:4] = False
    layer, x = tk.SparseConv2d(8, 16, 3, mask=mask), torch.randn(4, 8, 6, 6)
    fake = FakeTimer(lambda trial: 1.0 if "compact" in trial.plan.options else 2.0)
    report = tk.tune(layer, x, timer=fake, cache=False)
    assert report.plan_of("") == Plan("dense", "compact=1")
    assert report.cases[0].case.live == (12, 16)
    assert "12/16 x 16/16" in str(report)
    assert cases_of(lambda: alive(x))[0].live == (16, 16)
    tk.tune(alive, x, timer=fake, cache=False)
    grouped = tk.SparseConv2d(16, 16, 3, groups=2, mask=mask)
    tk.tune(grouped, torch.randn(4, 16, 6, 6), timer=fake, cache=False)
    compacts = [trial for trial in fake.seen if "compact" in trial.plan.options]
    assert {trial.plan.options for trial in compacts} == {"compact=1", "layout=channels_last,compact=1"}
    assert len(compacts) == 4  # of the first layer alone: training and inference


def test_precision_follows_torchs_settings():
    """Convolutions and matrix products have settings of their own, through the older interface or the newer one."""
    on_gpu = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    try:
        for conv in (True, False):
            cudnn.allow_tf32, cublas.allow_tf32 = conv, not conv
            found = [precision_of(op, on_gpu) for op in ("masked_conv2d", "masked_linear")]
            assert found == (["tf32", "ieee"] if conv else ["ieee", "tf32"])
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before
    assert precision_of("masked_conv2d", types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)) == ""
    assert precision_of("masked_conv2d", torch.ones(1)) == ""


def test_an_older_cache_is_not_misread(monkeypatch):
    case, *_ = cases_of(lambda: network()(batch()))
    monkeypatch.setattr(store, "FORMAT", 1)
    store.save(case, Plan("reference"), [])
    monkeypatch.undo()
    assert store.load(case, lambda plan: None) is None


def test_the_environment_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    capability = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability[0])
    one = store.environment("cuda")
    assert one["gpu"] == "a GPU"
    assert {"triton", "triton_kernels", "cuda_plans", "libraries", "cudnn", "cuda", "torch"} <= one.keys()
    capability[0] = (8, 0)
    assert store.environment("cuda") != one


@pytest.mark.parametrize("faster", ["batch_last", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
def test_the_layout_of_a_network_is_the_faster(faster, training, monkeypatch):
    net, x = network().double().train(training), torch.randn(8, 3, 8, 8, dtype=torch.double)
    met: list[str] = []
    original = bench.Bench.whole

    def whole(self: bench.Bench, plan: Plan) -> Trial:
        met.append(self.case.layout)
        return original(self, plan)

    monkeypatch.setattr(bench.Bench, "whole", whole)
    fake = FakeTimer(lambda trial: 1.0 if met[-1] == faster else 2.0)
    assert tk.best_layout(net, x, timer=fake, cache=False) == faster
    assert remembered_backends("cpu") == ["dense"]
    remembered = {kind.layout for kind in plan_module._TUNED if kind.op == "masked_conv2d"}
    assert remembered == {faster}  # the other layout's plans are forgotten
    assert met.count("batch_last") == met.count("channels_last") > 0
    assert x.is_contiguous()
    tie = FakeTimer(lambda trial: 1.0)
    assert tk.best_layout(net, (x,), timer=tie, cache=False) == "channels_last"


def test_a_layer_counts_as_often_as_it_is_called():
    layer = tk.SparseConv2d(8, 8, 3, padding=1, mask=torch.rand(8, 8, 3, 3) < 0.5)
    net, x = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(4, 8, 4, 4, requires_grad=True)
    report = tk.tune(net, x, timer=FakeTimer(lambda trial: 3.0), cache=False)
    assert [(tuned.layers, tuned.calls) for tuned in report.cases if tuned.case.grads] == [(("0",), 2)]
    assert report.milliseconds(training=True) == report.milliseconds(training=False) == 6.0


def test_best_layout_wants_tensors():
    with pytest.raises(TypeError, match="best_layout: expected example_input to be a tensor or a tuple of arguments, got list"):
        tk.best_layout(network(), [1])


@compiled
def test_the_report(capsys):
    net = network()
    report = tk.tune(net, (batch(),), timer=FakeTimer(cpu_wins), progress=True)
    assert report.plan_of("2") == report.plan_of("2", training=False) == Plan("cpu")
    with pytest.raises(KeyError):
        report.plan_of("3")
    data = json.loads(json.dumps(report.as_dict()))
    assert [row["layers"] for row in data["cases"]] == [list(t.layers) for t in report.cases]
    assert data["cases"][0]["candidates"][-2] == {"backend": "dense", "options": "", "milliseconds": 2.0}
    lines = str(report).splitlines()
    assert lines[0].split()[:5] == ["layer", "input", "number", "density", "live"]
    assert len(lines) == len(report.cases) + 2
    assert "2.0x" in lines[1]
    assert capsys.readouterr().err.count("tune: ") == len(report.cases)


def test_info_says_where_the_cache_is(own_cache, capsys):
    case, *_ = cases_of(lambda: network()(batch()))
    store.save(case, Plan("dense"), [])
    info.main([])
    assert f"{own_cache}, 1 entries for this machine" in capsys.readouterr().out


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"expected net to be a torch.nn.Module, got list"):
        tk.tune([], batch())
    with pytest.raises(TypeError, match="expected example_input to be a tensor or a tuple of arguments, got list"):
        tk.tune(network(), [1])
    with pytest.raises(ValueError, match="expected net to run a sparse layer"):
        tk.tune(nn.Linear(3, 2), torch.ones(1, 3))
    with pytest.raises(ValueError, match="expected x with 3 channels"):
        tk.tune(network(), torch.ones(1, 4, 8, 8))
    assert cases_of(lambda: None) == []


def test_the_default_timer_times_every_trial():
    """That it gives a time for each; how long they are is nobody's business here."""
    ran = {"a": 0, "b": 0}

    def trial(name: str) -> Trial:
        def run() -> None:
            ran[name] += 1

        return Trial("whole", Plan("dense", name), run)

    times = interleaved([trial("a"), trial("b")], rounds=3)
    assert len(times) == 2
    assert all(ms >= 0 for ms in times)
    assert min(ran.values()) >= 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_first_run_of_the_network_has_cudnn_search(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA: what is found without a search, cuDNN would keep for the trials. No device is needed for the switch."""
    seen: list[bool] = []

    class Watching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.backends.cudnn.benchmark)
            return x

    net = nn.Sequential(Watching(), tk.SparseLinear(4, 4, mask=torch.eye(4, dtype=torch.bool)))
    if device == "cuda":
        module = sys.modules["tost_kernels.tune"]
        monkeypatch.setattr(module, "searching", lambda asked: searching("cuda"))
    tk.tune(net, torch.randn(2, 4), cache=False, timer=FakeTimer(lambda trial: 1.0))
    assert seen == [device == "cuda"]
    assert not torch.backends.cudnn.benchmark
