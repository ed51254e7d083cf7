"""Words with typing errors -> the words that a bundle's selector learned, by Damerau and Levenshtein's distance.

A selector trained on few words reads a misspelt one in pieces that mean little to it. So a word that is in no list is
read as the listed word that is nearest: at most one edit away, or two where it is long. The first letter must be
right, or swapped with the second: people seldom miss it, and "grain" is no "rain".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from diffplugin.errors import BundleError
from diffplugin.integrity import read_text

LATIN = re.compile(r"[a-zA-ZÀ-ÖØ-öø-ÿ]+")
_SHORTEST = 3  # letters of a word that is looked at; in one of these only swapped letters are an error
_LONG, _LONGEST = 9, 30  # letters from which on two edits are allowed; more letters are no word
_FREQUENT = 400  # rank of words between which a missed space is seen
_MAX_BYTES, _MAX_LETTERS = 2**20, 40  # of the file, of a word in it


class Speller:
    """The words of a selector.

    Args:
        ranks: word in lower case -> how rare it is, from 1; None: a word that is right, but replaces no other.
    """

    def __init__(self, ranks: Mapping[str, int | None]) -> None:
        self._ranks = ranks
        self._by_letter: dict[str, list[tuple[str, int]]] = {}
        for word, rank in ranks.items():
            if rank is not None and len(word) >= _SHORTEST:
                self._by_letter.setdefault(word[0], []).append((word, rank))

    @classmethod
    def of(cls, ranked: Sequence[str], right: Iterable[str]) -> Speller:
        """``ranked``: the most frequent first; ``right``: those that replace no other."""
        return cls({**dict.fromkeys(right), **{word: rank for rank, word in enumerate(ranked, 1)}})

    def repaired(self, text: str, most: int) -> str:
        """``text`` with the misspelt ones of its first ``most`` words replaced."""
        return LATIN.sub(lambda found: self._right(found.group()), text, count=most)

    def _right(self, given: str) -> str:
        word = given.lower()
        if not _SHORTEST <= len(word) <= _LONGEST or word in self._ranks:
            return given
        best = min(self._near(word), default=None) or min(self._halves(word), default=None)
        return best[-1] if best else given

    def _near(self, word: str) -> Iterator[tuple[int, int, str]]:
        """(distance, rank, listed word) of those that it may stand for."""
        limit = 2 if len(word) >= _LONG else 1
        for first in dict.fromkeys(word[:2]):
            for other, rank in self._by_letter.get(first, ()):
                if first != word[0] and other[1] != word[0]:
                    continue
                if abs(len(other) - len(word)) > limit or (len(word) == _SHORTEST and sorted(other) != sorted(word)):
                    continue
                if (far := distance(word, other)) <= limit:
                    yield far, rank, other

    def _halves(self, word: str) -> Iterator[tuple[int, str]]:
        """(rank of the rarer one, both words) where a space was missed between two frequent words."""
        for at in range(2, len(word) - 1):
            pair = word[:at], word[at:]
            rarer = max(self._ranks.get(half) or _FREQUENT + 1 for half in pair)
            if rarer <= _FREQUENT:
                yield rarer, " ".join(pair)


def distance(one: str, other: str) -> int:
    """Letters to put in, take out, exchange, or swap with the next (optimal string alignment)."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, k in product(range(len(one) + 1), range(len(other) + 1)):
        if not i or not k:
            table[i][k] = i + k
            continue
        same = one[i - 1] == other[k - 1]
        least = min(table[i - 1][k] + 1, table[i][k - 1] + 1, table[i - 1][k - 1] + (not same))
        if i > 1 and k > 1 and one[i - 1] == other[k - 2] and one[i - 2] == other[k - 1]:
            least = min(least, table[i - 2][k - 2] + 1)
        table[i][k] = least
    return table[-1][-1]


def read_speller(path: Path) -> Speller:
    """The words of a file: one a line, the most frequent first; after an empty line those that replace no other.

    Raises:
        BundleError: the file is missing, or is no such list.
    """
    try:
        text = read_text(path, limit=_MAX_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: the list of words cannot be read ({error}); export the bundle again") from None
    ranked, _, right = text.partition("\n\n")
    words = [*ranked.split(), *right.split()]
    wrong = next((w for w in words if len(w) > _MAX_LETTERS or not LATIN.fullmatch(w) or w != w.lower()), None)
    if wrong is not None:
        raise BundleError(
            f"{path}: {wrong[:_MAX_LETTERS]!a} is no word in lower case of at most {_MAX_LETTERS} letters; "
            "export the bundle again"
        )
    return Speller.of(ranked.split(), right.split())
