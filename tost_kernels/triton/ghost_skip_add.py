"""ghost_skip_add on a GPU: out = act(norm(u) + alpha norm(ghost) + norm(shortcut)), forward and backward.

Memory is all that counts, so the design is a list of passes. E bytes an element (4 or 2), P parts, B of them with the
batch's statistics:
  forward   1. moments    reads the B parts                               B E   (no launch where B = 0)
            2. apply      reads the P parts, writes out            (P + 1) E
  backward  1. sums       reads grad_output and the P parts        (P + 1) E
            2. gradients  reads the same, writes P gradients      (2 P + 1) E
With B = 0 the gradients do not wait for the sums: pass 1 writes them too, and what is left for the second launch is a few sums.
Nothing but the inputs and the statistics is saved: the sum before the activation is worked out again, twice, from registers.
Passes 2 go through the tiles backwards: what pass 1 read last may still be in the L2 cache.

No pass needs a third launch to add up partial sums: each program of a second pass adds up its own channel's (a few dozen numbers)
when it begins, and turns them into the few coefficients that its elements need. What is summed over all channels (dalpha,
dbeta) and what is written once a channel is left to one extra program, which runs beside the others.

The kernels: ghost_forward.py, ghost_backward.py, and ghost_parts.py, which has the statistics. Here they are launched.

alpha, beta and the statistics are read from device memory by the kernels: a CUDA graph sees them move. At alpha == 0 the loads of
the ghost are predicated off, so it costs no traffic in forward nor in the second pass of backward; the first still reads it,
since dalpha does not vanish there (and once more for the statistics that forward did not take).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from tost_kernels.layout import as_layout, empty_layout, layout_of
from tost_kernels.triton.activation import CODES
from tost_kernels.triton.channels import WARPS, View, on_device_of, specimen, tiled, view_of
from tost_kernels.triton.checks import check, check_activation, check_like, check_parameter, shape_string
from tost_kernels.triton.ghost_backward import gradients_kernel, sums_kernel
from tost_kernels.triton.ghost_forward import apply_kernel, moments_kernel
from tost_kernels.triton.implement import implement
from tost_kernels.triton.specimen import Specimen

PARTS = ("u", "ghost", "shortcut")
FIELDS = ("weight", "bias", "mean", "var")
ABSENT = -1  # a constexpr norm beside the schema's 0 (none), 1 (running statistics) and 2 (batch statistics)
# Rows of the sums of backward: of dz; of dz * (x - center) for each part; of dbeta; mean and M2 of a ghost at alpha == 0.
SUMS = 7


class Inputs:
    """The arguments of the op, checked, in the layout that is computed in, and in the kernels' order.

    parts: u, ghost, shortcut, None where absent. norms: the schema's, `ABSENT` for an absent part. kernel: what all three kernels
    take first: the parts and their parameters, alpha, beta, eps.
    """

    def __init__(self, op: str, args: Sequence[Any]) -> None:
        *tensors, act, norm, eps, _ = args
        u, beta = tensors[0], tensors[16]
        check(op, u.dim() >= 2, f"u: expected shape (N, C, ...), got {shape_string(u.shape)}")
        check(op, len(norm) == len(PARTS), f"norm: expected 3 values, got {len(norm)}")
        check(op, len(eps) == len(PARTS), f"eps: expected 3 values, got {len(eps)}")
        check(op, act in CODES, f'act: expected none, relu or pswish, got "{act}"')
        check(op, act != "pswish" or beta is not None, 'beta: expected a tensor with act "pswish", got None')
        check(op, (tensors[5] is None) == (tensors[10] is None), "alpha: expected a tensor with ghost and only then")
        check_activation(op, "u", u)
        self.layout = layout_of(u)
        self.given = [tensors[0], tensors[5], tensors[11]]
        alpha = tensors[10]
        if alpha is not None:
            check_parameter(op, "alpha", alpha, (), u)
        if beta is not None:
            check_parameter(op, "beta", beta, () if beta.dim() == 0 else (u.shape[1],), u)
        self.norms: list[int] = []
        flat: list[list[Tensor | None]] = []
        for part, (name, x) in enumerate(zip(PARTS, self.given, strict=True)):
            first = (1, 6, 12)[part]
            self.norms.append(ABSENT if x is None else norm[part])
            if x is None:
                flat.append([None] * 5)
                continue
            check_like(op, name, x, u)
            check(op, norm[part] in (0, 1, 2), f"norm: expected 0, 1 or 2 for {name}, got {norm[part]}")
            parameters: list[Tensor | None] = tensors[first : first + 4]
            for field, parameter in zip(FIELDS, parameters, strict=True):
                if parameter is not None:
                    check_parameter(op, f"{name}_{field}", parameter, (u.shape[1],), u)
            missing = norm[part] == 1 and (parameters[2] is None or parameters[3] is None)
            expected = "expected tensors with norm 1 (running statistics), got None"
            check(op, not missing, f"{name}_mean, {name}_var: {expected}")
            used = (0, 4, 2)[norm[part]]  # of weight, bias, mean and var
            kept = [None if p is None or i >= used else p.contiguous() for i, p in enumerate(parameters)]
            flat.append([as_layout(x, self.layout), *kept])
        self.parts = [part[0] for part in flat]
        self.u: Tensor = self.parts[0]  # type: ignore[assignment]
        self.alpha, self.beta = alpha, beta
        beta = None if beta is None or act != "pswish" else beta.contiguous()
        self.kernel = [*flat[0], *flat[1], alpha, *flat[2], beta, *(float(e) for e in eps)]
        self.view = view_of(self.u)
        self.splits = self.view.splits(self.u.device)
        view = self.view
        self.sizes = view.outer, view.channels, view.inner, view.channel_tiles, view.tiles, self.splits
        self.constants = dict(zip(("U", "GHOST", "SHORTCUT"), self.norms, strict=True)) | view.constants()
        self.tail = {"ACT": CODES[act], "BETA_STRIDE": 0 if beta is None or beta.dim() == 0 else 1}
        self.empty = self.u.numel() == 0

    def partial(self, rows: int) -> Tensor:
        return self.u.new_empty((rows, self.splits, self.view.channels), dtype=torch.float32)

    def second_pass(self) -> tuple[int, dict[str, int]]:
        """How many programs the second pass has, and the constants of its own."""
        steps = self.view.steps(self.u.device)
        padded = triton.next_power_of_2(self.splits)
        programs = self.view.channel_tiles * triton.cdiv(self.view.tiles, steps)
        return programs, {"STEPS": steps, "SPLITS": padded}


def forward(*args: Any) -> tuple[Tensor, Tensor]:
    given = Inputs("ghost_skip_add", args)
    u, channels = given.u, given.view.channels
    out = empty_layout(u.shape, given.layout, u)
    stats = u.new_empty((3, 2, channels), dtype=torch.float32)
    if given.empty:
        return out, stats.zero_()
    partial = None
    with on_device_of(u):
        if 2 in given.norms:
            partial = given.partial(6)
            grid = (given.view.channel_tiles * given.splits,)
            moments_kernel[grid](*given.parts, given.alpha, partial, *given.sizes, **given.constants, num_warps=WARPS)
        programs, constants = given.second_pass()
        apply_kernel[(programs,)](
            *given.kernel, partial, out, stats, *given.sizes, **given.constants, **given.tail, **constants, num_warps=WARPS
        )
    return out, stats


def backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
    name = "ghost_skip_add_backward"
    *rest, stats = args
    given = Inputs(name, rest)
    u = given.u
    check_like(name, "grad_output", grad_output, u)
    check_parameter(name, "stats", stats, (3, 2, u.shape[1]), u)

    def nothing() -> Tensor:  # one each: no two results of an op may share memory
        return u.new_empty(0, dtype=torch.float32)

    grads = [nothing() if x is None else empty_layout(u.shape, given.layout, u) for x in given.parts]
    affine = torch.empty_like(stats, memory_format=torch.contiguous_format)
    small = [nothing() if t is None else t.new_empty(t.shape) for t in (given.alpha, given.beta)]
    if given.empty:
        affine.zero_()
        for t in small:
            t.zero_()
    else:
        _launch_backward(given, as_layout(grad_output, given.layout), stats.contiguous(), grads, affine, small)
    own = [g if x is None else as_layout(g, layout_of(x)) for g, x in zip(grads, given.given, strict=True)]
    return *own, affine, *small


def _launch_backward(given: Inputs, dy: Tensor, stats: Tensor, grads: list[Tensor], affine: Tensor, small: list[Tensor]) -> None:
    view, u = given.view, given.u
    partial = given.partial(SUMS)
    one_pass = 2 not in given.norms
    programs, constants = given.second_pass()
    width = min(max(1024 // constants["SPLITS"], 1), triton.next_power_of_2(view.channels))
    shared = dict(**given.constants, **given.tail, num_warps=WARPS)
    with on_device_of(u):
        grid = (view.channel_tiles * given.splits,)
        sums_kernel[grid](dy, *given.kernel, stats, partial, *grads, *given.sizes, WRITE=one_pass, **shared)
        grid = (1 if one_pass else 1 + programs,)
        gradients_kernel[grid](
            dy, *given.kernel, stats, partial, *grads, affine, *small, *given.sizes, WIDTH=width, **constants, **shared
        )


implement("ghost_skip_add", forward)
implement("ghost_skip_add_backward", backward)


def specimens() -> list[Specimen]:
    """The tail with everything, (256, 64, 32, 32): batch-last, the variant that needs most registers, and without batch norm."""
    floats = [f"{part}_{field}" for part in PARTS for field in FIELDS]
    floats += ["alpha", "beta", "partial", "stats", "grad_affine", "grad_alpha", "grad_beta"]
    given: dict[str, Any] = dict.fromkeys(floats, "*fp32") | {f"{part}_eps": "fp32" for part in PARTS}
    batch = given | {f"{part}_{field}": None for part in PARTS for field in ("mean", "var")}
    full = {"U": 2, "GHOST": 2, "SHORTCUT": 2, "ACT": 2, "BETA_STRIDE": 0, "STEPS": 4, "SPLITS": 16, "WIDTH": 64, "WRITE": False}
    batch_last = tiled(1, 64, 1024 * 256, torch.float32)
    channels_last = tiled(1024 * 256, 64, 1, torch.bfloat16)
    running = full | {"U": 1, "GHOST": 1, "SHORTCUT": 0, "WRITE": True}

    def one(
        kernel: Any, title: str, view: View, dtype: torch.dtype, given: dict[str, Any], constants: dict[str, Any]
    ) -> Specimen:
        return specimen(f"ghost_skip_add.{title}", kernel, view, given, constants, dtype)

    return [
        one(moments_kernel, "moments.batch_last.fp32", batch_last, torch.float32, batch, full),
        one(apply_kernel, "apply.batch_last.fp32", batch_last, torch.float32, batch, full),
        one(sums_kernel, "sums.batch_last.fp32", batch_last, torch.float32, batch, full),
        one(sums_kernel, "sums.one_pass.batch_last.fp32", batch_last, torch.float32, given, running),
        one(gradients_kernel, "gradients.batch_last.fp32", batch_last, torch.float32, batch, full),
        one(gradients_kernel, "gradients.channels_last.bf16", channels_last, torch.bfloat16, batch, full),
    ]
