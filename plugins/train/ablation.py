"""``dp-eval ablation``: the paper's tables 3, 4 and 6 and its data set study, trained, exported, scored and printed
beside the paper's figures."""

from __future__ import annotations

import argparse

from diffplugin.errors import RequestError
from diffplugin.plugins.train.ablation_tables import DESIGN, PLACES


def run(args: argparse.Namespace) -> None:
    """Train what a table compares, and write ``ablation-<table>.md`` and ``.json``.

    Raises:
        RequestError: no such row or no test photos.
    """
    from diffplugin.plugins.train import plots

    known = {"design": tuple(DESIGN), "places": PLACES}.get(args.table)
    if known and (unknown := [row for row in args.rows or () if row not in known]):
        raise RequestError(f"--rows {', '.join(unknown)}: expected some of {', '.join(known)}")
    if args.work is None:
        raise RequestError("dp-eval ablation needs --work with the photos of dp-train photos")
    if args.table == "selector":
        from diffplugin.plugins.train import ablation_selector

        table, values = ablation_selector.run(args)
    else:
        from diffplugin.plugins.train import ablation_plugins

        table, values = ablation_plugins.run(args)
    print(table)
    plots.write_table(args.out, f"ablation-{args.table}", table, values)
