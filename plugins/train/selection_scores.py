"""Selection through the exported engines, measured: held-out wording beside the paper's table 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffplugin.plugins.train import corpus
from diffplugin.plugins.train.common import Pixels
from diffplugin.plugins.train.degradations import DEGRADATIONS, degrade
from diffplugin.plugins.train.grammar import LANGUAGES
from diffplugin.plugins.train.metrics import selection
from diffplugin.plugins.train.paper import TABLE_5
from diffplugin.plugins.train.wording import WORDS, Request, written

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer

TITLES = {
    "single": "one task",
    "multi": "two tasks",
    "combinations": "combinations of held-out requests for two to four tasks",
    **{f"combinations of {n}": f"of these, for {n} tasks" for n in (2, 3, 4)},
    "mixed": "one task and an irrelevant wish",
    "none": "irrelevant",
    "new single": "anew: one task",
    "new multi": "anew: two tasks",
    "new mixed": "anew: one task and an irrelevant wish",
    "new none": "anew: irrelevant",
    "misspelt": "misspelt",
    "opposite": "opposite or negated",
    **{code: name for code, name in LANGUAGES.items() if code in corpus.HELD_SETS},
    **{name: name.replace("_", ": ") for name in corpus.BLIND},
}
_GROUP = 8  # combinations that are asked for of one picture: encoding it takes longest
NAMES = ("ZTA", "CP", "OP", "OR", "CF1", "OF1", "mAP")


def selections(
    restorer: Restorer,
    photos: Sequence[Pixels],
    *,
    count: int | None = None,
    combinations: int = 0,
    seed: int = 1,
) -> dict[str, dict[str, float]]:
    """The metrics of selection by kind of request, held-out wording, against degraded pictures.

    They are those of the plugins that would run: the bundle's threshold, and the table of compound requests after it.
    "raw ZTA" is the scores' own at that threshold. A request for a task without a plugin in the bundle counts as right
    when nothing is selected for it.

    Args:
        count: requests of a kind at most; None: all.
        combinations: of held-out requests for several tasks (the paper's "Multi-task*": 120,000); 0: none.
    """
    tasks = list(restorer.cards)
    words = {**WORDS, **{task: corpus.wording_of(card) for task, card in restorer.cards.items() if task not in WORDS}}
    kinds = {kind: corpus.held_out(kind, count, seed, words) for kind in corpus.KINDS}
    for name in corpus.HELD_SETS:
        for kind, some in _by_kind(name).items():
            kinds[kind] = some[:count]
    if combinations:
        kinds["combinations"] = corpus.combinations(combinations, seed, words)
    rng, found = np.random.default_rng(seed), {}
    known = [task for task in tasks if task in DEGRADATIONS] or list(DEGRADATIONS)
    for kind, requests in kinds.items():
        scores, chosen = [], []
        group = _GROUP if kind == "combinations" else 1
        for first in range(0, len(requests), group):
            picture = photos[int(rng.integers(len(photos)))]
            seen = degrade(picture, str(rng.choice(known)), int(rng.integers(2**31)))
            for made in restorer.selections(seen, [request.text for request in requests[first : first + group]]):
                scores.append([made.scores[task] for task in tasks])
                chosen.append([task in made.chosen for task in tasks])
        wanted = np.array([[task in request.tasks for task in tasks] for request in requests])
        values, selected = np.array(scores, np.float32), np.array(chosen)
        sizes = np.array([len(request.tasks) for request in requests])
        parts = {kind: sizes >= 0} | (
            {f"{kind} of {n}": sizes == n for n in np.unique(sizes)} if kind == "combinations" else {}
        )
        theta = restorer.bundle.manifest.selector_threshold
        for name, rows in parts.items():
            found[name] = selection(values[rows], wanted[rows], theta, selected[rows]) | {
                "raw ZTA": selection(values[rows], wanted[rows], theta)["ZTA"],
                "requests": float(rows.sum()),
            }
    return found


def _by_kind(name: str) -> dict[str, list[Request]]:
    """A held-out set; the plain requests written anew by their kinds."""
    if name != "new":
        return {name: corpus.held_set(name)}
    return {f"new {kind}": [r for its, r in written("held_out_new") if its == kind] for kind in corpus.KINDS}


def selection_table(found: dict[str, dict[str, float]]) -> str:
    """Ours beside the paper's table 5, in Markdown."""
    lines = [
        "| requests | number | " + " | ".join(f"{n} (paper)" for n in NAMES) + " | raw ZTA |",
        "|---" * (len(NAMES) + 3) + "|",
    ]
    for kind, values in found.items():
        cells = [f"{values[n]:.3f} ({TABLE_5.get(kind, {}).get(n, '–')})" for n in NAMES]
        if kind in ("none", "new none"):  # nothing is wanted: only the zero-tolerance accuracy means anything
            cells[1:] = ["–"] * (len(NAMES) - 1)
        cells.append(f"{values['raw ZTA']:.3f}")
        lines.append(f"| {TITLES[kind]} | {values['requests']:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
