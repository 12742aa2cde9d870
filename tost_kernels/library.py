"""Finding and loading the compiled libraries, and the Triton kernels.

A missing library is never an import error: `reason(name)` says why it is absent, and the op that needs it repeats that
sentence when somebody asks for it by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path

import torch

# Whether Triton's interpreter runs its kernels: on CPU tensors, one program after the other, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Whether the CUDA kernels, compiled for the CPU by tests/cuda_host, take CPU tensors.
EMULATED = False

_HERE = Path(__file__).parent
_REASONS: dict[str, str | None] = {}


def _why_not_built(name: str) -> str:
    """What setup.py left behind when it could not build; it passes the CUDA library over in silence where there is no nvcc."""
    file = _HERE / "why_not_built.txt"
    if file.exists():
        return file.read_text()
    return "it was never built" + (": installing it needs the nvcc of a CUDA toolkit" if name == "cuda" else "")


def _load(name: str) -> str | None:
    files = sorted(_HERE.glob(f"_{name}.*so"))
    if not files:
        return f"the compiled library '{name}' is not in this installation: {_why_not_built(name)}"
    try:
        torch.ops.load_library(str(files[0]))
    except OSError as error:
        return f"the compiled library '{name}' could not be loaded: {error}"
    return None


def _load_triton() -> str | None:
    """Import the Triton kernels where they can run. Elsewhere triton, which takes half a second, stays unimported."""
    if importlib.util.find_spec("triton") is None:
        return "the package 'triton' is not installed"
    if not (INTERPRETED or torch.cuda.is_available()):
        return "no CUDA device is available (TRITON_INTERPRET=1 runs its kernels on the CPU: slow, for tests)"
    try:
        importlib.import_module("tost_kernels.triton")
    except Exception as error:  # whatever a broken or foreign triton raises, it must not take the rest of the package with it
        return f"the Triton kernels could not be imported: {type(error).__name__}: {error}"
    return None


def load_all() -> None:
    """Load every compiled library this torch can use. Called once, when `tost_kernels` is imported."""
    _REASONS["cpu"] = _load("cpu")
    # The CUDA library refers to symbols that only a torch built with CUDA has.
    _REASONS["cuda"] = _load("cuda") if torch.version.cuda else "this torch is built without CUDA: its kernels are not loaded"
    _REASONS["triton"] = _load_triton()


def reason(name: str) -> str | None:
    """Why the library `name` ("cpu", "cuda", "triton") is absent, or None where it is loaded."""
    return _REASONS[name]
