"""Running statistics by Triton, interpreted: torch's own BatchNorm, and the reference."""

import pytest
import torch

from tests.tost_kernels.ops import running_stats_contract
from tost_kernels import backend
from tost_kernels.register import op

pytestmark = pytest.mark.skipif(backend.why_not("ghost_skip_add", "triton") is not None, reason="Triton is not installed")


@pytest.mark.parametrize("momentum", running_stats_contract.MOMENTA)
def test_moves_as_batch_norm(momentum: float | None) -> None:
    running_stats_contract.moves_as_batch_norm("triton", momentum)


@pytest.mark.parametrize("alpha", running_stats_contract.ALPHAS)
@pytest.mark.parametrize("count", [0, 1, 64])
@pytest.mark.parametrize(("momentum", "counted"), [(0.3, True), (0.3, False), (None, True), (None, False)])
def test_the_kernel_is_the_reference(momentum: float | None, counted: bool, count: int, alpha: float | None) -> None:
    running_stats_contract.the_kernel_is_the_reference("triton", momentum, counted, count, alpha)


def test_more_channels_than_the_program_takes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tost_kernels.triton import running_stats

    monkeypatch.setattr(running_stats, "WIDTH", 4)
    stats, mean, var, batches = torch.rand(3, 2, 11), torch.zeros(11), torch.ones(11), torch.tensor(1)
    op("running_stats", "triton")(mean, var, batches, stats, 0, 2, None, None)
    assert batches == 2
    torch.testing.assert_close(mean, stats[0, 0] / 2)
    torch.testing.assert_close(var, 0.5 + stats[0, 1])


def test_opcheck_and_errors() -> None:
    running_stats_contract.passes_opcheck_and_names_what_is_wrong("triton")
