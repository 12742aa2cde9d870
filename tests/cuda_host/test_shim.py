"""The shim that runs CUDA kernels on the CPU: what it computes, and that it catches what it is there to catch."""

import pytest

from tests.cuda_host.build import SANITIZERS, build_program, run_program

kernels = pytest.mark.parametrize("kernel", ["turn_around", "turn_rows"])
sanitizers = pytest.mark.parametrize("sanitizer", SANITIZERS)


def planted(kernel: str, sanitizer: str, barrier: str = "block", past: int = 0, same_place: int = 0) -> tuple[int, str]:
    done = run_program(build_program("planted", sanitizer), kernel, barrier, str(past), str(same_place))
    return done.returncode, done.stderr


@sanitizers
def test_warps_products_and_copies(sanitizer: str) -> None:
    done = run_program(build_program("semantics", sanitizer))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@kernels
@sanitizers
def test_a_correct_kernel_is_clean(kernel: str, sanitizer: str) -> None:
    code, report = planted(kernel, sanitizer)
    assert code == 0, report
    assert "SUMMARY" not in report


@kernels
@pytest.mark.parametrize(
    ("barrier", "same_place"),
    [("none", 0), ("warp", 0), ("block", 1)],
    ids=["none", "of a warp", "two blocks"],
)
def test_a_planted_race_is_caught(kernel: str, barrier: str, same_place: int) -> None:
    code, report = planted(kernel, "thread", barrier, same_place=same_place)
    assert code != 0
    assert "WARNING: ThreadSanitizer: data race" in report
    assert kernel in report


@kernels
@pytest.mark.parametrize("past", [1, -1])
def test_a_planted_read_out_of_bounds_is_caught(kernel: str, past: int) -> None:
    code, report = planted(kernel, "address", past=past)
    assert code != 0
    assert "AddressSanitizer: use-after-poison" in report
    assert kernel in report
