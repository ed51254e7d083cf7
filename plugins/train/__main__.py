"""``python -m diffplugin.plugins.train``: the same as ``dp-train``."""

from diffplugin.plugins.train.cli import main

raise SystemExit(main())
