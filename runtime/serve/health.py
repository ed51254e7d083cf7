"""``python -m diffplugin.runtime.serve.health [URL]``: exit code 0 if the server answers, for images without curl."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Sequence

DEFAULT = "http://127.0.0.1:8000/healthz"


def main(argv: Sequence[str]) -> int:
    """0: it answers; 1: it does not."""
    url = argv[0] if argv else DEFAULT
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return 0 if answer.status == 200 else 1
    except (OSError, ValueError):
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
