"""What tests of the CUDA kernels run on: the kernels themselves where there is a GPU, else the shim that runs them on the CPU."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.cuda_host.build import shared_library
from tost_kernels import backend, library


def kernels_are_loaded() -> bool:
    """Whether the kernels themselves run here."""
    return torch.cuda.is_available() and library.reason("cuda") is None


@pytest.fixture(scope="session")
def cuda_library() -> None:
    """The kernels compiled for CPU tensors."""
    torch.ops.load_library(str(os.environ.get("TOST_CUDA_HOST_LIBRARY") or shared_library()))


@pytest.fixture
def emulated_cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """use_backend("cuda") takes the tensors that a test makes without naming a device.

    These are on the CPU, and so is the shim; where the kernels themselves run, torch makes tensors on the GPU, and the test is
    marked gpu. Gives "cpu" or "cuda".
    """
    if kernels_are_loaded():
        torch.set_default_device("cuda")
        yield "cuda"
        torch.set_default_device(None)
        return
    request.getfixturevalue("cuda_library")
    monkeypatch.setattr(library, "EMULATED", True)
    backend.survey()
    yield "cpu"
    monkeypatch.undo()
    backend.survey()
