"""The package installs from every form in which people get it, and carries what it reads at run time."""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sources import FOLDERS, ROOT, copy_without_links, is_repository, module_files, repository_files

REPOSITORY = "https://github.com/diffplugin/diffplugin"
NOT_IN_WHEEL = {"diffplugin.bench.suites.test_graphs"}  # run by pytest from a clone: bench/README.md


def build(source: Path, kind: str, out: Path) -> Path:
    """Build a "wheel" or "sdist" of ``source`` with the backend of pyproject.toml, in a process of its own."""
    pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools 77 or newer")
    code = "import sys; from setuptools import build_meta; getattr(build_meta, f'build_{sys.argv[1]}')(sys.argv[2])"
    out.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", code, kind, str(out)], cwd=source, check=True, capture_output=True)
    (built,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def modules_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name.removesuffix(".py").split("/") for name in archive.namelist() if name.endswith(".py")]
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_without_links(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked: a folder for ``sys.path``, as an installer makes it."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(installed: Path) -> Message:
    (path,) = installed.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text("utf-8"))


def run_installed(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python with the unpacked wheel before any other diffplugin, and nothing of the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, check=False, capture_output=True, text=True)


def photo(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 120, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((128, 96)).save(folder / "photo.png")
    return folder / "photo.png"


def test_the_layout_needs_no_links() -> None:
    links = [name for name in repository_files() if (ROOT / name).is_symlink()]
    assert not links
    assert not (ROOT / "diffplugin").exists(), "it would hide the installed package from a clone's root"


def test_the_wheel_restores_a_photo(installed: Path, tmp_path: Path) -> None:
    """Built from a copy without links; every other form is in the slow test below."""
    arguments = ("-m", "diffplugin.runtime.cli", str(photo(tmp_path)), "--plugin", "lowlight", "-o", "out.png")
    done = run_installed(installed, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (np.asarray(Image.open(tmp_path / name), dtype=float) for name in ("photo.png", "out.png"))
    assert after.shape == before.shape and after.mean() > before.mean() + 10, (before.mean(), after.mean())
    where = run_installed(installed, "-c", "import diffplugin; print(diffplugin.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(installed)


def test_the_wheel_has_every_module_and_no_training_weights(wheel: Path) -> None:
    assert modules_of(wheel) == set(module_files()) - NOT_IN_WHEEL
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.startswith("diffplugin/plugins/embedded_checkpoint")]
    embedded = {name.removeprefix("core/") for name in repository_files() if name.startswith("core/embedded/")}
    assert {name.removeprefix("diffplugin/") for name in names if name.startswith("diffplugin/embedded/")} == embedded
    assert "diffplugin/py.typed" in names
    assert wheel.stat().st_size < 37e6, f"{wheel.stat().st_size} bytes; 35.5 million are expected"


CHECKPOINT = "from diffplugin.export.embedded import embedded_checkpoint_folder as f; print(f())"


def test_an_installed_wheel_says_where_the_embedded_checkpoint_is(installed: Path, tmp_path: Path) -> None:
    """One line that names the repository and the way; not the folder of some other installation."""
    done = run_installed(installed, "-c", CHECKPOINT, cwd=tmp_path)
    error = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "diffplugin.errors.CheckpointError: " in error, done.stderr
    for part in (str(installed), f"git clone {REPOSITORY}", "source distribution", "pip install -e", "--base"):
        assert part in error, (part, error)


@pytest.mark.parametrize("editable", [False, True])
def test_pip_install_from_a_clone_finds_the_embedded_checkpoint(
    installed: Path, tmp_path: Path, editable: bool
) -> None:
    """pip notes the folder that it installed from (PEP 610); an archive's address is no folder."""
    own = shutil.copytree(installed, tmp_path / "own", ignore=shutil.ignore_patterns("embedded"))
    (info,) = own.glob("*.dist-info")
    note = {"url": ROOT.as_uri(), "dir_info": {"editable": True} if editable else {}}
    (info / "direct_url.json").write_text(json.dumps(note))
    done = run_installed(own, "-c", CHECKPOINT, cwd=tmp_path)
    assert done.stdout.strip() == str(ROOT / "plugins" / "embedded_checkpoint"), done.stderr
    (info / "direct_url.json").write_text(json.dumps({"url": ROOT.as_uri(), "archive_info": {}}))
    assert run_installed(own, "-c", CHECKPOINT, cwd=tmp_path).returncode == 1


def test_the_metadata_names_addresses_and_licences(metadata: Message, installed: Path) -> None:
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert urls["Homepage"] == urls["Repository"] == REPOSITORY
    assert urls["Paper"] == "https://arxiv.org/abs/2403.00644"
    assert metadata["License-Expression"] == "Apache-2.0"
    licences = metadata.get_all("License-File", [])
    assert licences == ["LICENSE", "NOTICE", "docs/examples/LICENSES.md"]
    for name in licences:
        (found,) = installed.glob(f"*.dist-info/licenses/{name}")
        assert found.read_bytes() == (ROOT / name).read_bytes()
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_readme_links_work_on_a_package_index(metadata: Message) -> None:
    """None is relative, and what a link into the repository names is there."""
    text = str(metadata.get_payload())
    assert text.startswith((ROOT / "README.md").read_text("utf-8")[:40])
    links = re.findall(r"""\]\(([^)\s]+)|(?:src|href)=["']([^"']+)""", text)
    targets = [markdown or html for markdown, html in links]
    assert [link for link in targets if not link.startswith(("https://", "#"))] == []
    ours = [link.removeprefix(REPOSITORY) for link in targets if link.startswith(REPOSITORY + "/")]
    assert len(ours) >= 5
    for link in ours:
        path = re.sub(r"^/(blob|raw|tree)/main/|#.*", "", link)
        assert (ROOT / path).exists(), link


def test_the_address_stands_in_one_place() -> None:
    """README's links, metadata and messages are made from pyproject.toml's."""
    texts = [name for name in repository_files() if name.endswith((".py", ".toml", ".sh", ".txt"))]
    found = [name for name in texts if REPOSITORY in (ROOT / name).read_text("utf-8")]
    assert set(found) <= {"pyproject.toml", "tests/test_packaging.py"}, found


def test_a_renamed_module_leaves_nothing_in_the_next_wheel(tmp_path: Path) -> None:
    """Built twice in one folder, with what tools leave there in between; big files are left out for speed."""
    copy = copy_without_links(tmp_path / "copy")
    shutil.rmtree(copy / "core" / "embedded")
    shutil.rmtree(copy / "plugins" / "embedded_checkpoint")
    before = modules_of(build(copy, "wheel", tmp_path / "first"))
    old = copy / "engines" / "pages.py"
    old.rename(old.with_name("leaves.py"))
    after = modules_of(build(copy, "wheel", tmp_path / "second"))
    assert before - after == {"diffplugin.engines.pages"}
    assert after - before == {"diffplugin.engines.leaves"}
    assert not (copy / "build").exists()


def test_a_new_folder_becomes_a_package(tmp_path: Path) -> None:
    """Packages are found, not listed."""
    for name in ("engines/new", "brandnew", "core/inner"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    for name in ("core", "engines"):
        (tmp_path / name / "__init__.py").write_text('__version__ = "1"')
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    names = {"diffplugin", "diffplugin.inner", "diffplugin.engines", "diffplugin.engines.new", "diffplugin.brandnew"}
    assert modules_of(build(tmp_path, "wheel", tmp_path / "out")) == names


@pytest.mark.skipif(not is_repository(), reason="compares with the repository")
def test_the_sdist_is_the_repository(source: Path, tmp_path: Path) -> None:
    """So it builds, and its tests run."""
    with tarfile.open(build(source, "sdist", tmp_path / "sdist")) as archive:
        names = {name.partition("/")[2] for name in (file.name for file in archive if file.isfile())}
    missing = [name for name in repository_files(tracked=True) if name not in names]
    assert not missing, f"add them to MANIFEST.in: {missing}"
    made = re.compile(r"(^|/)(__pycache__|\.venv[^/]*|build|dist)/|\.pyc$")
    assert not [name for name in names if made.search(name)]


def test_folders_are_what_the_repository_has() -> None:
    """The other tests would pass over a folder that they do not know."""
    assert FOLDERS >= ("bench", "core", "engines", "export", "plugins", "runtime")
