"""From a request in words to plugins, over a model of NumPy functions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffplugin.runtime.restorer import Restorer
from tests.runtime.conftest import block_photo

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from tests.runtime.conftest import FakeModel


def test_a_request_that_is_cut_says_so(restorer: Restorer) -> None:
    assert "first 6 word pieces" in restorer.plan(block_photo(), "rain " * 7)[1].reason
    assert "first" not in restorer.plan(block_photo(), "rain " * 6)[1].reason


def test_compound_tasks_come_from_the_bundle_too(fake_bundle: Bundle, model: FakeModel, tmp_path: Path) -> None:
    folder = shutil.copytree(fake_bundle.path, tmp_path / "own")
    (folder / "plugins/compounds.toml").write_text('[wet]\nphrases = ["wet"]\ntasks = ["deblur", "derain", "absent"]\n')
    _, selection = Restorer(replace(fake_bundle, path=folder), model, "fp32").plan(block_photo(), "dark, remove wet")
    assert selection.chosen == ("derain", "lowlight", "deblur") and selection.compounds == ("wet",)


def test_typing_errors_are_repaired_by_the_words_of_the_bundle(
    fake_bundle: Bundle, model: FakeModel, tmp_path: Path
) -> None:
    folder = shutil.copytree(fake_bundle.path, tmp_path / "own")
    (folder / "words.txt").write_text("rain\ndark\n\nraid\n")
    for words, text, chosen in (("", "rian", ()), ("words.txt", "rian", ("derain",)), ("words.txt", "raid", ())):
        manifest = replace(fake_bundle.manifest, words=words)
        restorer = Restorer(replace(fake_bundle, path=folder, manifest=manifest), model, "fp32")
        assert restorer.plan(block_photo(), text)[1].chosen == chosen, (words, text)
