"""``python -m diffplugin.runtime.cli``: as ``dp-infer``."""

import sys

from diffplugin.command import infer

if __name__ == "__main__":
    sys.exit(infer())
