"""Which changes of a residual output count."""

from __future__ import annotations

import numpy as np

from diffplugin.runtime.execution.residual import CELL, REACH, residual_output
from diffplugin.spec import Array


def test_coring_keeps_large_changes_and_drops_faint_ones() -> None:
    """A change of the card's level counts half, by all colours of a pixel alike; 0 cores nothing."""
    image = np.zeros((1, 3, 1, 4), np.float32)
    reconstructed = np.full_like(image, 0.1)
    levels = np.array((0, 1, 10, 70), np.float32)
    restored = reconstructed + np.array((0.5, 1, 1.5), np.float32)[:, None, None] * levels / 127.5
    plain, cored = (residual_output(image, restored, reconstructed, coring) for coring in (0, 10))
    gain = (0, 1 / 101, 0.5, 49 / 50)
    assert np.allclose(cored, plain * np.array(gain, np.float32), atol=1e-6), cored
    assert np.array_equal(residual_output(image, reconstructed, reconstructed, 10), image), (
        "no change, no division by 0"
    )


def _shown(change: Array, coring_peak: int) -> Array:
    """The change of a black picture by ``change`` [H, W] levels, as it is shown; in levels."""
    image = np.zeros((1, 3, *change.shape), np.float32)
    restored = np.broadcast_to(np.float32(change / 127.5), image.shape)
    return np.asarray(residual_output(image, restored, image, 0, coring_peak)[0, 0] * 127.5)


def test_a_weak_change_counts_beside_a_strong_one_only() -> None:
    """A spot of 60 levels keeps its rim of 10; a patch of 10 levels all by itself goes, and an even change of 60."""
    change = np.zeros((128, 160), np.float32)
    change[20:40, 20:40] = 10
    change[24:36, 24:36] = 60
    change[20:40, 110:130] = 10
    shown = _shown(change, 30)
    assert shown[30, 30] > 40 and shown[21, 30] > 6.5 and shown[20:40, 110:130].max() < 0.2, shown[30, ::10]
    assert np.array_equal(_shown(change, 0), change)
    assert not _shown(np.zeros_like(change), 30).any()
    assert np.abs(_shown(np.full_like(change, 60), 30)).max() < 1e-3


def test_the_largest_change_nearby_is_looked_for_as_stated() -> None:
    """It reaches no further than said, and fades without steps back; every size works."""
    spot = np.full((200, 200), 1, np.float32)
    spot[96:104, 96:104] = 100
    gain = (_shown(spot, 10) / spot)[100]
    assert gain[90] > 0.9, gain
    far = CELL * (2 * REACH + 2)  # a maximum and a mean of REACH cells each, and the interpolation
    assert gain[: 96 - far].max() < 0.01 and gain[104 + far :].max() < 0.01, gain
    assert np.all(np.diff(gain[40 : 96 - CELL]) >= -1e-6), gain[40:92]
    for size in ((1, 1), (3, 50), (33, 64)):
        assert np.isfinite(_shown(np.ones(size, np.float32), 10)).all(), size


def test_a_faults_size_does_not_matter() -> None:
    """The same spot at twice the size is kept as well, its middle too."""
    y, x = np.mgrid[:256, :256] - 128
    for scale in (1, 2, 4):
        radius = 24 * scale
        big = np.kron((np.hypot(y, x) < 24).astype(np.float32) * 60, np.ones((scale, scale), np.float32))
        middle = _shown(big, 30)[128 * scale, 128 * scale]
        assert middle > 45, (radius, middle)
