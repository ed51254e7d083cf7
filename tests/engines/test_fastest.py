"""The order of precisions: by measurement, once, whatever the cache holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffplugin.engines.fastest import fastest_first


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastest.json"


class Machine:
    """Precisions that take so many seconds; counts how often one ran."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.runs = seconds, 0

    def runner(self, precision: str) -> Callable[[], object]:
        def run() -> None:
            self.runs += 1
            time.sleep(self.seconds[precision])

        return run


def test_the_quickest_comes_first_and_is_remembered(cache: Path) -> None:
    slow = Machine(fp32=0.001, bf16=0.02)
    assert fastest_first("here", ("fp32", "bf16"), slow.runner) == ("fp32", "bf16")
    runs = slow.runs
    assert runs >= 4 and json.loads(cache.read_text()) == {"here": ["fp32", "bf16"]}
    assert fastest_first("here", ("fp32", "bf16"), slow.runner) == ("fp32", "bf16")
    assert slow.runs == runs, "measured again"
    assert fastest_first("elsewhere", ("fp32", "bf16"), Machine(fp32=0.02, bf16=0.001).runner) == ("bf16", "fp32")
    assert set(json.loads(cache.read_text())) == {"here", "elsewhere"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"here": ["fp16"]}'])
def test_a_cache_that_does_not_fit_is_measured_again(cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert fastest_first("here", ("fp32", "bf16"), Machine(fp32=0.02, bf16=0.001).runner) == ("bf16", "fp32")


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "file"))
    assert fastest_first("here", ("fp32", "bf16"), Machine(fp32=0.001, bf16=0.02).runner) == ("fp32", "bf16")
