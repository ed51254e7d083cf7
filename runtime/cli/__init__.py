"""``dp-infer``."""

from diffplugin.runtime.cli.main import main

__all__ = ["main"]
