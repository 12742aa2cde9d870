"""GhostSkipAdd: the same function, and the same running statistics, as torch's BatchNorm2d, activation and add."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import tost_kernels as tk
from tost_kernels import backend
from tost_kernels.layout import as_layout, layout_of

has_cpu = backend.why_not("ghost_skip_add", "cpu") is None
NATIVE = [pytest.param("cpu", marks=pytest.mark.skipif(not has_cpu, reason="the compiled library is absent")), "reference"]


class Block(nn.Module):
    """Three batch norms and their tail: fused, or in plain torch."""

    def __init__(self, fused: bool, **options: object) -> None:
        super().__init__()
        self.fused = fused
        self.norms = nn.ModuleList(nn.BatchNorm2d(3, **options) for _ in range(3))
        self.tail = tk.GhostSkipAdd("relu", alpha=0.5)
        for norm in self.norms:
            if norm.affine:
                nn.init.uniform_(norm.weight)
                nn.init.normal_(norm.bias)

    def forward(self, u: Tensor, ghost: Tensor, shortcut: Tensor) -> Tensor:
        a, b, c = self.norms
        if self.fused:
            return self.tail(u, a, ghost, b, shortcut, c)
        return F.relu(a(u) + self.tail.alpha * b(ghost) + c(shortcut))


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"momentum": 0.3}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}],
    ids=["default", "cumulative", "momentum", "no affine", "untracked", "eps"],
)
def test_trains_and_evaluates_like_batch_norm(options: dict[str, object], name: str) -> None:
    fused = Block(True, **options)
    plain = copy.deepcopy(fused)
    plain.fused = False
    with tk.use_backend(name):
        for step in range(4):
            inputs = [torch.randn(5, 3, 2, 4) * (step + 1) + step for _ in range(3)]
            got, want = fused(*inputs), plain(*inputs)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
            for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
                mine, theirs = (
                    torch.autograd.grad(got.square().sum(), a, retain_graph=True),
                    torch.autograd.grad(want.square().sum(), b, retain_graph=True),
                )
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        for (key, a), b in zip(fused.state_dict().items(), plain.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, msg=key)
        fused.eval()
        plain.eval()
        before = copy.deepcopy(fused.state_dict())
        torch.testing.assert_close(fused(*inputs), plain(*inputs), rtol=1e-4, atol=1e-5)
        assert all(torch.equal(before[key], value) for key, value in fused.state_dict().items())


@pytest.mark.parametrize("name", NATIVE)
def test_a_frozen_norm_in_a_training_network(name: str) -> None:
    fused = Block(True)
    fused.norms[0].eval()
    fused.norms[0].running_mean.fill_(0.7)
    plain = copy.deepcopy(fused)
    plain.fused = False
    inputs = [torch.randn(5, 3, 2, 4) for _ in range(3)]
    with tk.use_backend(name):
        torch.testing.assert_close(fused(*inputs), plain(*inputs))
    for a, b in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_ghost_switched_off_leaves_its_norm_alone(momentum: float | None, name: str) -> None:
    block = Block(True, momentum=momentum)
    block.tail.alpha.fill_(0.0)
    before = copy.deepcopy(block.state_dict())
    u, ghost, shortcut = (torch.randn(4, 3, 2, 2) for _ in range(3))
    ghost[0, 0] = float("nan")
    with tk.use_backend(name):
        out = block(u, ghost, shortcut)
    assert out.isfinite().all()
    after = block.state_dict()
    changed = {key.rsplit(".", 1)[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"norms.0", "norms.2"}


def test_empty_batch_counts_but_changes_no_statistics() -> None:
    norm, tail = nn.BatchNorm2d(3), tk.GhostSkipAdd()
    assert tail(torch.empty(0, 3, 2, 2), norm).shape == (0, 3, 2, 2)
    assert norm.num_batches_tracked == 1
    assert not norm.running_mean.any()
    assert (norm.running_var == 1).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last"])
def test_keeps_the_layout(layout: str) -> None:
    u, ghost, shortcut = (as_layout(torch.randn(4, 3, 2, 5), layout) for _ in range(3))
    assert layout_of(Block(True)(u, ghost, shortcut)) == layout


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiles_with_its_updates_and_sees_alpha_move(momentum: float | None) -> None:
    eager = Block(True, momentum=momentum)
    twin = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin, fullgraph=True, backend=counter)
    for alpha in (1.0, 0.3, 0.0):
        inputs = [torch.randn(5, 3, 2, 4) for _ in range(3)]
        for block in (eager, twin):
            block.tail.alpha.fill_(alpha)
        got, want = compiled(*inputs), eager(*inputs)
        torch.testing.assert_close(got, want)
        got.square().sum().backward()
        want.square().sum().backward()
    for a, b in zip(twin.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    for a, b in zip(twin.state_dict().values(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_alpha_and_beta_are_buffers_or_parameters() -> None:
    plain = tk.GhostSkipAdd("pswish", alpha=0.5, beta=2.0)
    assert not list(plain.parameters())
    assert {k: v.item() for k, v in plain.state_dict().items()} == {"alpha": 0.5, "beta": 2.0}
    trainable = tk.GhostSkipAdd("pswish", trainable_alpha=True, trainable_beta=True, num_channels=3)
    assert {k: v.shape for k, v in trainable.named_parameters()} == {"alpha": (), "beta": (3,)}
    u, ghost = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    copy.deepcopy(trainable)(u, ghost=ghost).sum().backward()
    assert trainable.alpha.grad is None
    trainable(u, ghost=ghost).square().sum().backward()
    assert trainable.alpha.grad is not None
    assert trainable.beta.grad.all()


def test_errors_and_repr() -> None:
    u = torch.randn(4, 3, 2, 2)
    with pytest.raises(ValueError, match=r"act to be one of .*got 'gelu'"):
        tk.GhostSkipAdd("gelu")
    with pytest.raises(TypeError, match="ghost_norm to be a BatchNorm2d module or None, got GroupNorm"):
        tk.GhostSkipAdd()(u, ghost=u, ghost_norm=nn.GroupNorm(1, 3))
    with pytest.raises(TypeError, match="norm to be a BatchNorm2d module or None, got SyncBatchNorm"):
        tk.GhostSkipAdd()(u, nn.SyncBatchNorm(3))
    with pytest.raises(ValueError, match="more than one value per channel"):
        tk.GhostSkipAdd()(u[:1, :, :1, :1], nn.BatchNorm2d(3))
    assert "act='pswish', num_channels=None, trainable=['alpha']" in repr(tk.GhostSkipAdd("pswish", trainable_alpha=True))
