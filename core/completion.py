"""Completion scripts for shells, made from a command's own parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator

from diffplugin.errors import MissingDependency

_FOLDERS = ("DIR", "FOLDER", "BUNDLE")


def completion_script(parser: argparse.ArgumentParser, shell: str, path_type: Callable[[str], object]) -> str:
    """A script that completes the options of ``parser``, their choices, and files and folders where an option takes a
    path.

    Args:
        path_type: the type of options that are paths.

    Raises:
        MissingDependency: the package shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise MissingDependency(
            "--print-completion needs the package shtab: pip install 'diffplugin[completion]'"
        ) from None
    for action in _actions(parser):
        named = re.split(r"\W+", str(action.metavar or ""))
        if "FILE" not in named and set(_FOLDERS) & set(named):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is path_type or {"FILE", "INPUT"} & set(named):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and positional argument of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
