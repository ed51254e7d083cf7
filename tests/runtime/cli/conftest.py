"""``dp-infer`` on the bundle of NumPy functions, in an empty folder with one photo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.runtime import cli
from diffplugin.runtime.cli import session
from diffplugin.runtime.planning.quality import get_quality
from diffplugin.runtime.restorer import Restorer

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from tests.runtime.conftest import FakeModel


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own: the record of results lies there."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(folder))
    return folder


class Run:
    """What one call left behind."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err
        assert "Traceback" not in out + err
        assert not list(Path().rglob("*.tmp")), "something half-written was left"


@pytest.fixture
def infer(
    fake_bundle: Bundle,
    model: FakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Run]:
    """Call dp-infer in an empty folder that has photo.png (80x64)."""
    monkeypatch.chdir(tmp_path)

    def load(*words: Any, quality: str, **options: Any) -> Restorer:
        return Restorer(
            fake_bundle,
            model,
            "fp32",
            reason="as asked",
            quality=get_quality(quality),
            threads=options["threads"],
            concurrency=options["concurrency"],
        )

    monkeypatch.setattr(session, "load", load)
    blocks = np.random.default_rng(0).integers(90, 150, (8, 10, 3), np.uint8)
    Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save("photo.png")

    def call(*words: str) -> Run:
        try:
            status = cli.main(words)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else -1
        return Run(status, *capsys.readouterr())

    return call
