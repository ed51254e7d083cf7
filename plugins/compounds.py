"""The predefined mapping table: compound tasks and the sub-tasks they break down into (arXiv:2403.00644, 3.2)."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from diffplugin.errors import CheckpointError

FILE = "compounds.toml"


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
    table = dict(_shipped())
    faults = []
    for file in (Path(folder) / place for folder in folders for place in (FILE, f"cards/{FILE}")):
        if not file.is_file():
            continue
        try:
            table |= parse_table(file.read_text(encoding="utf-8"), where=str(file))
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
    text = _plain(prompt)
    found = {name: [p for p in entry.phrases if _pattern(p).search(text)] for name, entry in table.items()}
    bare = _without(text, [phrase for phrases in found.values() for phrase in phrases])
    nothing_else = all(word in _FILLERS for word in _words(bare))
    return [
        name
        for name, phrases in found.items()
        if phrases and (nothing_else or any(_asked_for(phrase).search(text) for phrase in phrases))
    ]


def expand(prompt: str, table: Table, installed: Iterable[str]) -> list[str]:
    """Ids of the ``installed`` plugins (given and returned in registry order) that answer ``prompt``'s compound
    tasks; empty where it names none."""
    wanted = {task for name in compounds_in(prompt, table) for task in table[name].tasks}
    return [plugin for plugin in installed if plugin in wanted]


_VERBS = (
    "remove|fix|clear|clean|restore|repair|correct|undo|improve|enhance|rescue|save|reduce|lessen|cure|heal|mend|erase"
    "|delete|eliminate|banish|lift|cut|drop|lose|kill|retouch|redo|recover|revive|get rid of|take away|take out"
    "|clean up|clear up|sort out|deal with|do something about|help with|no more|without|against"
)
_FILLERS = frozenset(
    (
        "a an the this that these those my our your his her their some any all of and or in on at to from for with by "
        "it is was are be i we you me us please pls kindly thanks thank hi hey hello can could would will should want "
        "need like help just so very too bit little up out away off here there photo photos picture pictures pic "
        "pics image images shot shots snap photograph one old new taken took make look better good right "
        + _VERBS.replace("|", " ")
    ).split()
)
_NEGATION = r"(?<!not )(?<!n't )(?<!nt )(?<!never )(?<!n\u2019t )"


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[-‐‑–_]", " ", text).casefold().split())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)?", text)


def _without(text: str, phrases: Iterable[str]) -> str:
    for phrase in phrases:
        text = _pattern(phrase).sub(" ", text)
    return text


@functools.lru_cache(maxsize=1024)
def _pattern(phrase: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){_body(phrase)}(?!\w)")


@functools.lru_cache(maxsize=1024)
def _asked_for(phrase: str) -> re.Pattern[str]:
    """The phrase as the object of a verb that asks for it, or beginning with such a verb; not denied."""
    determiners = r"(?:(?:all|of|the|this|that|these|those|any|my|our|some|from|out|a|an) ){0,4}"
    own_verb = re.match(rf"(?:{_VERBS})(?!\w)", _plain(phrase))
    lead = "" if own_verb else rf"(?:{_VERBS}) {determiners}"
    return re.compile(rf"(?<!\w){_NEGATION}{lead}{_body(phrase)}(?!\w)")


def _body(phrase: str) -> str:
    gap = r"(?:\S+ ){0,3}"
    words = _plain(phrase).strip("* ").split()
    return "".join(gap if word == "*" else re.escape(word) + " " for word in words).removesuffix(" ")
