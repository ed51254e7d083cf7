"""Options that ``dp-train`` and ``dp-eval`` share."""

from __future__ import annotations

import argparse

from diffplugin.command import path


def add_photo_folders(parser: argparse.ArgumentParser, what: str) -> None:
    """``--add DIR``: folders of photographs with an index (:func:`.photos.read_index`); ``what`` they are for."""
    parser.add_argument("--add", type=path, action="append", default=[], metavar="DIR", help=f"{what}; repeatable")
