"""Start noise: the numbers that PyTorch's CPU generator gives for a seed, without PyTorch.

The released scripts seed a ``torch.Generator("cpu")``; the same seed must give the same picture in this package. The
stream is the 32-bit Mersenne Twister (Matsumoto & Nishimura 1998), which NumPy has. PyTorch turns it into normal
numbers in two different ways:

* 16 numbers and more: Box-Muller in float32 over blocks of sixteen, eight radii and eight angles. Its logarithm, sine
  and cosine are the single-precision Cephes approximations (Moshier 1992). They are evaluated here in the same order
  with the same fused multiply-adds, since one ulp in an angle is many in a small result.
* fewer: Box-Muller in float64, pair by pair.

Measured against PyTorch 2.13: **bit-equal** to its AVX2 kernel (20 million numbers, five seeds; the oracle's goldens
were made with it). PyTorch's portable kernel (``ATEN_CPU_CAPABILITY=default``) rounds its angles differently: 61 %
of its numbers are equal, the largest difference is 2.3e-6. This module does not depend on the machine's mathematics
library, so from sixteen numbers on, every machine gets the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import RequestError

Floats = NDArray[np.float32]

_BLOCK = 16
_TWO_PI = np.float32(2 * math.pi)
# Cephes logf, sinf, cosf: minimax coefficients, highest power first; ln 2 and pi/4 split for exact products.
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)


def normal(seed: int, shape: tuple[int, ...]) -> Floats:
    """Standard normal numbers, float32 ``shape``, as
    ``torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`` gives them.

    Args:
        seed: -2**63 to 2**64 - 1, as PyTorch takes it. Only its low 32 bits count, as in PyTorch: ``2**40 + 7`` and
            ``7`` are the same seed.
        shape: sides >= 0; () gives one number.

    Raises:
        RequestError: the seed is not an integer of that range.
    """
    check_seed(seed)
    # RandomState, not Generator: it is seeded by the reference initialisation, as PyTorch is, and frozen (NEP 19).
    stream = np.random.RandomState(int(seed) & 0xFFFFFFFF)
    count = math.prod(shape)
    numbers = _blocks(stream, count) if count >= _BLOCK else _pairs(stream, count)
    return numbers.reshape(shape)


def check_seed(seed: int) -> None:
    """Raises:
    RequestError: not an integer of PyTorch's range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not -(2**63) <= seed < 2**64:
        raise RequestError(f"seed: {seed!r} is not usable; expected an integer from -2**63 to 2**64 - 1")


def _raw(stream: np.random.RandomState, count: int) -> NDArray[np.uint32]:
    """The next ``count`` 32-bit words of the stream."""
    return stream.randint(0, 2**32, size=count, dtype=np.uint32)


def _blocks(stream: np.random.RandomState, count: int) -> Floats:
    """Float32 path, ``count`` >= 16. A last block that is not full is drawn anew and overwrites the last sixteen."""
    uniform = _uniform(stream, count)
    whole = count - count % _BLOCK
    uniform[:whole] = _box_muller(uniform[:whole])
    if whole < count:
        uniform[-_BLOCK:] = _box_muller(_uniform(stream, _BLOCK))
    return uniform


def _uniform(stream: np.random.RandomState, count: int) -> Floats:
    """Uniform in [0, 1): 24 bits of one word each."""
    return (_raw(stream, count) & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: Floats) -> Floats:
    """[n * 16] uniform -> normal; of each sixteen the first eight give the radii, the others the angles."""
    blocks = uniform.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - blocks[:, 0]))
    sine, cosine = _sin_cos(_TWO_PI * blocks[:, 1])
    return np.stack((radius * cosine, radius * sine), axis=1).reshape(-1)


def _pairs(stream: np.random.RandomState, count: int) -> Floats:
    """Float64 path, ``count`` < 16: two words per uniform number (53 bits), two uniform numbers per pair."""
    numbers: list[float] = []
    while len(numbers) < count:
        high, low = _raw(stream, 4).astype(np.uint64).reshape(2, 2).T
        angle, tail = (((high << np.uint64(32)) | low) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
        radius = math.sqrt(-2 * math.log1p(-tail))
        numbers += [radius * math.cos(2 * math.pi * angle), radius * math.sin(2 * math.pi * angle)]
    return np.array(numbers[:count], np.float32)


def _fma(a: Any, b: Any, c: Any) -> Floats:
    """a * b + c for float32, rounded once (the product of two float32 is exact in float64)."""
    wide: NDArray[np.float64] = np.multiply(a, b, dtype=np.float64) + c
    return wide.astype(np.float32)


def _horner(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fma(value, x, np.float32(coefficient))
    return value


def _log(x: Floats) -> Floats:
    """Natural logarithm for x in (0, 1]."""
    mantissa, power = np.frexp(x)
    low = mantissa < np.float32(math.sqrt(0.5))
    exponent = (power - low).astype(np.float32)
    rest = np.where(low, mantissa + mantissa, mantissa) - np.float32(1)
    square = rest * rest
    value = _fma(_horner(rest, _LOG) * rest, square, exponent * _LN2_LOW)
    value = _fma(-square, np.float32(0.5), value)
    return _fma(exponent, _LN2_HIGH, rest + value)


def _sin_cos(x: Floats) -> tuple[Floats, Floats]:
    """Sine and cosine for x in [0, 2 pi], reduced to the nearest multiple of pi/2."""
    octant = ((x * np.float32(4 / math.pi)).astype(np.int32) + 1) & ~1
    for part in _QUARTER_PI:
        x = _fma(octant.astype(np.float32), np.float32(-part), x)
    square = x * x
    sine = _fma(_horner(square, _SIN) * square, x, x)
    cosine = _fma(_horner(square, _COS) * square, square, -(square * np.float32(0.5))) + np.float32(1)
    swapped = (octant & 2) != 0
    sine, cosine = np.where(swapped, cosine, sine), np.where(swapped, sine, cosine)
    return np.where(octant & 4, -sine, sine), np.where((octant + 2) & 4, -cosine, cosine)
