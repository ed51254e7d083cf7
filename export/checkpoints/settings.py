"""Single settings of a config file: allowed values, and the meaning of a missing one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Read = Callable[[Any], Any]  # the value as it is used; ValueError says what was expected
MAX_WIDTH, MAX_LEVELS, MAX_LAYERS = 2**16, 8, 128  # far beyond any published model; a config must not build for hours


@dataclass(frozen=True)
class Setting:
    """``default``: the library's, if the key is absent. ``read``: checks and normalises a value. ``fixed``: only the
    default is allowed, so a missing key needs no note."""

    default: Any
    read: Read
    fixed: bool = False


def fixed(value: Any) -> Setting:
    """A setting that Stable Diffusion 1.x fixes."""
    return Setting(value, one_of(value), fixed=True)


def whole(low: int, high: int) -> Read:
    """A whole number. Pairs of equal numbers, as libraries write for square sizes, count as one."""

    def read(value: Any) -> int:
        if isinstance(value, list) and value and all(type(v) is int and v == value[0] for v in value):
            value = value[0]
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return read


def number(low: float, high: float) -> Read:
    """A finite number, above ``low``."""

    def read(value: Any) -> Any:
        if type(value) not in (int, float) or not low < value <= high:  # NaN is neither
            raise ValueError(f"a number above {low:g} and up to {high:g}")
        return value

    return read


def flag(value: Any) -> bool:
    """True, false, or null for false, as in Python."""
    if value is not None and not isinstance(value, bool):
        raise ValueError("true or false")
    return bool(value)


def off(value: Any) -> bool:
    """A switch that Stable Diffusion 1.x does not use."""
    if value:
        raise ValueError("false")
    return False


def flags(value: Any) -> Any:
    """A flag, or a list of them, one for each level."""
    return [flag(v) for v in value] if isinstance(value, list) else flag(value)


def widths(value: Any) -> list[int]:
    """Channels of each level."""
    return [whole(1, MAX_WIDTH)(v) for v in listed(value)]


def counts(value: Any) -> list[int]:
    """Blocks of each level."""
    return [whole(0, MAX_LAYERS)(v) for v in listed(value)]


def heads(value: Any) -> Any:
    """A number of heads, or a list of them, one for each level."""
    return widths(value) if isinstance(value, list) else whole(1, MAX_WIDTH)(value)


def listed(value: Any) -> list[Any]:
    """A list of one entry for each level."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_LEVELS:
        raise ValueError(f"a list of 1 to {MAX_LEVELS} entries")
    return value


def blocks(*names: str) -> Read:
    """A list of block names, one for each level."""

    def read(value: Any) -> list[str]:
        if unknown := [name for name in listed(value) if name not in names]:
            raise ValueError(f"blocks {' or '.join(names)}, not {unknown[0]!r}")
        return list(value)

    return read


def one_of(*allowed: Any) -> Read:
    """One of these values; 1 and 1.0 are the same, 1 and true are not."""

    def read(value: Any) -> Any:
        for one in allowed:
            if value == one and isinstance(value, bool) == isinstance(one, bool):
                return value
        raise ValueError(" or ".join(shown(one) for one in allowed))

    return read


def of_each(most: int, read: Read, *, least: int | None = None) -> Read:
    """A list of ``least`` (None: ``most``) to ``most`` entries."""
    least = most if least is None else least

    def read_all(value: Any) -> list[Any]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise ValueError(f"a list of {most} entries" if least == most else f"a list of {least} to {most} entries")
        return [read(one) for one in value]

    return read_all


def name(value: Any) -> str:
    """A plugin's id."""
    if not isinstance(value, str) or not value.isprintable() or not value.strip():
        raise ValueError("a name")
    return value


def triple(low: float, high: float) -> Read:
    """Three numbers, one for each colour."""

    def read(value: Any) -> list[float]:
        if not isinstance(value, list) or len(value) != 3:
            raise ValueError("three numbers")
        return [float(number(low, high)(v)) for v in value]

    return read


def side(*keys: str) -> Read:
    """The side of a square in pixels: a number, or an object with one of ``keys``, or with all of them if they
    agree.
    """

    def read(value: Any) -> int:
        found: list[Any] = list(value.values()) if isinstance(value, dict) and set(value) <= set(keys) else [value]
        if not found or any(type(v) is not int or v != found[0] or not 1 <= v <= 4096 for v in found):
            raise ValueError(f"one side in pixels, up to 4096 (or an object with {', '.join(keys)})")
        return int(found[0])

    return read


def read_settings(
    table: Mapping[str, Setting], config: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], list[str]]:
    """(the config with every setting of ``table``, its faults). Other keys stay as they are."""
    made, faults = dict(config), []
    for key, setting in table.items():
        if key not in config:
            made[key] = setting.default
            continue
        try:
            made[key] = setting.read(config[key])
        except ValueError as error:
            faults.append(f"{where}: {key} is {shown(config[key])}, expected {error}")
    return made, faults


def shown(value: Any) -> str:
    """A value as in its file, shortened to fit a line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
