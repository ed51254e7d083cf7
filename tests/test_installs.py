"""Every form in which people get the package, each in a fresh environment with real dependencies (slow).

tests/test_packaging.py builds and runs a wheel in the quick suite.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from tests.sources import copy_without_links, make_repository
from tests.test_imports import declared
from tests.test_packaging import build, photo

pytestmark = pytest.mark.slow
BIN = "Scripts" if os.name == "nt" else "bin"
FORMS = ("clone", "zip", "sdist", "wheel", "git+file", "editable", "strict editable")
# The extra that brings the engine of an ordinary computer, where it is one.
RUNTIME = "[cpu]" if "cpu" in declared()[1] else ""
EXTRAS = {
    "dp-bench": (("run", "--out", "out"), "bench"),
    "dp-eval": (("restore", "--work", "work", "--out", "out"), "train"),
    "dp-export": (("--out", "out"), "export"),
    "dp-train": (("base", "--work", "work"), "train"),
}


def run(*command: object, cwd: Path, code: int = 0) -> str:
    """Output of a command in an environment where no other diffplugin can be found."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the present files, without links."""
    folder = copy_without_links(tmp_path_factory.mktemp("origin"))
    make_repository(folder)
    return folder


def arguments_for(form: str, origin: Path, folder: Path) -> tuple[tuple[object, ...], Path]:
    """What pip is given for a form, and the folder of the clone that it comes from (or the place of the archive)."""
    clone = folder / "clone"
    if form in ("sdist", "wheel"):
        return (named(build(origin, form, folder / "dist").as_uri()),), folder
    if form == "zip":
        archive = folder / "main.zip"
        run("git", "archive", "--format=zip", "--prefix=diffplugin-main/", "-o", archive, "HEAD", cwd=origin)
        return (named(archive.as_uri()),), folder
    if form == "git+file":
        return (named(f"git+{origin.as_uri()}"),), folder
    run("git", "clone", "--quiet", "-c", "core.symlinks=false", origin.as_uri(), clone, cwd=folder)
    if form == "clone":
        return (named(clone.as_uri()),), clone
    strict = ("--config-settings", "editable_mode=strict") if form == "strict editable" else ()
    return ("-e", f"{clone}{RUNTIME}", *strict), clone


def named(address: str) -> str:
    return f"diffplugin{RUNTIME} @ {address}"


@pytest.mark.skipif(sys.platform == "win32", reason="git+file addresses and archives are made with POSIX paths here")
@pytest.mark.parametrize("form", FORMS)
def test_it_installs_and_restores_a_photo(form: str, origin: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python, infer = environment / BIN / "python", environment / BIN / "dp-infer"
    given, clone = arguments_for(form, origin, tmp_path)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *given, cwd=tmp_path)

    run(infer, photo(tmp_path), "brighten this dark photo", "-o", tmp_path / "out.png", cwd=clone)
    from PIL import Image

    before, after = (np.asarray(Image.open(tmp_path / name), dtype=float) for name in ("photo.png", "out.png"))
    assert after.shape == before.shape and after.mean() > before.mean() + 10, (before.mean(), after.mean())
    for cwd in (clone, tmp_path):  # a clone's root hides nothing
        assert "dp-infer" in run(python, "-m", "diffplugin", cwd=cwd)
        file = run(python, "-c", "import diffplugin.runtime as r; print(r.__file__)", cwd=cwd).strip()
        home = clone if "editable" in form else environment
        assert Path(file).is_relative_to(home), file
    checkpoint = "from diffplugin.export.embedded import embedded_checkpoint_folder as f; print(f())"
    if form in ("clone", "editable", "strict editable"):
        assert run(python, "-c", checkpoint, cwd=tmp_path).strip() == str(clone / "plugins" / "embedded_checkpoint")
    else:
        assert "source distribution" in run(python, "-c", checkpoint, cwd=tmp_path, code=1)
    if form == "wheel":
        check_extras(environment, tmp_path)
    if form == "strict editable":
        check_tools(python, clone)


def check_extras(environment: Path, cwd: Path) -> None:
    """Without extras every command has its help, and names its extra in one line."""
    for command, (arguments, extra) in EXTRAS.items():
        assert "--help" in run(environment / BIN / command, "--help", cwd=cwd)
        said = run(environment / BIN / command, *arguments, cwd=cwd, code=1)
        assert said.startswith(f"{command}: ") and said.count("\n") == 1, said
        assert f"pip install 'diffplugin[{extra}]'" in said


def check_tools(python: Path, clone: Path) -> None:
    """mypy and pytest agree with the interpreter about where the modules are."""
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "mypy", "pytest", cwd=clone)
    assert "Success" in run(python, "-m", "mypy", "-p", "diffplugin.runtime", cwd=clone)
    assert " passed" in run(python, "-m", "pytest", "-q", "tests/core/test_shapes.py", cwd=clone)
    assert " passed" in run(python.with_name("pytest"), "-q", "tests/core/test_shapes.py", cwd=clone)
