"""Where the packages lie: the top-level folders are subpackages of ``diffplugin``, ``core/`` is the package itself.

Everything else about the distribution stands in ``pyproject.toml`` (docs/decisions/0007-the-packages.md).
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
import tomllib
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
LINK = re.compile(r"""(\]\(|(?:src|href)=["'])(?!#|[a-z]+:)([^)\s"']+)""")
PICTURES = (".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp")


def find_folders() -> dict[str, str]:
    """Packages and their folders: ``core`` is ``diffplugin``, ``engines`` is ``diffplugin.engines``, and so on."""
    found = find_packages(str(ROOT), exclude=["tests", "tests.*"])
    names = {name: "diffplugin" + (name[4:] if name.partition(".")[0] == "core" else f".{name}") for name in found}
    return {names[name]: name.replace(".", "/") for name in sorted(found)}


def readme() -> str:
    """README with links that work anywhere, such as on a package index: relative ones lead to the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    repository = project["urls"]["Repository"]

    def absolute(link: re.Match[str]) -> str:
        path = link[2].removeprefix("./")
        view = "raw" if path.partition("#")[0].lower().endswith(PICTURES) else "blob"
        return f"{link[1]}{repository}/{view}/main/{path}"

    return LINK.sub(absolute, (ROOT / "README.md").read_text("utf-8"))


# A build folder of its own: in ./build a module that was renamed would stay, and get into the next wheel.
build = tempfile.mkdtemp(prefix="diffplugin-build-")
atexit.register(shutil.rmtree, build, ignore_errors=True)

folders = find_folders()
setup(
    packages=list(folders),
    package_dir=folders,
    # Only what is read at run time: not all that MANIFEST.in puts into the source distribution.
    include_package_data=False,
    package_data={
        "diffplugin": ["py.typed", "embedded/**/*"],
        "diffplugin.plugins": ["cards/*.toml", "general_wishes.toml", "diagnosis/*"],
        "diffplugin.runtime.serve": ["page/**/*"],
        "diffplugin.plugins.train": ["requests/*.csv", "requests/*.toml", "requests/*.txt"],
    },
    long_description=readme(),
    long_description_content_type="text/markdown",
    options={"build": {"build_base": build}},
)
