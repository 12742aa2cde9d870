"""The patch in shared memory that the convolutions' CUDA kernels read: it holds every tap of every target pixel."""

from tests.cuda_host.build import build_program, run_program


def test_every_tap_is_found_in_the_patch() -> None:
    done = run_program(build_program("patch", "address"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
