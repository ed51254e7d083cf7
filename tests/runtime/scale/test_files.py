"""Folders by fsspec: what is found, what counts as done, and photos that fail alone."""

from __future__ import annotations

import io
import pickle
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

fsspec = pytest.importorskip("fsspec", reason="needs the extra [scale]")

from diffplugin.errors import MissingDependency, RequestError
from diffplugin.runtime.options import RestoreOptions
from diffplugin.runtime.restorer import Restorer
from diffplugin.runtime.scale.files import filesystem, find_tasks, is_done, restore_task
from diffplugin.runtime.scale.recipe import Recipe
from tests.runtime.conftest import smooth_photo

OPTIONS = RestoreOptions(prompt="rain")


def photo(seed: int = 0, form: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.fromarray(smooth_photo(48, 64, seed)).save(written, form)
    return written.getvalue()


@pytest.fixture(params=["memory", "local"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder's URL with photos, and what is none, below ``in``."""
    url = "memory://work" if request.param == "memory" else str(tmp_path)
    files, root = filesystem(url)
    content = {
        "a.png": photo(), "b/c.jpg": photo(1, "JPEG"), "b/d.gif": photo(2, "GIF"), "bad.png": b"no photo",
        "notes.txt": b"x", ".hidden.png": photo(), ".thumbs/e.png": photo(), "b/UPPER.PNG": photo(3),
    }  # fmt: skip
    for name, data in content.items():
        files.makedirs(posixpath.dirname(f"{root}/in/{name}"), exist_ok=True)
        files.pipe_file(f"{root}/in/{name}", data)
    yield url
    files.rm(root, recursive=True)


def test_photos_keep_their_places(folder: str, restorer: Restorer) -> None:
    source, target = f"{folder}/in", f"{folder}/out"
    tasks = list(find_tasks(source, target, "r"))
    root = filesystem(target)[1]
    assert [posixpath.relpath(task.target, root) for task in tasks] == [
        "a.png",
        "b/UPPER.PNG",
        "b/c.jpg",
        "b/d.png",
        "bad.png",
    ]
    records = [restore_task(restorer, task, source, target, OPTIONS) for task in tasks]
    assert ["error" in record for record in records] == [False, False, False, False, True]
    assert "not a picture" in records[-1]["error"] and "/in/bad.png" in records[-1]["error"]
    files = filesystem(target)[0]
    made = np.asarray(Image.open(io.BytesIO(files.cat_file(tasks[0].target))))
    np.testing.assert_array_equal(made, restorer.restore(smooth_photo(48, 64), OPTIONS).array)
    assert Image.open(io.BytesIO(files.cat_file(tasks[2].target))).format == "JPEG"
    assert Image.open(io.BytesIO(files.cat_file(tasks[3].target))).format == "PNG"
    left = [name for name in files.find(root) if "tmp" in posixpath.basename(name)]
    assert left == []


def test_done_is_what_was_made_from_this_by_this(folder: str, restorer: Restorer) -> None:
    source, target = f"{folder}/in", f"{folder}/out"
    first, second, *_ = find_tasks(source, target, "r")
    assert not is_done(first, target)
    restore_task(restorer, first, source, target, OPTIONS)
    assert is_done(first, target) and not is_done(second, target)
    (other, *_) = find_tasks(source, target, "another request")
    assert not is_done(other, target)
    files = filesystem(source)[0]
    files.pipe_file(first.source, photo(7) + b" ")
    (changed, *_) = find_tasks(source, target, "r")
    assert not is_done(changed, target), "the photo is another one now"
    restore_task(restorer, changed, source, target, OPTIONS)
    files.rm(changed.target)
    assert not is_done(changed, target), "the result is gone"


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no folder of photos"):
        list(find_tasks(str(tmp_path / "none"), str(tmp_path), "r"))
    with pytest.raises((MissingDependency, RequestError), match="nosuch"):
        filesystem("nosuch://bucket/folder")


def test_a_recipe_travels(restorer: Restorer) -> None:
    recipe: Any = pickle.loads(pickle.dumps((Recipe(engine="onnxruntime", threads=1), OPTIONS)))
    assert recipe == (Recipe(engine="onnxruntime", threads=1), OPTIONS)
    with recipe[0].load() as loaded:
        assert (loaded.engine, loaded.bundle.manifest.name) == ("onnxruntime", "embedded")
