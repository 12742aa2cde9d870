"""Code for one layer's mask: what it is made of, and, on a GPU, whether it is right and how fast, beside the direct kernel."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import tost_kernels as tk
from benchmarks.cases import Layer
from benchmarks.codegen import sass
from benchmarks.gpu.device import Cuda, precision
from benchmarks.layer_calls import Problem, sparse_calls
from benchmarks.specialised.build import Specialised, cubin, nvcc
from benchmarks.specialised.source import Part, Shape, parts
from benchmarks.table import Table, ms
from benchmarks.timing import interleave
from tost_kernels.plan import Plan

_SMS, _GHZ = 132, 1.75  # an H200
_TOLERANCE = 1e-5  # ||ours - float64's|| / ||float64's||
_COLUMNS = (
    "rows", "kept", "CPU s", "code, KB", "constants, KB", "registers", "instructions a warp", "FFMA", "loads: shared, constant",
    "instructions a multiply-add", "issue bound, us",
)  # fmt: skip


class Code(NamedTuple):
    """What nvcc made of a part."""

    seconds: float
    registers: int
    spills: int
    counts: Counter[str]


def code_of(part: Part, folder: Path, sm: int) -> Code:
    """Compiles `part` in `folder`. RuntimeError where nvcc, nvdisasm or cuobjdump are missing."""
    source = folder / "part.cu"
    source.write_text(part.text)
    file, seconds = cubin(source, sm)
    name = next(name for name in sass.read(file) if "rows" in name)
    code = sass.read(file)[name]
    return Code(seconds, code.registers, code.spills, Counter(i.split(".")[0] for i in sass.instructions(file)[name]))


def issued(code: Code, chunks: int) -> int:
    """Instructions that a warp runs: all of the code once, but the copies (cp.async), which stand in it twice, for each chunk."""
    return code.counts.total() + (chunks - 1) * code.counts["LDGSTS"] // 2


def issue_bound(instructions: int, layer: Layer, shape: Shape) -> float:
    """Microseconds in which four schedulers an SM issue these instructions for all warps."""
    warps = layer.side**2 * shape.batch / (32 * shape.images)
    return instructions * warps / (4 * _SMS * _GHZ * 1e3)


def random_mask(layer: Layer, sparsity: float, seed: int) -> Tensor:
    """Exactly round(numel * (1 - sparsity)) ones."""
    total = layer.out * layer.channels * layer.kernel**2
    mask = torch.zeros(total, dtype=torch.bool)
    mask[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[: round(total * (1 - sparsity))]] = True
    return mask.view(layer.weight_shape)


def measure(layer: Layer, batch: int, mask: Tensor, made: Sequence[Part], rounds: int) -> None:
    """On the GPU: builds, compares with float64, times. AssertionError where it is wrong."""
    device, about = Cuda(), torch.cuda.get_device_capability()
    cpu = Problem.of(layer, batch)
    problem = Problem(layer, cpu.x.cuda(), cpu.grad.cuda(), (cpu.weight * mask).cuda())
    pattern = tk.Pattern(mask).to("cuda")
    x = tk.to_batch_last(problem.x).permute(1, 2, 3, 0)
    out = x.new_full((layer.out, layer.side, layer.side, batch), float("nan"))
    with tempfile.TemporaryDirectory() as folder:
        code = Specialised(made, Path(folder), 10 * about[0] + about[1])
    values = problem.weight[mask.cuda()]

    def on_stream(call: Callable[..., None], *tensors: Tensor) -> None:
        call(*tensors, torch.cuda.current_stream().cuda_stream)

    on_stream(code.set_weights, values)
    on_stream(code.multiply, x, out)
    right = F.conv2d(problem.x.double(), problem.weight.double(), padding=layer.padding).permute(1, 2, 3, 0)
    error = float((out - right).norm() / right.norm())
    assert error <= _TOLERANCE, f"specialised: expected an error of at most {_TOLERANCE:g}, got {error:g}"

    calls: dict[str, Callable[[], object]] = {
        "specialised": partial(on_stream, code.multiply, x, out),
        "its weights": partial(on_stream, code.set_weights, values),
    }
    for name, plan in {"direct, CUDA": Plan("cuda"), "direct, Triton": Plan("triton", "algo=direct")}.items():
        try:
            calls[name] = sparse_calls(problem, pattern, plan)[0]
        except RuntimeError as error:
            print(f"{name}: not measured: {error}")
    dense = problem.x.to(memory_format=torch.channels_last), problem.weight.to(memory_format=torch.channels_last)
    with device.stream():
        graphs = {name: device.capture(call) for name, call in calls.items()}
        for kind in ("ieee", "tf32"):
            with precision(kind):
                graphs[f"dense {kind}"] = device.capture(partial(F.conv2d, *dense, padding=layer.padding))
        times = interleave(graphs, rounds, measure=device.measure)
    table = Table(f"Forward of {layer.name}, batch {batch}, on {torch.cuda.get_device_name()}, inputs in the L2", ("", "ms"))
    for name in times.ms:
        table.row(name, ms(times.summary(name)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.specialised", description=__doc__)
    top.add_argument("--layer", type=Layer.parse, default=Layer.parse("128@16"), help="stride 1, no groups; as 128@16")
    top.add_argument("--sparsity", type=float, default=0.95)
    top.add_argument("--batch", type=int, default=256)
    top.add_argument("--rows", type=int, default=64, help="output rows of a part: their sums are registers")
    top.add_argument("--images", type=int, choices=(1, 2), default=2, help="of a lane")
    top.add_argument("--tile", type=int, nargs=2, default=(2, 4), metavar=("DOWN", "ACROSS"), help="pixels of a block")
    top.add_argument("--chunk", type=int, default=8, help="source channels in shared memory at once")
    top.add_argument("--parts", type=int, default=None, help="without a GPU: compile only the first of them")
    top.add_argument("--sm", type=int, default=90, help="without a GPU: the architecture to compile for")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--rounds", type=int, default=30)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where there is no nvcc."""
    options = parser().parse_args(arguments)
    layer: Layer = options.layer
    if (layer.stride, layer.dilation, layer.groups) != (1, 1, 1) or layer.is_linear:
        parser().error(f"--layer: expected a convolution of stride 1, dilation 1, without groups, got {layer.name}")
    if nvcc() is None:
        print("nothing was compiled: expected nvcc on the PATH or in CUDA_HOME, found none", file=sys.stderr)
        return 2
    mask = random_mask(layer, options.sparsity, options.seed)
    shape = Shape(layer.side, options.batch, options.images, tuple(options.tile), options.chunk)
    made = parts(mask, shape, options.rows)
    gpu = torch.cuda.is_available()
    sm = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1] if gpu else options.sm
    table = Table(f"{layer.name}, {100 * options.sparsity:g}% sparse, sm_{sm}", _COLUMNS)
    for part in made[: options.parts]:
        with tempfile.TemporaryDirectory() as folder:
            code = code_of(part, Path(folder), sm)
        if code.spills:
            print(f"rows {part.rows}: {code.spills} bytes spilled: fewer rows", file=sys.stderr)
        warp = issued(code, -(-layer.channels // shape.chunk))
        constant = sum(n for name, n in code.counts.items() if name in ("ULDC", "LDCU", "LDC"))
        ffma = code.counts["FFMA"] + code.counts["FFMA2"]
        table.row(
            f"{part.rows[0]}-{part.rows[1] - 1}", str(len(part.place)), f"{code.seconds:.0f}", f"{code.counts.total() / 64:.0f}",
            f"{len(part.place) / 256:.0f}", str(code.registers), str(warp), str(ffma),
            f"{code.counts['LDS']}, {constant}", f"{warp / (len(part.place) * options.images):.2f}",
            f"{issue_bound(warp, layer, shape):.1f}",
        )  # fmt: skip
    if gpu:
        measure(layer, options.batch, mask, made, options.rounds)
    else:
        print("\nno GPU is here: not measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
