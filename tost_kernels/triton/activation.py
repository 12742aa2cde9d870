"""The activations of the elementwise kernels, as device functions on float32 tiles."""

import triton
import triton.language as tl

NONE, RELU, PSWISH = 0, 1, 2
CODES = {"none": NONE, "relu": RELU, "pswish": PSWISH}


@triton.jit
def activate(z, beta, ACT: tl.constexpr):
    """act(z); NaN stays NaN, as in torch."""
    if ACT == 1:
        return tl.where(z < 0, 0.0, z)
    elif ACT == 2:
        return z * tl.sigmoid(beta * z)
    else:
        return z


@triton.jit
def activation_gradient(dy, z, beta, ACT: tl.constexpr):
    """dz, and what each element adds to dbeta (0 without pswish), from dy."""
    if ACT == 1:
        return tl.where(z <= 0, 0.0, dy), tl.zeros_like(z)
    elif ACT == 2:
        s = tl.sigmoid(beta * z)
        slope = s * (1 - s)
        # (beta * z) * slope would be inf * 0 where beta * z overflows
        return dy * (z * (beta * slope) + s), (dy * z) * (z * slope)
    else:
        return dy, tl.zeros_like(z)
