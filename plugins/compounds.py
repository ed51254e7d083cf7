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

    A phrase matches whole words in any case; hyphens count as spaces and ``*`` stands for up to three words. It counts
    where it is what is asked for, not where it is mentioned: after a verb that asks for it ("remove all of the bad
    weather behind my house"), or where the request holds nothing else but words that carry no meaning of their own
    ("a rainy night, please"). Otherwise the selector alone decides.
    """
    words = _plain(prompt).split()
    found = {name: [span for p in entry.phrases for span in _spans(p, words)] for name, entry in table.items()}
    covered = {k for spans in found.values() for start, end, _ in spans for k in range(start, end)}
    rest = (part for k, word in enumerate(words) if k not in covered for part in _WORD.findall(word))
    nothing_else = all(part in _FILLERS for part in rest)
    return [
        name
        for name, spans in found.items()
        if spans and (nothing_else or any(_asked_for(words, start, verb) for start, _, verb in spans))
    ]


def expand(prompt: str, table: Table, installed: Iterable[str]) -> list[str]:
    """Ids of the ``installed`` plugins (given and returned in registry order) that answer ``prompt``'s compound
    tasks; empty where it names none."""
    wanted = {task for name in compounds_in(prompt, table) for task in table[name].tasks}
    return [plugin for plugin in installed if plugin in wanted]


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[-‐‑–_]", " ", text).casefold().split())


def _spans(phrase: str, words: Sequence[str]) -> list[tuple[int, int, bool]]:
    """Where ``words`` contain the phrase: (first word, word after the last, the phrase itself begins with a verb that
    asks). Each beginning goes with the nearest end."""
    parts = _plain(phrase).strip("* ").split()
    if not parts:  # only gaps
        return [(0, 0, False)]
    ends = _ends(parts, words)
    if not ends:
        return []
    verb = any(tuple(parts[: len(v)]) == v for v in _VERBS)
    count = len(words)
    backwards = _ends(parts[::-1], words[::-1], reverse=True)
    starts = [k for k in range(count) if backwards >> (count - k) & 1]
    found, after = [], [k for k in range(count + 1) if ends >> k & 1]
    for start in starts:
        while after and after[0] <= start:
            after.pop(0)
        if after:
            found.append((start, after[0], verb))
    return found


def _ends(parts: Sequence[str], words: Sequence[str], *, reverse: bool = False) -> int:
    """Where ``parts`` end in ``words``: bit i for "before word i"; 0: nowhere. ``reverse``: both are given backwards.

    Bit i says that what was read of the phrase so far may end before word i: a few operations on one number per word
    of the phrase, whatever the phrase is.
    """
    every = (1 << len(words)) - 1
    ends = every
    places: dict[str, int] = {}  # word -> where it stands, a bit each
    for k, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << k
    for i, part in enumerate(parts):
        if part == "*":
            for _ in range(_MAX_GAP):
                ends |= ends << 1
        else:
            first, last = i == 0, i == len(parts) - 1
            if reverse:
                first, last = last, first
            here = sum(bits for word, bits in places.items() if _fits(part, word, first=first, last=last))
            ends = (ends & here) << 1
        ends &= every | 1 << len(words)
        if not ends:
            return 0
    return ends


def _asked_for(words: Sequence[str], start: int, verb: bool) -> bool:
    """The phrase at ``start`` is the object of a verb that asks, or begins with one; and nobody said not to."""
    if verb:
        return not _denied(words, start)
    for skipped in range(_MAX_DETERMINERS + 1):
        end = start - skipped
        if end < 1 or any(word not in _DETERMINERS for word in words[end:start]):
            return False
        for one in _VERBS:
            begin = end - len(one)
            if begin >= 0 and tuple(re.sub(r"^\W+", "", word) for word in words[begin:end]) == one:
                return not _denied(words, begin)
    return False


def _denied(words: Sequence[str], start: int) -> bool:
    """The word before says not to: "do not remove", "don't fix"."""
    before = words[start - 1].replace("\u2019", "'") if start else ""
    return before in ("not", "never", "dont", "no") or before.endswith("n't")


def _fits(part: str, word: str, *, first: bool, last: bool) -> bool:
    """Whether a word of a request is this one of a phrase; signs may stand before the first and after the last."""
    if part not in word:
        return False
    if part == word:
        return True
    before = "(?<!\\w)" if first else "^"
    after = "(?!\\w)" if last else "$"
    return re.search(f"{before}{re.escape(part)}{after}", word) is not None


_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_MAX_DETERMINERS = 4
_VERBS = tuple(
    tuple(verb.split())
    for verb in (
        *("remove", "fix", "clear", "clean", "restore", "repair", "correct", "undo", "improve", "enhance", "rescue"),
        *("save", "reduce", "lessen", "cure", "heal", "mend", "erase", "delete", "eliminate", "banish", "lift", "cut"),
        *("drop", "lose", "kill", "retouch", "redo", "recover", "revive", "get rid of", "take away", "take out"),
        *("clean up", "clear up", "sort out", "deal with", "do something about", "help with", "no more", "without"),
        "against",
    )
)
_DETERMINERS = frozenset(
    ("all", "of", "the", "this", "that", "these", "those", "any", "my", "our", "some", "from", "out", "a", "an")
)
_FILLERS = _DETERMINERS.union(
    (word for verb in _VERBS for word in verb),
    ("your", "his", "her", "their", "and", "or", "in", "on", "at", "to", "for", "by", "it", "is", "was", "are", "be"),
    ("i", "we", "you", "me", "us", "please", "pls", "kindly", "thanks", "thank", "hi", "hey", "hello", "can", "could"),
    ("would", "will", "should", "want", "need", "like", "just", "so", "very", "too", "bit", "little", "off", "here"),
    ("there", "photo", "photos", "picture", "pictures", "pic", "pics", "image", "images", "shot", "shots", "snap"),
    ("photograph", "one", "old", "new", "taken", "took", "make", "look", "better", "good", "right", "again"),
)
