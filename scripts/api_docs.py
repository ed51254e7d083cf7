"""Make the API reference from the docstrings: ``python scripts/api_docs.py [OUT]`` (default: build/api).

Warnings are errors: a name that does not resolve or a broken docstring fails the build.
"""

from __future__ import annotations

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import diffplugin

# Not part of what others build on: measurement, training, networks.
EXCLUDED = tuple(
    f"!diffplugin.{room}" for room in ("bench", "plugins.native", "plugins.networks", "plugins.train", r".*__main__")
)


def main(out: Path) -> None:
    warnings.simplefilter("error")
    for name in diffplugin.__all__:  # they are imported when first named; pdoc looks for what is there
        setattr(diffplugin, name, getattr(diffplugin, name))
    found = (module.name for module in pkgutil.iter_modules(diffplugin.__path__, "diffplugin."))
    rooms = [name for name in found if not name.endswith("__main__")]  # pdoc walks what is below them
    pdoc.render.configure(docformat="google", footer_text=f"diffplugin {diffplugin.__version__}")
    pdoc.pdoc("diffplugin", *rooms, *EXCLUDED, output_directory=out)
    print(f"{out / 'index.html'}: {len(list(out.rglob('*.html')))} pages")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/api"))
