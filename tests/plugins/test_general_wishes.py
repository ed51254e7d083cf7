"""Requests that name nothing to restore."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from diffplugin.plugins.general_wishes import is_general

REQUESTS = Path(__file__).resolve().parents[2] / "plugins/train/requests/held_out.csv"


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            "auto",
            "AUTO",
            "fix this",
            "Fix it!",
            "enhance",
            "make it better",
            "improve the photo",
            "restore this image",
        ),
        *("can you make this picture look better?", "please fix my photo, thanks", "What’s wrong with this picture?"),
        *(
            "Bitte das Foto verbessern",
            "améliore cette photo",
            "mejora esta foto",
            "melhore a foto",
            "migliora la foto",
        ),
        *("修复这张照片", "帮我修一下图片"),
    ],
)
def test_general_wishes(prompt: str) -> None:
    assert is_general(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "hello", "this photo", "remove the blur", "fix the blur", "make it brighter", "restore this old photo"),
        *(
            "enhance the face",
            "do not fix this",
            "don't improve the photo",
            "make a cake",
            "improve the lighting",
            "去雨",
        ),
        *("verbessere die Helligkeit", "thanks, looks great!", "I want a better car", "fixation", "rainfix"),
    ],
)
def test_other_requests(prompt: str) -> None:
    assert not is_general(prompt)


def test_no_request_for_a_task_is_general() -> None:
    """The selector's own requests stay with it: the irrelevant ones, too."""
    with REQUESTS.open(encoding="utf-8", newline="") as file:
        found = [row["request"] for row in csv.DictReader(file) if is_general(row["request"])]
    assert found == []
