"""Where the packages lie: the top-level folders are subpackages of ``diffplugin``, ``core/`` is the package itself.

Everything else about the distribution stands in ``pyproject.toml`` (decision 7).
"""

from __future__ import annotations

import atexit
import shutil
import tempfile

from setuptools import find_packages, setup

ROOMS = ("bench", "engines", "export", "plugins", "runtime")

rooms = [name for room in ROOMS for name in find_packages(include=[room, f"{room}.*"])]
folders = {"diffplugin": "core"} | {f"diffplugin.{name}": name.replace(".", "/") for name in rooms}

# A build folder of its own: in ./build a module that was renamed would stay, and get into the next wheel.
build = tempfile.mkdtemp(prefix="diffplugin-build-")
atexit.register(shutil.rmtree, build, ignore_errors=True)

setup(
    packages=list(folders),
    package_dir=folders,
    package_data={
        "diffplugin": ["py.typed", "embedded/**/*"],
        "diffplugin.plugins": ["cards/*.toml"],
        "diffplugin.runtime.serve": ["page/**/*"],
        "diffplugin.plugins.train": ["requests/*.csv"],
    },
    options={"build": {"build_base": build}},
)
