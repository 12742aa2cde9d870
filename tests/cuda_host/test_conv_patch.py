"""The patch in shared memory that the convolutions' CUDA kernels read: it holds every tap of every target pixel."""

from pathlib import Path

from tests.cuda_host.build import run_program


def test_every_tap_is_found_in_the_patch(tmp_path: Path) -> None:
    done = run_program(tmp_path, "patch", "-fsanitize=address,undefined")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
