"""The shim that runs CUDA kernels on the CPU: what it computes, and that it catches what it is there to catch."""

from pathlib import Path

import pytest

from tests.cuda_host.build import run_program

THREADS, ADDRESSES = "-fsanitize=thread", "-fsanitize=address"


kernels = pytest.mark.parametrize("kernel", ["turn_around", "turn_rows"])


def planted(
    folder: Path, kernel: str, sanitizer: str, barrier: str = "__syncthreads()", past: int = 0, same_place: int = 0
) -> tuple[int, str]:
    flags = [f"-DKERNEL={kernel}", f"-DBARRIER={barrier}", f"-DPAST={past}", f"-DSAME_PLACE={same_place}"]
    done = run_program(folder, "planted", sanitizer, *flags)
    return done.returncode, done.stderr


@pytest.mark.parametrize("sanitizer", ["-fsanitize=undefined", THREADS, ADDRESSES])
def test_warps_products_and_copies(tmp_path: Path, sanitizer: str) -> None:
    done = run_program(tmp_path, "semantics", sanitizer)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@kernels
@pytest.mark.parametrize("sanitizer", [THREADS, ADDRESSES])
def test_a_correct_kernel_is_clean(tmp_path: Path, kernel: str, sanitizer: str) -> None:
    code, report = planted(tmp_path, kernel, sanitizer)
    assert code == 0, report
    assert "SUMMARY" not in report


@kernels
@pytest.mark.parametrize(
    ("barrier", "same_place"),
    [("", 0), ("__syncwarp()", 0), ("__syncthreads()", 1)],
    ids=["none", "of a warp", "two blocks"],
)
def test_a_planted_race_is_caught(tmp_path: Path, kernel: str, barrier: str, same_place: int) -> None:
    code, report = planted(tmp_path, kernel, THREADS, barrier, same_place=same_place)
    assert code != 0
    assert "WARNING: ThreadSanitizer: data race" in report
    assert kernel in report


@kernels
@pytest.mark.parametrize("past", [1, -1])
def test_a_planted_read_out_of_bounds_is_caught(tmp_path: Path, kernel: str, past: int) -> None:
    code, report = planted(tmp_path, kernel, ADDRESSES, past=past)
    assert code != 0
    assert "AddressSanitizer: use-after-poison" in report
    assert kernel in report
