"""Every test runs with uninitialised memory filled with NaN, so that a kernel that forgets to write an element is caught.

Without a CUDA device Triton's kernels run in its interpreter, on CPU tensors: `use_backend("triton")` asks for them. The
variable must be set before the first import of triton, which importing tost_kernels then is.
"""

import os
from collections.abc import Iterator

import pytest
import torch

# cuBLAS refuses to be deterministic without it; read when the first handle is made
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from tests.cuda_host.fixtures import cuda_library, emulated_cuda, kernels_are_loaded  # noqa: F401 (fixtures; the variable)


@pytest.hookimpl(tryfirst=True)  # before pytest's -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if kernels_are_loaded():
        for item in items:
            if "emulated_cuda" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.gpu)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def poison_uninitialised_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever an earlier test left: torch's own sums have other bits with another number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
