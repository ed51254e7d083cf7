"""The repository's files and modules, as the tests of packaging and of imports see them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = tuple(sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"))
_MADE = ("__pycache__", "build", "dist")  # what is made in a checkout, beside hidden folders and *.egg-info


def is_repository() -> bool:
    return (ROOT / ".git").exists() and shutil.which("git") is not None


def repository_files(tracked: bool = False) -> list[str]:
    """Files of the repository, with new ones or not, relative with ``/``; without git, every file that nothing made."""
    if is_repository():
        new = () if tracked else ("--others", "--exclude-standard")
        listed = _git(ROOT, "ls-files", "-z", "--cached", *new).split("\0")
        return sorted(name for name in listed if name and os.path.lexists(ROOT / name))
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            f
            for f in folders
            if f not in _MADE and not f.endswith(".egg-info") and f[:2] not in (".v", ".m", ".p", ".r")
        ]
        found += [(Path(folder) / name).relative_to(ROOT).as_posix() for name in files]
    return sorted(name for name in found if name not in ("PKG-INFO", "setup.cfg"))


def copy_without_links(target: Path) -> Path:
    """The repository as a system without symbolic links checks it out: a link becomes a file that holds its target."""
    for name in repository_files():
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.write_text(str(source.readlink()))
        else:
            shutil.copyfile(source, copy)
    return target


def make_repository(folder: Path) -> str:
    """One commit of everything in ``folder``; returns its URL."""
    _git(folder, "init", "--quiet")
    _git(folder, "add", "--all")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    _git(folder, *identity, "commit", "--quiet", "--message", "all", "--no-verify")
    return folder.as_uri()


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def module_files() -> dict[str, Path]:
    """Every module of the package by its import name, and its file."""
    found = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            parts = ["diffplugin", *(parts[1:] if folder == "core" else parts)]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found
