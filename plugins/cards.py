"""Task-Plugins as data: one card per task, and the registry that orders them.

A card is a small TOML file. The eight released tasks ship with the package; a folder of the user's own may replace
or add cards without touching the code.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from diffplugin.errors import CheckpointError, RequestError
from diffplugin.integrity import read_text

Start = Literal["noised_input", "input", "noise"]
Output = Literal["decoded", "residual", "head"]
MIN_WORK_SIZE = 64  # pixels
TRAIN_STEPS = 1000  # Stable Diffusion's training schedule
MAX_BYTES = 2**16  # of a card; the shipped ones have less than 1 kB
LAST = 1000  # order of a card that names none: after the shipped ones
NULL = "null"  # the selector's name for "no plugin"; no plugin may take it
_LARGEST = {"first_t": TRAIN_STEPS - 1} | dict.fromkeys(("renoise_from_t", "steps_first", "steps_chained"), TRAIN_STEPS)
_CORING = ("coring", "coring_peak")
_LARGEST |= dict.fromkeys(_CORING, 255)
_SIZES = ("work_size", "piece_size")
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_TYPES: dict[str, type] = {
    **dict.fromkeys(("id", "title", "start", "output", "licence"), str),
    **dict.fromkeys(("aliases", "examples"), list),
    **dict.fromkeys(
        ("order", "work_size", "piece_size", "first_t", "renoise_from_t", "steps_first", "steps_chained"), int
    ),
    **dict.fromkeys(_CORING, int),
    "colour": bool,
    "guided": bool,
    "fine": bool,
}


@dataclass(frozen=True, kw_only=True)
class PluginCard:
    """What the loop must know of one Task-Plugin (arXiv:2403.00644), and what a user should.

    Attributes:
        id: folder name, lower case; unique in a registry.
        title: for people.
        aliases: other names that ``--plugin`` understands.
        examples: requests that should select the plugin.
        start: the latents begin as the noised input picture, as the input without noise (then no seed matters), or as
            pure noise.
        first_t: timestep (0 to 999) of the first step. Below 999, the noised input picture keeps more of itself and the
            plugin has less to make (SDEdit, arXiv:2108.01073).
        renoise_from_t: with ``noised_input``, the latents are replaced by the noised input at every step whose
            timestep (0 to 999) is this or larger. Without meaning for other starts.
        steps_first: default steps where the plugin is the only or the first one.
        steps_chained: steps where it follows another plugin.
        output: "decoded": what the decoder makes of the final latent z, as released. "residual": x + D(z) - D(E(x)),
            the input x changed by what the plugin changed, so that the detail that the autoencoder cannot carry stays.
            "head": x + H(x, z, E(x)), the change made by the plugin's own network H instead of the decoder
            (:class:`diffplugin.plugins.networks.head.ChangeHead`).
        coring: with ``residual``, the level of 255 at which a change counts half: a change c is taken times
            c^2 / (c^2 + coring^2), the gain of a Wiener filter whose noise has this deviation, so that the plugin's
            faint and unsure changes leave the picture as it is. 0: all changes count.
        coring_peak: with ``residual``, the level of 255 that the largest local change p nearby (within 12 to 16 pixels)
            must reach for the changes around it to count half: they are taken times p^4 / (p^4 + coring_peak^4). Local
            is what deviates from the mean change of the square of 3/8 of the short side. So what is removed in full
            keeps its soft edges, and a change that is weak, or even over a wide area, goes. 0: none is asked for.
        work_size: short side in pixels at which the task is best restored where a quality works at the scale of the
            fault: larger photos are restored as a copy of that size, and the change is carried to the photo
            (``runtime.photos.carry``); 0: always the photo itself.
        piece_size: longest side in pixels of the pieces of such a copy; 0: as of any photo.
        guided: the change follows the photo's levels, as brightening does: a guided filter carries it.
        fine: its faults may be too fine for a smaller copy (rain, grain): samples of the photo itself show where, and
            those pieces are restored at full size besides (``runtime.fine``).
        colour: it brings colour into grey pictures. The result of a grey file is written in grey otherwise.
        licence: note on the weights.
        order: place in the registry and so in a chain.
    """

    id: str
    title: str
    aliases: tuple[str, ...]
    examples: tuple[str, ...]
    start: Start
    first_t: int = TRAIN_STEPS - 1
    renoise_from_t: int = 960
    steps_first: int = 20
    steps_chained: int = 3
    output: Output = "decoded"
    coring: int = 0
    coring_peak: int = 0
    work_size: int = 0
    piece_size: int = 0
    guided: bool = False
    fine: bool = False
    colour: bool = False
    licence: str = ""
    order: int = LAST


def parse_card(text: str, *, where: str, expected_id: str | None = None) -> PluginCard:
    """A card from TOML text; ``where`` names the text in messages.

    Raises:
        CheckpointError: not TOML, or all faults of the card in one line.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CheckpointError(f"{where}: not a TOML file ({error}); see the shipped cards for an example") from None
    faults = _faults(values)
    faults += [f"{name} has characters that cannot be printed" for name, value in values.items() if hides(value)]
    if expected_id is not None and not faults and values["id"] != expected_id:
        faults.append(f"id is {values['id']!r}, but its folder or file is named {expected_id!r}: make them the same")
    if faults:
        raise CheckpointError(f"{where}: {'; '.join(faults)}")
    frozen: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return PluginCard(**frozen)


def load_card(path: str | Path, *, expected_id: str | None = None) -> PluginCard:
    """The card in one TOML file (see :func:`parse_card`).

    Raises:
        CheckpointError: the file cannot be read, is not TOML, or all faults of the card in one line.
    """
    try:
        text = read_text(Path(path), limit=MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: the plugin card cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: the plugin card is not UTF-8 text") from None
    return parse_card(text, where=str(path), expected_id=expected_id)


def hides(value: Any) -> bool:
    """A text, or a text of a list, could send commands to a terminal that shows it."""
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and not text.isprintable() for text in texts)


def _faults(values: Mapping[str, Any]) -> list[str]:
    """Every reason why ``values`` is no card."""
    required = [field.name for field in fields(PluginCard) if field.default is MISSING]
    faults = [f"{name} is missing" for name in required if name not in values]
    faults += [f"{name} is unknown (known: {', '.join(_TYPES)})" for name in values if name not in _TYPES]
    for name, value in values.items():
        kind = _TYPES.get(name)
        if kind is None:
            continue
        if type(value) is not kind or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
            wanted = {str: "text", int: "a whole number", list: "a list of texts", bool: "true or false"}[kind]
            faults.append(f"{name} is {value!r}, expected {wanted}")
        else:
            faults += _value_faults(name, value)
    if values.get("start") in ("input", "noise") and "renoise_from_t" in values:
        faults.append(f'renoise_from_t has no meaning with start = "{values["start"]}": leave it out')
    if values.get("start") == "noise" and values.get("first_t", TRAIN_STEPS - 1) != TRAIN_STEPS - 1:
        faults.append(f'first_t is {values["first_t"]}, but start = "noise" starts at {TRAIN_STEPS - 1}: leave it out')
    for name in _CORING:
        if values.get(name) and values.get("output") != "residual":
            faults.append(f'{name} has a meaning with output = "residual" alone: leave it out')
    return faults


def _value_faults(name: str, value: Any) -> list[str]:
    choices = {"start": get_args(Start), "output": get_args(Output)}.get(name)
    least = 0 if name in ("renoise_from_t", *_CORING) else 1
    if name == "id" and (not _ID.fullmatch(value) or value == NULL):
        return [f"id is {value!r}, expected lower-case letters, digits, - and _ (and not {NULL!r})"]
    if choices and value not in choices:
        return [f"{name} is {value!r}, expected one of {', '.join(choices)}"]
    if name in _SIZES and not (value == 0 or value >= MIN_WORK_SIZE):
        return [f"{name} is {value}, expected 0 or at least {MIN_WORK_SIZE}"]
    if name in _LARGEST and not least <= value <= _LARGEST[name]:
        return [f"{name} is {value}, expected {least} to {_LARGEST[name]}"]
    if (name == "title" and not value.strip()) or (name == "examples" and not value):
        return [f"{name} is empty"]
    return []


def card_to_toml(card: PluginCard) -> str:
    """``card`` as TOML text that :func:`parse_card` reads back as the same card."""
    lines = []
    for name, value in asdict(card).items():
        unset = name in (*_CORING, *_SIZES) and not value
        if unset or value is False or (name == "renoise_from_t" and card.start != "noised_input"):
            continue
        text = f"[{', '.join(map(_toml, value))}]" if isinstance(value, tuple) else _toml(value)
        lines.append(f"{name} = {text}")
    return "\n".join(lines) + "\n"


def _toml(value: str | int) -> str:
    # A JSON string is a TOML basic string but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@functools.cache
def _shipped() -> tuple[PluginCard, ...]:
    folder = resources.files(__package__).joinpath("cards")
    files = [file for file in folder.iterdir() if file.name.endswith(".toml") and file.name != "compounds.toml"]
    cards = [parse_card(file.read_text("utf-8"), where=file.name, expected_id=file.name[:-5]) for file in files]
    return tuple(sorted(cards, key=lambda card: (card.order, card.id)))


def shipped_cards() -> dict[str, PluginCard]:
    """The eight released tasks by id, in the released order of a chain."""
    return {card.id: card for card in _shipped()}


def registry(*folders: str | Path) -> dict[str, PluginCard]:
    """Shipped cards, replaced or extended by those in ``folders``: ``<id>/card.toml``, beside a plugin's weights,
    ``pre-trained/<id>/card.toml``, or ``cards/<id>.toml``.

    A card that replaces a shipped one keeps the shipped place; new ones follow by ``order``, then id. Where two
    folders hold the same id, the later folder wins.

    Raises:
        RequestError: a folder does not exist.
        CheckpointError: the faults of all cards at once.
    """
    missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
    if missing:
        raise RequestError(f"no such plugin folder: {', '.join(missing)}")
    found: dict[str, PluginCard] = {}
    faults = []
    for file, name in (entry for folder in folders for entry in card_files(Path(folder))):
        try:
            found[name] = load_card(file, expected_id=name)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(" | ".join(faults))
    shipped = shipped_cards()
    own = sorted((card for name, card in found.items() if name not in shipped), key=lambda card: (card.order, card.id))
    return {name: found.get(name, card) for name, card in shipped.items()} | {card.id: card for card in own}


def card_files(folder: Path) -> list[tuple[Path, str]]:
    """(file, id that it must carry) of every card in a folder of plugins, sorted."""
    places = ("pre-trained/*/card.toml", "*/card.toml")
    nested = [(file, file.parent.name) for place in places for file in sorted(folder.glob(place))]
    flat = [(file, file.stem) for file in sorted(folder.glob("cards/*.toml")) if file.name != "compounds.toml"]
    return flat + nested


def find_card(name: str, cards: Mapping[str, PluginCard]) -> PluginCard:
    """The card that ``name`` means: an id or an alias, in any case.

    Raises:
        RequestError: unknown; the message lists what is known and the nearest names.
    """
    wanted = name.strip().casefold()
    if wanted in cards:
        return cards[wanted]
    named = {alias.casefold(): card for card in reversed(list(cards.values())) for alias in card.aliases}
    if wanted in named:
        return named[wanted]
    near = difflib.get_close_matches(wanted, [*cards, *named], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise RequestError(f"unknown plugin {name!r}{hint} (known: {', '.join(cards) or 'none'})")


def example_requests(cards: Iterable[PluginCard]) -> list[tuple[str, str]]:
    """(id, first example request) of every card: what to tell a user whose request selected nothing."""
    return [(card.id, card.examples[0]) for card in cards]
