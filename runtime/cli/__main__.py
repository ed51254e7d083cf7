"""``python -m diffplugin.runtime.cli``: the same as ``dp-infer``."""

import sys

from diffplugin.entry import infer

if __name__ == "__main__":
    sys.exit(infer())
