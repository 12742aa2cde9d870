"""`import tost` is light, and its lazy names are the real ones."""

import os
import subprocess
import sys

import pytest

import tost


def test_every_public_name_resolves() -> None:
    for name in tost.__all__:
        assert getattr(tost, name) is not None
    assert set(tost.__all__) <= set(dir(tost))


def test_train_is_the_function_whatever_was_imported_before() -> None:
    from tost.training import train

    assert tost.train is train


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'tost' has no attribute 'trian'"):
        tost.trian  # noqa: B018


def test_import_loads_neither_torch_nor_kernels_and_prints_nothing() -> None:
    code = "import tost, sys; print([m for m in ('torch', 'tost_kernels', 'rich', 'yaml') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
