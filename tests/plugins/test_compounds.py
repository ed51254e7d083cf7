"""The mapping table of compound tasks: matching, installed plugins, users' own entries, faults."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from diffplugin.errors import CheckpointError
from diffplugin.plugins.cards import shipped_cards
from diffplugin.plugins.compounds import Compound, compound_table, compounds_in, expand, parse_table

ALL = list(shipped_cards())


@pytest.mark.parametrize(
    ("prompt", "chain"),
    [
        ("remove the bad weather", ["derain", "desnow", "dehaze"]),
        ("BAD-WEATHER!", ["derain", "desnow", "dehaze"]),
        ("fix  bad\nweather, please", ["derain", "desnow", "dehaze"]),
        ("badweather", []),
        ("bad weathering steel", []),
        ("a rainy night", ["derain", "lowlight"]),
        ("rainy night, snow and fog, please", ["derain", "desnow", "lowlight", "dehaze"]),
        ("get rid of all of the bad weather behind my house", ["derain", "desnow", "dehaze"]),
        ("I'd like this foggy night photo fixed, restore the old photo", ["deblur", "face"]),
        ("the bad weather is hiding the house", []),
        ("don't remove the bad weather, it is lovely", []),
        ("do not restore my old photo", []),
        ("we walked home on a rainy night and laughed", []),
        ("the blizzard is hiding the house", []),
        ("night shot in heavy rain", []),
        ("last winter a blizzard shut the whole town", []),
        ("please restore my grandmother's old photo", ["deblur", "face"]),
        ("restore this one, it is not an old photo", []),
        ("remove the rain from this old photo", []),
        ("", []),
    ],
)
def test_expand(prompt: str, chain: list[str]) -> None:
    assert expand(prompt, compound_table(), ALL) == chain


def test_only_installed_plugins_in_registry_order() -> None:
    assert expand("bad weather", compound_table(), ["desnow", "derain"]) == ["desnow", "derain"]
    assert expand("bad weather", compound_table(), ["face"]) == []


def test_shipped_table_names_shipped_plugins_only() -> None:
    assert {task for entry in compound_table().values() for task in entry.tasks} <= set(ALL)
    assert all(len(entry.tasks) > 1 for entry in compound_table().values())


def test_simple_requests_are_left_to_the_selector() -> None:
    """No example of a single task, and no request of the released demo's goldens, is a compound task."""
    simple = [example for card in shipped_cards().values() for example in card.examples]
    simple += ["please brighten this dark photo and get rid of the rain", "remove the blur"]
    assert {prompt: compounds_in(prompt, compound_table()) for prompt in simple} == {p: [] for p in simple}


@pytest.mark.parametrize("name", ["held_out", "learned"])
def test_the_table_adds_no_plugin_to_what_people_wrote(name: str) -> None:
    """Of 8,450 requests written whole, those that the selector is scored on among them, none gets a plugin too many."""
    from diffplugin.plugins.train.wording import written

    table = compound_table()
    wrong = {
        request.text: extra
        for _, request in written(name)
        if (extra := set(expand(request.text, table, ALL)) - set(request.tasks))
    }
    assert not wrong, wrong


def test_own_entries_extend_and_replace(tmp_path: Path) -> None:
    (tmp_path / "compounds.toml").write_text('[scans]\nphrases = ["(bad) scan"]\ntasks = ["scratch", "demoire"]\n')
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/compounds.toml").write_text('[bad-weather]\nphrases = ["bad weather"]\ntasks = ["dehaze"]\n')
    table = compound_table(tmp_path)
    assert expand("a (bad) scan", table, [*ALL, "scratch"]) == ["demoire", "scratch"]
    assert expand("bad weather", table, ALL) == ["dehaze"]
    assert expand("bad weather", compound_table(), ALL) == ["derain", "desnow", "dehaze"]


def test_a_gap_is_at_most_three_words() -> None:
    table = {"x": Compound(phrases=("fix * roof *",), tasks=("a",))}
    assert compounds_in("fix roof", table) and compounds_in("fix my old red roof now", table)
    assert not compounds_in("fix a b c d roof", table)


def test_faults_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_table('top = 1\n[a]\nphrases = []\ntask = ["x"]\n[b]\nphrases = [" "]\ntasks = "y"\n', where="t.toml")
    for part in ("top is 1", "a.phrases is []", "a.task is unknown", "a.tasks is missing", "b.phrases", "b.tasks"):
        assert part in str(caught.value)
    (tmp_path / "compounds.toml").write_text("[")
    with pytest.raises(CheckpointError, match="not a TOML file"):
        compound_table(tmp_path)


@pytest.mark.parametrize("phrase", ["a" + " *" * 12 + " b", "a * " * 15 + "b", " ".join(["a"] * 31) + " b"])
def test_no_phrase_can_hang(phrase: str) -> None:
    """Twelve gaps took a regular expression 18 s."""
    table = parse_table(f'[x]\nphrases = ["{phrase}"]\ntasks = ["a"]\n', where="t")
    began = time.perf_counter()
    assert compounds_in("a " * 999, table) == []
    assert compounds_in("a " * 999 + "b", table) == ["x"]
    assert time.perf_counter() - began < 1


def test_a_table_within_its_limits_cannot_hang_either() -> None:
    phrases = ", ".join(f'"{"a * " * 15}w{i}"' for i in range(700))
    table = parse_table(f'[x]\nphrases = [{phrases}]\ntasks = ["a"]\n', where="t")
    began = time.perf_counter()
    assert compounds_in("a " * 999, table) == []
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("prompt", "phrase", "found"),
    [
        ("remove (bad) weather!", "bad weather", False),
        ("so: (bad weather)!", "bad weather", True),
        ("bad, weather", "bad weather", False),
        ("the rain, again", "rain", True),
        ("train", "rain", False),
        ("a.rain.b", "rain", True),
        ("fix a b c roof", "fix * roof", True),
        ("fix a b c d e f roof", "fix * * roof", True),
        ("fix a b c d e f g roof", "fix * * roof", False),
        ("old", "* old *", True),
        ("", "*", True),
    ],
)
def test_where_phrases_match(prompt: str, phrase: str, found: bool) -> None:
    table = {"x": Compound(phrases=(phrase,), tasks=("a",))}
    assert compounds_in(prompt, table) == (["x"] if found else [])


def test_phrases_have_limits() -> None:
    for phrase, said in (("a " * 33, "at most 32 words"), ("\\u001b[2J", "cannot be printed")):
        with pytest.raises(CheckpointError, match=said):
            parse_table(f'[x]\nphrases = ["{phrase}"]\ntasks = ["a"]\n', where="t")
