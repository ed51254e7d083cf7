"""The memory estimate and the memory there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from diffplugin import control_groups
from diffplugin.bench.full_width import DIMS
from diffplugin.runtime.planning import memory
from diffplugin.runtime.planning.memory import UNET_BYTES, VAE_BYTES, available_memory, footprint, kept_bytes


def test_footprint_of_stable_diffusion() -> None:
    made = footprint(DIMS, {"unet": 3_438_000_000, "vae_decoder": 198_000_000})
    assert made.weights == 3_636_000_000 and made.per_latent_pixel == max(UNET_BYTES, VAE_BYTES)
    half = footprint(DIMS, {"unet": 3_438_000_000, "vae_decoder": 198_000_000}, shares=(0.5, 0.5, 0.5))
    assert half.weights * 2 == made.weights and half.per_latent_pixel * 2 == made.per_latent_pixel
    assert made.total(10) == made.weights + 10 * made.per_latent_pixel


def test_footprint_scales_with_the_widths() -> None:
    small = footprint(replace(DIMS, residual_channels=32), {"vae_decoder": 1_980_000})
    assert small.per_latent_pixel == VAE_BYTES // 10


def test_what_pieces_keep_between_steps_counts_for_all_of_them() -> None:
    assert kept_bytes(DIMS, deep=False, residuals=False) == 0
    assert kept_bytes(DIMS, deep=True, residuals=False) == 640 * 4
    assert kept_bytes(DIMS, deep=False, residuals=True) == 5 * 320 * 4
    plain, keeping = (footprint(DIMS, {"unet": 4_000}, shares=(0.5, 0.5, 0.5), kept=kept) for kept in (0, 100))
    assert plain.total(10, 30) == plain.total(10) and keeping.total(10, 30) == plain.total(10) + 3_000
    assert keeping.total(10) == plain.total(10) + 1_000, "one piece"


def test_arrays_as_large_as_the_picture_count_once_however_it_is_cut() -> None:
    made = footprint(DIMS, {"unet": 4_000}, picture=54)
    assert made.photo_per_latent_pixel == 54 * 64
    bare = replace(made, photo_per_latent_pixel=0)
    assert made.total(10, 30, 20) == bare.total(10, 30) + 20 * 54 * 64
    assert made.total(10) == bare.total(10) + 10 * 54 * 64, "one piece"


def _files(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str]) -> None:
    for module in (memory, control_groups):
        monkeypatch.setattr(module, "_read", lambda path: files.get(str(path), ""))
    monkeypatch.setattr(Path, "is_dir", lambda path: True)


MACHINE = "MemTotal:  100 kB\nMemAvailable:    2000 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 2_048_000),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "max\n"}, 2_048_000),
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/b/memory.max": "900\n",
                "/sys/fs/cgroup/a/b/memory.current": "500\n",
                "/sys/fs/cgroup/a/b/memory.stat": "anon 5\ninactive_file 100\n",
            },
            500,
        ),
        (  # a limit of a group between
            {
                "/proc/self/cgroup": "0::/a/b/c\n",
                "/sys/fs/cgroup/a/memory.max": "700\n",
                "/sys/fs/cgroup/a/memory.current": "500\n",
                "/sys/fs/cgroup/a/b/memory.max": "900\n",
                "/sys/fs/cgroup/a/b/memory.current": "500\n",
            },
            200,
        ),
        (
            {
                "/proc/self/cgroup": "4:memory:/x\n3:cpu:/x\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "900",
                "/sys/fs/cgroup/memory/memory.usage_in_bytes": "950",
            },
            0,
        ),
    ],
)
def test_available_memory(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], expected: int) -> None:
    _files(monkeypatch, {"/proc/meminfo": MACHINE, **files})
    assert available_memory() == expected


def test_this_machine_has_memory() -> None:
    found = available_memory()
    assert found is None or 10**7 < found < 10**15
