"""``python -m diffplugin``: what there is."""

import sys

from diffplugin.entry import main

if __name__ == "__main__":
    sys.exit(main())
