"""Builds the compiled parts, as far as this machine can. What cannot be built is left out, with one line saying why.

tost_kernels._pattern   pybind11: the Pattern compiler
tost_kernels._cpu       C++ kernels on the LibTorch stable ABI: one binary for torch >= 2.11 and any Python
tost_kernels._cuda      CUDA kernels, likewise, where nvcc is found

Environment:
    TOST_NO_EXTENSIONS=1       build nothing
    TOST_REQUIRE_EXTENSIONS=1  fail where a part cannot be built, instead of leaving it out
    TOST_SANITIZE=1            instrument the C++ parts with ASan and UBSan (gcc; `make sanitize` runs tests on them)
    MAX_JOBS                   compile jobs (default: one per core and 2 GB of free memory)
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.errors import BaseError, CompileError, LinkError

PACKAGE = Path("tost_kernels")
WHY_NOT_BUILT = "why_not_built.txt"  # tost_kernels/library.py reads it
GIGABYTES_PER_JOB = 2
GPUS = (80, 90, 100)  # compute capabilities, ten times
# Kernels use nothing newer than torch 2.11, so that one binary serves it and every later version.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
SANITIZERS = "-fsanitize=address,undefined"
SANITIZE = [SANITIZERS, "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1"]
SANITIZE += ["-fno-wrapv"]  # Python's own flags may have -fwrapv, with which no signed overflow is reported
SANITIZE += ["-D_GLIBCXX_ASSERTIONS", "-D_GLIBCXX_SANITIZE_VECTOR"]  # indices into std::vector, and its spare capacity


def available_memory() -> float:
    """Gigabytes free for compile jobs (all of it where the system does not say)."""
    try:
        with open("/proc/meminfo") as meminfo:
            kilobytes = (int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable"))
            return next(kilobytes, float("inf")) / 2**20
    except OSError:
        return float("inf")


def cap_jobs() -> None:
    jobs = min(os.cpu_count() or 1, max(1, int(min(available_memory() / GIGABYTES_PER_JOB, 64))))
    os.environ.setdefault("MAX_JOBS", str(jobs))


def sources(folder: str, ending: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc", folder).glob(f"*.{ending}"))


def extensions() -> tuple[list, dict]:
    """The extension modules this machine can build, and the command class that builds them."""
    if os.environ.get("TOST_NO_EXTENSIONS") == "1":
        return skip("TOST_NO_EXTENSIONS=1")
    try:
        import torch
        from torch.utils import cpp_extension
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        return skip(f"{error} (install torch first, then this package with --no-build-isolation)")
    compiler = os.environ.get("CXX", "c++")  # as torch chooses it
    try:
        subprocess.run([*shlex.split(compiler), "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return skip(f"the C++ compiler {compiler!r} does not run ({error}); the variable CXX names another")

    optimise = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas"]
    optimise += ["-Wno-unused-parameter", "-g0"]  # torch's own headers leave parameters unused; no debug information
    link = []
    if os.environ.get("TOST_SANITIZE") == "1":
        optimise += SANITIZE  # the last -O and -g win
        link = [SANITIZERS]
    pattern = CppExtension(
        "tost_kernels._pattern",
        sources("pattern", "cpp"),
        depends=headers(),
        extra_compile_args=optimise,  # torch ships pybind11's headers
        extra_link_args=link,
    )
    stable = {"include_dirs": [str(Path("csrc").resolve())], "py_limited_api": True, "depends": headers()}
    stable["extra_link_args"] = link
    cpu = CppExtension("tost_kernels._cpu", sources("cpu", "cpp"), extra_compile_args=[*optimise, STABLE_ABI], **stable)
    modules = [pattern, cpu]
    toolkit = cuda_toolkit()
    if toolkit:
        cpp_extension.CUDA_HOME = toolkit  # a torch without CUDA looks for none
        # Torch refuses, and with it every part, an nvcc of another major version than its own CUDA. Ours may be: the library
        # brings its own CUDA runtime, and shares with torch what is the driver's (streams, the primary context).
        cpp_extension._check_cuda_version = lambda *_: None
        nvcc = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden", STABLE_ABI]
        nvcc += architectures(str(Path(toolkit, "bin", "nvcc")))
        cuda = CUDAExtension("tost_kernels._cuda", sources("cuda", "cu"), extra_compile_args={"nvcc": nvcc}, **stable)
        # A torch without CUDA can build it, too: what only one with CUDA has is found through libtorch when the library is
        # loaded. The CUDA runtime comes along, for torch may have that of another version.
        cuda.libraries = ["c10", "torch_cpu", "cudart_static", "rt", "dl", "pthread"]
        cuda.extra_link_args = [*link, "-Wl,--no-as-needed", "-ltorch"]
        modules.append(cuda)
    for module in modules:
        module.optional = True  # setuptools then does not miss the file of a part that was not built

    class Build(BuildExtension):
        """A failed compile leaves the package without that part, and says so: references do the work then."""

        def run(self) -> None:
            cap_jobs()
            super().run()

        def build_extension(self, module: Extension) -> None:
            if torch.version.cuda is None:
                forget_old_objects(Path(self.build_temp, "csrc", "cuda"))
            try:
                super().build_extension(module)
            except (RuntimeError, OSError, BaseError, CompileError, LinkError) as error:
                if os.environ.get("TOST_REQUIRE_EXTENSIONS") == "1":
                    raise
                say_not_built(f"compiling {module.name} failed: {error}", Path(self.get_ext_fullpath(module.name)).parent)

    return modules, {"build_ext": Build}


def cuda_toolkit() -> str | None:
    """The folder of a CUDA toolkit whose nvcc runs, or None, having said why."""
    nvcc = shutil.which("nvcc")
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [named] if named else [nvcc and str(Path(nvcc).resolve().parents[1]), "/usr/local/cuda"]
    why_not = f"no CUDA toolkit in {named}" if named else "no CUDA toolkit found (the variable CUDA_HOME names one)"
    for folder in (Path(place) for place in places if place):
        # (An nvcc with no headers beside it may only call another one.)
        if not any(any(folder.glob(f"{at}include/cuda_runtime.h")) for at in ("", "targets/*/")):
            continue
        try:
            subprocess.run([str(folder / "bin" / "nvcc"), "--version"], check=True, capture_output=True)
            return str(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            why_not = f"the nvcc of the CUDA toolkit in {folder} does not run ({error})"
    say_not_built(f"no CUDA kernels: {why_not}", PACKAGE)
    return None


def architectures(nvcc: str) -> list[str]:
    """Flags for the GPUs to compile for, of those this nvcc knows, and PTX of the last, for later ones."""
    try:
        listed = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        listed = []  # compiling will say what is wrong
    known = [number for number in GPUS if f"compute_{number}" in listed] or GPUS[:1]
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in known]
    return [*flags, f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}"]


def headers() -> list[str]:
    return sorted(str(path) for path in Path("csrc").rglob("*.h"))


def forget_old_objects(folder: Path) -> None:
    """Torch's build tells ninja which headers a .cu file reads only where torch has CUDA: elsewhere any newer header counts."""
    newest = max((os.path.getmtime(header) for header in headers()), default=0)
    for compiled in folder.glob("*.o"):
        if os.path.getmtime(compiled) < newest:
            compiled.unlink()


def skip(reason: str) -> tuple[list, dict]:
    say_not_built(reason, PACKAGE)
    return [], {}


def say_not_built(reason: str, folder: Path) -> None:
    """pip hides what a build prints: `python -m tost_kernels.info` reads this file instead."""
    print(f"tost-sparse: not all compiled parts are installed: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WHY_NOT_BUILT).write_text(" ".join(reason.split()))


(PACKAGE / WHY_NOT_BUILT).unlink(missing_ok=True)  # of an earlier build
modules, commands = extensions()
setup(ext_modules=modules, cmdclass=commands)
