"""The noise stream against frozen numbers of PyTorch, and against PyTorch itself where it is installed."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffplugin.errors import RequestError
from diffplugin.runtime.sampling.start_noise import normal
from tests.lesser import plain_kernels, run_tests

# torch.randn(21) for seed 42: one whole block of sixteen and a tail, which is drawn anew over the last sixteen.
SEED_42_OF_21 = """
    1.9269153 1.4872841 0.9007172 -2.105521 0.67841846 1.0783176 0.80080056 1.6806206 0.3558599 -0.686623 -0.49335635
    0.24148779 -1.1109039 0.04175949 -0.2515753 0.8598585 -0.30972677 -0.3957105 0.80340934 -0.6215954 -0.59200054
"""
FEWER_THAN_16 = {
    42: (0.33669036626815796, 0.12880940735340118, 0.23446236550807953, 0.23033303022384644, -1.1228563785552979),
    2**40 + 7: (-0.1467950940132141, 0.7861412763595581, 0.9468216300010681),
    -1: (1.2197630405426025, -0.3929794728755951, 1.0230751037597656),
}
SHA256: dict[tuple[int, tuple[int, ...]], str] = {  # of the float32 bytes, from PyTorch 2.13's AVX2 kernel
    (42, (1, 4, 64, 64)): "e97f3de04c7c6ba86354db4402b91d4402ede9c72aabed29a96dd7d635a798ba",
    (7, (1, 4, 64, 75)): "50a2f68ff93b220efa6a46a8d38b0c4b5564571b3687a5bdca59010ae7727f03",
    (2**40 + 7, (1, 4, 9, 11)): "8a9c1d3a19fb39ee295e255bd3428c3347965fd0338b7f62d6dfed15ed457dec",
}
SEEDS = (0, 42, 2**31, 2**32 - 1, 2**40 + 7, 2**64 - 1, -1, -(2**63))
SHAPES = ((), (0,), (1,), (15,), (16,), (17,), (31,), (32,), (1, 4, 1, 3), (1, 4, 9, 11), (1, 4, 64, 86))


def test_frozen_blocks_are_bit_equal() -> None:
    expected = np.array(SEED_42_OF_21.split(), np.float32)
    got = normal(42, (21,))
    assert got.dtype == np.float32
    wrong = np.flatnonzero(got != expected)
    assert not wrong.size, f"number {wrong[0]}: {got[wrong[0]]!r}, expected {expected[wrong[0]]!r}"


@pytest.mark.parametrize("seed", FEWER_THAN_16)
def test_frozen_few(seed: int) -> None:
    expected = np.array(FEWER_THAN_16[seed], np.float32)
    np.testing.assert_allclose(normal(seed, expected.shape), expected, rtol=1.2e-7, atol=0)


@pytest.mark.parametrize(("seed", "shape"), SHA256)
def test_frozen_latents_are_bit_equal(seed: int, shape: tuple[int, ...]) -> None:
    got = normal(seed, shape)
    assert got.shape == shape
    assert hashlib.sha256(got.astype("<f4").tobytes()).hexdigest() == SHA256[seed, shape], f"begins {got.flat[:4]}"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_torch(seed: int, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's own generator")
    expected = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    got = normal(seed, shape)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    # Fewer than sixteen go through the C library's logarithm and cosine; other kernels than AVX2 round otherwise.
    vectorised = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    limit = 2.4e-7 if got.size < 16 else 0 if vectorised else 3e-6
    error = np.abs(got - expected)
    worst = int(error.argmax()) if error.size else 0
    assert (error <= limit).all(), f"number {worst} of {got.size} is off by {error.flat[worst]:.2e}, limit {limit:.1e}"


def test_a_lesser_processor(tmp_path: Path) -> None:
    """NumPy's numbers are the same without AVX-512 and AVX2; PyTorch's plain kernels round otherwise."""
    names = ["test_frozen_latents_are_bit_equal"]
    names += ["test_equals_torch"] if importlib.util.find_spec("torch") else []
    run_tests(plain_kernels(), *(f"{__file__}::{name}" for name in names), cache=tmp_path)


def test_equals_the_release(oracle: Path) -> None:
    """``lowlight`` starts from pure noise: its first latents are the generator's numbers."""
    with np.load(oracle / "golden" / "lowlight_portrait_6.npz") as golden:
        expected = golden["latents"][:1]
    error = np.abs(normal(42, expected.shape) - expected).max()
    assert error == 0, f"largest difference {error:.2e}"


def test_only_the_low_32_bits_of_a_seed_count() -> None:
    np.testing.assert_array_equal(normal(2**40 + 7, (64,)), normal(7, (64,)))
    assert not np.array_equal(normal(8, (64,)), normal(7, (64,)))


def test_is_standard_normal() -> None:
    numbers = normal(1, (400_000,))
    assert abs(numbers.mean()) < 5e-3
    assert abs(numbers.std() - 1) < 5e-3
    assert numbers.max() > 4
    assert abs((np.abs(numbers) < 1).mean() - 0.6827) < 3e-3


def test_numpy_integers_are_seeds() -> None:
    int_like: Any = np.int64(42)
    np.testing.assert_array_equal(normal(int_like, (21,)), normal(42, (21,)))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "42", True, None])
def test_unusable_seed_is_named(seed: object) -> None:
    with pytest.raises(RequestError, match=r"seed: .* is not usable; expected an integer"):
        normal(seed, (4,))  # type: ignore[arg-type]
