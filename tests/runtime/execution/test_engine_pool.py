"""The engines of one bundle: loaded once, exchanged where a library cannot load a graph."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest

from diffplugin.errors import EngineError, EngineNotLoaded
from diffplugin.runtime.restorer import Restorer

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from tests.runtime.conftest import FakeModel

PHOTO = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


class Lacking:
    """A library that cannot load one graph."""

    def __init__(self, model: FakeModel, key: str, error: type[EngineError] = EngineNotLoaded) -> None:
        self._model, self._key, self._error = model, key, error
        self.name, self.concurrent = "lacking", True

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def load(self, bundle: Bundle, key: str, **options: object) -> object:
        if key == self._key:
            raise self._error(f"{key}: Unsupported operator")
        return self._model.load(bundle, key, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["clip_vision", "unet", "vae_decoder"])
def test_a_graph_that_cannot_be_loaded_is_run_by_the_fallback(
    fake_bundle: Bundle, model: FakeModel, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    with Restorer(fake_bundle, model, "fp32") as restorer:
        expected = restorer.restore(PHOTO, plugins=["derain"]).array
    lacking = Lacking(model, key)
    with (
        caplog.at_level(logging.WARNING, "diffplugin"),
        Restorer(fake_bundle, lacking, "fp32", reason="fastest", fallback=(model, "fp32")) as restorer,  # type: ignore[arg-type]
    ):
        assert (restorer.engine, restorer.reason) == ("lacking", "fastest")
        np.testing.assert_array_equal(restorer.restore(PHOTO, plugins=["derain"]).array, expected)
        assert (restorer.engine, restorer.reason) == ("fake", "lacking cannot load this bundle")
        again = restorer.restore(PHOTO, plugins=["derain"])
        assert again.plan.engine == "fake"
    assert [record.getMessage() for record in caplog.records] == [
        f"{key}: Unsupported operator; going on with fake fp32"
    ]


def test_what_the_user_asked_for_is_never_exchanged(fake_bundle: Bundle, model: FakeModel) -> None:
    with (
        Restorer(fake_bundle, Lacking(model, "unet"), "fp32") as restorer,  # type: ignore[arg-type]
        pytest.raises(EngineNotLoaded, match="unet: Unsupported operator"),
    ):
        restorer.restore(PHOTO, plugins=["derain"])


def test_other_errors_are_no_reason_to_exchange_it(fake_bundle: Bundle, model: FakeModel) -> None:
    lacking = Lacking(model, "unet", EngineError)
    with (
        Restorer(fake_bundle, lacking, "fp32", fallback=(model, "fp32")) as restorer,  # type: ignore[arg-type]
        pytest.raises(EngineError, match="unet: Unsupported operator"),
    ):
        restorer.restore(PHOTO, plugins=["derain"])
