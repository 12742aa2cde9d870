"""Kernels with one fault each, for test_codegen.py: compiled in a process of its own, without the interpreter."""

import triton
import triton.language as tl

from tost_kernels.triton.specimen import Specimen


@triton.jit
def twice(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, 2 * tl.load(x + at, at < n), at < n)


@triton.jit
def product(x, y, SIDE: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tile = tl.load(x + at)
    tl.store(y + at, tl.dot(tile, tile, input_precision=PRECISION))


@triton.jit
def wrong(x):
    tl.store(x, tl.load(x).no_such_thing())


def copy(name: str, warps: int, **attrs: int) -> Specimen:
    signature = {"x": "*fp32", "y": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    return Specimen(name, twice, signature, {"BLOCK": 1024}, warps, 1, attrs=attrs)


def matrix(name: str, side: int, precision: str, warps: int = 4) -> Specimen:
    signature = {"x": "*fp32", "y": "*fp32", "SIDE": "constexpr", "PRECISION": "constexpr"}
    return Specimen(name, product, signature, {"SIDE": side, "PRECISION": precision}, warps, 1, matrix=True)


def specimens() -> list[Specimen]:
    return [
        copy("good", warps=8, x=16, y=16, n=16),
        copy("narrow", warps=8),
        matrix("product", 32, "tf32"),
        matrix("no-tensor-cores", 32, "ieee"),
        matrix("spills", 64, "tf32x3", warps=1),
        Specimen("no-kernel", wrong, {"x": "*fp32"}, {}, 4, 1),
        Specimen("misnamed", twice, {"x": "*fp32"}, {}, 4, 1),
    ]
