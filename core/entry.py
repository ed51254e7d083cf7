"""Entry points of the commands: the first code of the package that a shell runs.

They import the command's modules late, so that Ctrl-C and a missing package give one line from the start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from diffplugin.signals import exit_at_once, exit_with


def start(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a command by name; returns its exit code."""
    exit_at_once(name)
    if name in ("dp-infer", "dp-serve"):
        # NumPy's OpenBLAS starts threads that spin for a tenth of a second; these commands multiply no matrices with it
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from diffplugin.streams import open_standard_files

    open_standard_files()
    from diffplugin.command import enter

    code = enter(name, argv)
    exit_with(code)
    return code


def infer() -> int:
    """Entry point of ``dp-infer``."""
    return start("dp-infer")


def serve() -> int:
    """Entry point of ``dp-serve``."""
    return start("dp-serve")


def export() -> int:
    """Entry point of ``dp-export``."""
    return start("dp-export")


def train() -> int:
    """Entry point of ``dp-train``."""
    return start("dp-train")


def evaluate() -> int:
    """Entry point of ``dp-eval``."""
    return start("dp-eval")


def bench() -> int:
    """Entry point of ``dp-bench``."""
    return start("dp-bench")


def main() -> int:
    """``python -m diffplugin``: list the commands."""
    return start("diffplugin")


if __name__ == "__main__":
    sys.exit(main())
