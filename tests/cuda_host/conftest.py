"""The CUDA kernels on the CPU, for the tests of this folder."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.cuda_host.build import shared_library
from tost_kernels import backend, library


@pytest.fixture(scope="session")
def cuda_library() -> None:
    if library.reason("cuda") is None:
        pytest.skip("the kernels themselves are loaded, and tested")
    torch.ops.load_library(str(os.environ.get("TOST_CUDA_HOST_LIBRARY") or shared_library()))


@pytest.fixture
def emulated_cuda(cuda_library: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """use_backend("cuda") takes CPU tensors."""
    monkeypatch.setattr(library, "EMULATED", True)
    backend.survey()
    yield
    monkeypatch.undo()
    backend.survey()
