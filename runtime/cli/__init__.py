"""The command ``dp-infer``."""

import sys

if sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv:  # python -m diffplugin.runtime.cli is on its way
    from diffplugin.signals import exit_at_once

    exit_at_once("dp-infer")

from diffplugin.runtime.cli.main import main

__all__ = ["main"]
