"""Cards: the shipped registry, reading and writing, faults, users' own plugins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diffplugin.errors import CheckpointError, RequestError
from diffplugin.plugins.cards import (
    PluginCard,
    card_to_toml,
    example_requests,
    find_card,
    load_card,
    parse_card,
    registry,
    shipped_cards,
)

RELEASED_ORDER = ["derain", "desnow", "lowlight", "dehaze", "deblur", "highlight", "face", "demoire"]
MINE = PluginCard(id="scratch", title="Scratches", aliases=(), examples=("remove scratches",), start="noise")


def test_shipped_registry_is_the_released_one() -> None:
    cards = shipped_cards()
    assert list(cards) == RELEASED_ORDER
    assert {card.id for card in cards.values() if card.start == "noise"} == {"lowlight", "highlight"}
    for card in cards.values():
        assert (card.renoise_from_t, card.steps_first, card.steps_chained) == (960, 20, 3), card.id
        assert "CC BY-NC-SA" in card.licence


def test_no_two_shipped_cards_share_a_name() -> None:
    names = [name for card in shipped_cards().values() for name in {card.id, *card.aliases}]
    assert len(names) == len(set(names))


def test_registry_cannot_be_changed_by_a_caller() -> None:
    shipped_cards().clear()
    assert list(shipped_cards()) == RELEASED_ORDER


@pytest.mark.parametrize("card", [*shipped_cards().values(), MINE], ids=lambda card: card.id)
def test_written_cards_read_back_equal(card: PluginCard, tmp_path: Path) -> None:
    file = tmp_path / "card.toml"
    file.write_text(card_to_toml(card), encoding="utf-8")
    assert load_card(file) == card


def test_awkward_text_survives(tmp_path: Path) -> None:
    card = replace(MINE, title='a "b" \\ é 🙂', aliases=("x, y", "]"))
    assert parse_card(card_to_toml(card), where="here") == card


@pytest.mark.parametrize("text", ["\x1b[2J", "a\x7f", "two\nlines", "\u202eback", "\x9b31m"])
def test_text_that_could_steer_a_terminal_is_refused(text: str) -> None:
    for change in ({"title": text}, {"licence": text}, {"aliases": (text,)}):
        with pytest.raises(CheckpointError, match=f"{next(iter(change))} has characters that cannot be printed"):
            parse_card(card_to_toml(replace(MINE, **change)), where="here")


def test_all_faults_are_reported_at_once() -> None:
    text = 'id = "Bad Id"\ntitle = " "\nstart = "middle"\nsteps_first = 0\norder = true\nsteps = 3\nexamples = [1]\n'
    with pytest.raises(CheckpointError) as caught:
        parse_card(text, where="bad.toml")
    message = str(caught.value)
    assert message.startswith("bad.toml: ") and "\n" not in message
    for part in ("aliases is missing", "'Bad Id'", "title is empty", "'middle'", "steps_first is 0", "order is True"):
        assert part in message
    assert "steps is unknown" in message and "examples is [1]" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("id = ", "not a TOML file"),
        (card_to_toml(MINE).replace('"scratch"', '"null"'), "'null'"),
        (card_to_toml(MINE) + "renoise_from_t = 900\n", "no meaning"),
        (card_to_toml(replace(MINE, start="noised_input", renoise_from_t=1001)), "0 to 1000"),
        (card_to_toml(replace(MINE, start="noised_input", first_t=1000)), "first_t is 1000, expected 1 to 999"),
        (card_to_toml(replace(MINE, start="noise", first_t=500)), "leave it out"),
        (card_to_toml(replace(MINE, output="sum")), "'sum', expected one of decoded, residual"),  # type: ignore[arg-type]
    ],
)
def test_faulty_cards_are_refused(text: str, part: str) -> None:
    with pytest.raises(CheckpointError, match=part):
        parse_card(text, where="card.toml")


def test_unreadable_cards(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_card(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"id = '\xe9'")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        load_card(tmp_path / "latin.toml")


def _put(folder: Path, place: str, card: PluginCard) -> None:
    file = folder / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(card_to_toml(card), encoding="utf-8")


def test_own_plugins_follow_and_replacements_keep_their_place(tmp_path: Path) -> None:
    faster = replace(shipped_cards()["dehaze"], steps_first=8, order=99)
    _put(tmp_path, "dehaze/card.toml", faster)
    _put(tmp_path, "cards/scratch.toml", MINE)
    _put(tmp_path, "aardvark/card.toml", replace(MINE, id="aardvark"))
    _put(tmp_path, "first/card.toml", replace(MINE, id="first", order=-5))
    cards = registry(tmp_path)
    assert list(cards) == [*RELEASED_ORDER, "first", "aardvark", "scratch"]
    assert cards["dehaze"].steps_first == 8


def test_a_later_folder_wins(tmp_path: Path) -> None:
    _put(tmp_path / "a", "scratch/card.toml", MINE)
    _put(tmp_path / "b", "scratch/card.toml", replace(MINE, title="Newer"))
    assert registry(tmp_path / "a", tmp_path / "b")["scratch"].title == "Newer"


def test_registry_names_every_faulty_card(tmp_path: Path) -> None:
    _put(tmp_path, "one/card.toml", MINE)  # its folder is called otherwise
    _put(tmp_path, "cards/two.toml", replace(MINE, id="two", steps_first=-1))
    with pytest.raises(CheckpointError, match=r"two.toml.*steps_first.*one.*scratch"):
        registry(tmp_path)
    with pytest.raises(RequestError, match=r"no such plugin folder.*nowhere"):
        registry(tmp_path / "nowhere")


def test_find_by_id_and_alias() -> None:
    cards = shipped_cards()
    assert find_card("DEBLUR ", cards).id == "deblur"
    assert find_card("Low-Light", cards).id == "lowlight"
    with pytest.raises(RequestError, match=r"unknown plugin 'deblurr'; did you mean deblur.*known: derain, desnow"):
        find_card("deblurr", cards)


def test_understood_gives_an_example_of_each() -> None:
    assert [name for name, _ in example_requests(shipped_cards().values())] == RELEASED_ORDER


def test_coring_is_for_residual_pictures_and_a_level() -> None:
    cored = replace(MINE, output="residual", coring=9, coring_peak=30)
    assert parse_card(card_to_toml(cored), where="here") == cored
    assert "coring" not in card_to_toml(MINE)
    for name in ("coring", "coring_peak"):
        for change, message in (({name: 9}, "alone"), ({"output": "residual", name: 256}, "expected 0 to 255")):
            with pytest.raises(CheckpointError, match=f"{name} .*{message}"):
                parse_card(card_to_toml(replace(MINE, **change)), where="here")
