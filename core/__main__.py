"""``python -m diffplugin``: list the commands."""

import sys

from diffplugin.entry import main

if __name__ == "__main__":
    sys.exit(main())
