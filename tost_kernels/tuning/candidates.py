"""What tuning may choose from: the one list of backends, and of the options of each.

A new backend of `backend.COMPILED` joins by itself, as the kernel's own rule; what it lets one choose is a line in `OPTIONS`.
A new key of an existing backend is a line there too. torch's dense op is always a candidate (`dense_plans`). The tiles of the
CPU kernels are asked of the compiled library, which alone knows what it holds for this machine's instruction set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from tost_kernels import backend
from tost_kernels.ops import masked_conv2d, masked_linear
from tost_kernels.pattern import Pattern
from tost_kernels.plan import Case, Plan

FORWARD, INPUT_GRAD, VALUES_GRAD = "forward", "input_grad", "values_grad"


def passes(case: Case) -> tuple[str, ...]:
    """The passes that a training step (or, where no gradient is wanted, inference) makes through this op."""
    wanted = {INPUT_GRAD: "x", VALUES_GRAD: "values"}
    return (FORWARD, *(name for name, grad in wanted.items() if grad in case.grads.split("+")))


def output_shape(case: Case) -> tuple[int, ...]:
    """Shape of the op's output."""
    if len(case.weight) == 2:
        return case.input[0], case.weight[0]
    (stride, padding, dilation), kernel = (case.geometry[i : i + 2] for i in (0, 2, 4)), case.weight[2:]
    sides = [(case.input[2 + a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)]
    return case.input[0], case.weight[0], *sides


def _groups(case: Case) -> int:
    return case.geometry[6] if case.geometry else 1


def _tiles(case: Case, which: str, chosen: str) -> Sequence[str]:
    if len(case.weight) == 2:
        rows, columns = 1, 1
    elif which == INPUT_GRAD:  # each of stride * stride phases is tiled by itself
        rows, columns = (-(-size // step) for size, step in zip(case.input[2:], case.geometry[:2], strict=True))
    else:
        rows, columns = output_shape(case)[2:]
    tiles = str(torch.ops.tost.cpu_tiles(rows, columns, case.input[0]))
    return tiles.split(",") if tiles else ()


def _blocks(case: Case, which: str, chosen: str) -> Sequence[str]:
    channels = case.weight[0] // _groups(case) if which == INPUT_GRAD else case.weight[1]
    sizes = [size for size in (8, 16, 32, 64, 128, 256) if size < channels]
    return [str(size) for size in (*sizes, channels)]


def _algo_of(chosen: str) -> str:
    """The algorithm of a pass by the options chosen so far, of which the last counts."""
    return [item.partition("=")[2] for item in chosen.split(",") if item.startswith("algo=")][-1]


def _triton_frames(case: Case) -> Sequence[str]:
    """One index tensor serves the three passes of a plan: it is laid out for row groups of so many rows, or for none."""
    channels, most = case.weight[1], max(case.weight[0], case.weight[1] * _groups(case))
    if channels == 1:  # a tensor-core tile of one column would be padding
        return ("algo=direct",)
    tiles = [f"algo=tiles,rows={rows}" for rows in (16, 32, 64, 128) if rows < 2 * most]
    blocks = [f"algo=blocks,rows={rows},block=32" for rows in (64, 128) if rows < 2 * most and channels >= 32]
    return ("algo=direct", *tiles, *blocks)


def _base_algo(case: Case, which: str, chosen: str) -> Sequence[str]:
    """Out of the frame, for one pass: see `BASE`."""
    return () if _algo_of(chosen) == "direct" else ("direct",)


def _triton_bn(case: Case, which: str, chosen: str) -> Sequence[str]:
    algo = _algo_of(chosen)
    sizes = {"tiles": (32, 64, 128, 256), "blocks": (64, 128, 256), "direct": (16, 32, 64, 128, 256)}[algo]
    positions = 2**30 if algo == "blocks" else case.input[0]  # the others' positions are images, of one pixel
    return [str(size) for size in sizes if size < 2 * positions]


def _triton_bk(case: Case, which: str, chosen: str) -> Sequence[str]:
    algo = _algo_of(chosen)
    if algo == "direct":
        return ("8", "32")
    if which == VALUES_GRAD:
        return ("32", "64", "128")
    return () if algo == "blocks" else ("16", "32", "64")  # a step of blocks is a block


def _triton_warps(case: Case, which: str, chosen: str) -> Sequence[str]:
    return ("2", "4", "8") if _algo_of(chosen) == "direct" else ("4", "8")


def _triton_stages(case: Case, which: str, chosen: str) -> Sequence[str]:
    return () if _algo_of(chosen) == "direct" else ("2", "3", "4")


def _split(case: Case, which: str, chosen: str) -> Sequence[str]:
    return ("1", "4", "16", "64") if which == VALUES_GRAD else ()


def _cuda_frames(case: Case) -> Sequence[str]:
    """One index tensor here, too: rows that share what they read, and the channels staged at once."""
    channels, most = case.weight[1], max(case.weight[0], case.weight[1] * _groups(case))
    if channels == 1:  # no two rows read the same channel
        return (BASE["cuda"],)
    direct = [f"algo=direct,rows={rows},chunk={chunk}" for rows, chunk in ((1, 8), (1, 32), (2, 16), (4, 16)) if chunk < 2 * most]
    if case.precision == "ieee":  # tensor cores have no such products
        return (BASE["cuda"], *direct)
    sizes = itertools.product((16, 32), (16, 32, 64))
    gather = [f"algo=gather,rows={rows},chunk={chunk}" for rows, chunk in sizes if max(rows, chunk) < 2 * most]
    return (BASE["cuda"], *direct, *gather)


def _cuda_pixels(case: Case, which: str, chosen: str) -> Sequence[str]:
    return ("8", "16") if _algo_of(chosen) == "direct" else ("4", "8", "16")


def _cuda_warps(case: Case, which: str, chosen: str) -> Sequence[str]:
    return ("4", "8", "16")


def _cuda_stages(case: Case, which: str, chosen: str) -> Sequence[str]:
    return ("1", "2", "3")


# backend -> the frame whose index every other one begins with: a pass may run by it inside of those of other algorithms, by
# algo=direct.
BASE = {"triton": "algo=direct", "cuda": "algo=direct,rows=1"}

# backend -> case -> the options that must be one for a whole plan; the rest is chosen for each pass inside of one of them.
FRAMES: dict[str, Callable[[Case], Sequence[str]]] = {"cuda": _cuda_frames, "triton": _triton_frames}

# backend -> key of its plan strings -> (case, pass, what is chosen so far) -> the values to try. Keys are tried in this order,
# each beside the best so far.
OPTIONS: dict[str, dict[str, Callable[[Case, str, str], Sequence[str]]]] = {
    "cpu": {"tile": _tiles, "block": _blocks},
    "cuda": {
        "algo": _base_algo,
        "pixels": _cuda_pixels,
        "warps": _cuda_warps,
        "stages": _cuda_stages,
        "split": _split,
    },
    "triton": {
        "algo": _base_algo,
        "bn": _triton_bn,
        "bk": _triton_bk,
        "warps": _triton_warps,
        "stages": _triton_stages,
        "split": _split,
    },
}


def joins(name: str, frame: str, other: str) -> bool:
    """Whether a pass may run by `frame` inside of `other`."""
    return frame == BASE[name] and _algo_of(other) != "direct"


def dense_plans(case: Case, pattern: Pattern) -> list[Plan]:
    """The plans that run torch's own op, a candidate for every case: a convolution in either of its layouts, and with dead
    filters and channels left out where `pattern` has enough of them.
    """
    options = masked_conv2d.DENSE_OPTIONS if case.op == "masked_conv2d" else masked_linear.DENSE_OPTIONS
    own = f"layout={'channels_last' if case.layout == 'batch_last' else case.layout}"  # what "" means already
    compacts = pattern.compact is not None and _groups(case) == 1
    return [Plan("dense", choice) for choice in options if own not in choice and (compacts or "compact" not in choice)]


def compiled_backends(case: Case) -> list[str]:
    """The compiled backends that can run this case here, but for an interpreted one."""
    like = torch.empty(0, dtype=getattr(torch, case.dtype), device=case.device)
    names = (name for name in backend.COMPILED if not backend.only_when_forced(name))
    return [name for name in names if backend.why_not_for(case.op, name, like) is None]


def in_frame(frame: str, which: str, options: str) -> str:
    """The options of one pass as part of a plan string that has a frame; as they are, where it has none."""
    if not frame or not options:
        return frame or options
    return ",".join([frame, *(f"{which}.{option}" for option in options.split(","))])


def whole_plan(name: str, by_pass: dict[str, str], frame: str = "") -> Plan:
    """One plan out of the options chosen for each pass of a case, and the frame that they were chosen in."""
    if all(options.startswith("algo=") for options in by_pass.values()):  # no pass is left that needs the frame
        frame = BASE[name]
        by_pass = {which: options.partition(",")[2] for which, options in by_pass.items()}
    parts = [next(iter(by_pass.values()))]
    if len(set(by_pass.values())) > 1:
        parts = [f"{which}.{option}" for which, options in by_pass.items() for option in options.split(",") if option]
    return Plan(name, ",".join(part for part in (frame, *parts) if part))
