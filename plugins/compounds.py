"""The predefined mapping table: compound tasks and the sub-tasks they break down into (arXiv:2403.00644, 3.2)."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from diffplugin.errors import CheckpointError
from diffplugin.integrity import read_text

FILE = "compounds.toml"
_MAX_BYTES = 2**16  # the shipped table has 2 kB
_MAX_WORDS = 32  # of a phrase, with its gaps
_MAX_GAP = 3  # words that ``*`` stands for at most


@dataclass(frozen=True, kw_only=True)
class Compound:
    """One compound task: what a request must contain, and the ids of the plugins that answer it together."""

    phrases: tuple[str, ...]
    tasks: tuple[str, ...]


Table = Mapping[str, Compound]


def parse_table(text: str, *, where: str) -> dict[str, Compound]:
    """The mapping table in TOML text: ``[name]`` with ``phrases`` and ``tasks``, both lists of texts.

    Raises:
        CheckpointError: not TOML, or all faults in one line.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CheckpointError(f"{where}: not a TOML file ({error})") from None
    faults = [fault for name, entry in values.items() for fault in _faults(name, entry)]
    if faults:
        raise CheckpointError(f"{where}: {'; '.join(faults)}")
    return {
        name: Compound(phrases=tuple(entry["phrases"]), tasks=tuple(entry["tasks"])) for name, entry in values.items()
    }


def _faults(name: str, entry: Any) -> list[str]:
    keys = ("phrases", "tasks")
    if not isinstance(entry, dict):
        return [f"{name} is {entry!r}, expected a table [{name}] with {' and '.join(keys)}"]
    faults = [f"{name}.{key} is unknown (known: {', '.join(keys)})" for key in entry if key not in keys]
    for key in keys:
        value = entry.get(key)
        if value is None:
            faults.append(f"{name}.{key} is missing")
        elif not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
            faults.append(f"{name}.{key} is {value!r}, expected a list of texts that are not empty")
        elif not all(v.isprintable() for v in value):
            faults.append(f"{name}.{key} has characters that cannot be printed")
        elif long := [v for v in value if len(v.split()) > _MAX_WORDS]:
            faults.append(f"{name}.{key} has {long[0][:40]!r}..., expected at most {_MAX_WORDS} words")
    return faults


@functools.cache
def _shipped() -> Table:
    file = resources.files(__package__).joinpath("cards", FILE)
    return parse_table(file.read_text("utf-8"), where=FILE)


def compound_table(*folders: str | Path) -> dict[str, Compound]:
    """The shipped table, replaced or extended by ``compounds.toml`` in each of ``folders`` (or its ``cards/``).

    Raises:
        CheckpointError: the faults of all files at once.
    """
    places = (Path(folder) / place for folder in folders for place in (FILE, f"cards/{FILE}"))
    return read_tables(file for file in places if file.exists())


def read_tables(files: Iterable[Path]) -> dict[str, Compound]:
    """The shipped table, replaced or extended by each of ``files``.

    Raises:
        CheckpointError: the faults of all files at once.
    """
    table = dict(_shipped())
    faults = []
    for file in files:
        try:
            table |= parse_table(read_text(file, limit=_MAX_BYTES), where=str(file))
        except CheckpointError as error:
            faults.append(str(error))
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f"{file}: cannot be read as UTF-8 text ({error})")
    if faults:
        raise CheckpointError(" | ".join(faults))
    return table


def compounds_in(prompt: str, table: Table) -> list[str]:
    """Names of the compound tasks that ``prompt`` asks for, in the table's order.

    A phrase matches whole words in any case; hyphens count as spaces and ``*`` stands for up to three words.
    """
    words = _plain(prompt).split()
    return [name for name, entry in table.items() if any(_matches(phrase, words) for phrase in entry.phrases)]


def expand(prompt: str, table: Table, installed: Iterable[str]) -> list[str]:
    """Ids of the ``installed`` plugins (given and returned in registry order) that answer ``prompt``'s compound
    tasks; empty where it names none."""
    wanted = {task for name in compounds_in(prompt, table) for task in table[name].tasks}
    return [plugin for plugin in installed if plugin in wanted]


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[-‐‑–_]", " ", text).casefold().split())


def _matches(phrase: str, words: Sequence[str]) -> bool:
    """Whether ``words`` contain the phrase.

    Bit i of ``ends`` says that what was read of the phrase so far may end before word i: a few operations on one
    number per word of the phrase, whatever the phrase is.
    """
    parts = _plain(phrase).strip("* ").split()
    every = (1 << len(words)) - 1
    ends = every
    for i, part in enumerate(parts):
        if part == "*":
            for _ in range(_MAX_GAP):
                ends |= ends << 1
        else:
            first, last = i == 0, i == len(parts) - 1
            here = sum(1 << k for k, word in enumerate(words) if _fits(part, word, first=first, last=last))
            ends = (ends & here) << 1
        ends &= every | 1 << len(words)
        if not ends:
            return False
    return True


def _fits(part: str, word: str, *, first: bool, last: bool) -> bool:
    """Whether a word of a request is this one of a phrase; signs may stand before the first and after the last."""
    if part not in word:
        return False
    if part == word:
        return True
    before = "(?<!\\w)" if first else "^"
    after = "(?!\\w)" if last else "$"
    return re.search(f"{before}{re.escape(part)}{after}", word) is not None
