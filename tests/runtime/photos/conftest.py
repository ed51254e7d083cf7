"""A picture for the tests of files."""

import numpy as np
import pytest

from tests.runtime.photos.files import HEIGHT, WIDTH


@pytest.fixture
def rgb() -> np.ndarray:
    """Smooth in both axes, different in all four corners: every turn and flip shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack((x * 10, y * 15, (x + y) * 6), axis=-1).astype(np.uint8)
