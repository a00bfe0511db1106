"""The ``torch`` functions that an activation formula may call, as Triton.

Each helper takes and returns fp32 tiles. Where torch keeps the relative error small near zero (tanh, expm1, log1p),
so do these, with the single-precision polynomials of the Cephes library (S. Moshier, ``tanhf.c``, ``expf.c`` and
``logf.c``): libdevice would do, but neither the interpreter nor every backend has it, and hardware ``exp`` and ``log``
only promise an absolute error there.
"""

import types

import triton
import triton.language as tl


@triton.jit
def _abs(x):
    return tl.abs(x)


@triton.jit
def _erf(x):
    return tl.erf(x)


@triton.jit
def _exp(x):
    return tl.exp(x)


@triton.jit
def _expm1(x):
    p = 1.9875691500e-4 * x + 1.3981999507e-3
    p = p * x + 8.3334519073e-3
    p = p * x + 4.1665795894e-2
    p = p * x + 1.6666665459e-1
    p = p * x + 5.0000001201e-1
    near = p * x * x + x
    return tl.where(tl.abs(x) < 0.35, near, tl.exp(x) - 1.0)


@triton.jit
def _log(x):
    return tl.log(x)


@triton.jit
def _log1p(x):
    p = 7.0376836292e-2 * x - 1.1514610310e-1
    p = p * x + 1.1676998740e-1
    p = p * x - 1.2420140846e-1
    p = p * x + 1.4249322787e-1
    p = p * x - 1.6668057665e-1
    p = p * x + 2.0000714765e-1
    p = p * x - 2.4999993993e-1
    p = p * x + 3.3333331174e-1
    near = x + (p * x - 0.5) * x * x
    return tl.where((x > -0.29) & (x < 0.41), near, tl.log(1.0 + x))


@triton.jit
def _ones_like(x):
    return tl.full(x.shape, 1.0, x.dtype)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _sqrt(x):
    return tl.sqrt_rn(x)


@triton.jit
def _tanh(x):
    square = x * x
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    near = p * square * x + x
    # exp of a negative number: no overflow to divide by
    decay = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0.0, -far, far))


@triton.jit
def _where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def _zeros_like(x):
    return tl.full(x.shape, 0.0, x.dtype)


#: What the name ``torch`` means inside a translated formula.
torch_in_triton = types.ModuleType("torch")
torch_in_triton.__dict__.update(
    abs=_abs, erf=_erf, exp=_exp, expm1=_expm1, log=_log, log1p=_log1p, ones_like=_ones_like, sigmoid=_sigmoid,
    sqrt=_sqrt, tanh=_tanh, where=_where, zeros_like=_zeros_like,
)  # fmt: skip
