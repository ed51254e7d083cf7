"""The choice of plugins for a request: the released selection rule and the mapping of compound tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from diffplugin.errors import NotFinite
from diffplugin.plugins.cards import NULL, PluginCard, find_card
from diffplugin.plugins.compounds import Table, compounds_in, expand
from diffplugin.runtime.request.diagnosis import Finding, described
from diffplugin.spec import Array

NOTHING_FOUND = "nothing found to restore"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The decision of the selector.

    Attributes:
        chosen: plugin ids in the order of the chain; empty: the picture is not changed.
        reason: one line for people.
        scores: score of every plugin and of ``null`` (last); empty if the caller named the plugins.
        compounds: compound tasks of the mapping table that the request asks for.
        near: where nothing is chosen, at most two plugins whose scores come near the threshold, the nearest first.
        findings: what was seen in the photo, if the photo decided; empty if words or the caller did.
    """

    chosen: tuple[str, ...]
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)
    compounds: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def select(scores: Array, plugins: Sequence[str], prompt: str, table: Table, threshold: float = 0.0) -> Selection:
    """The released rule (arXiv:2403.00644, Eq. 5), joined with the mapping table.

    Every plugin with a score above the threshold is chosen. A request for a compound task ("a rainy night") also gets
    that task's installed sub-tasks, whatever their scores: the selector was trained on single tasks, the table is
    explicit. All run in registry order. If nothing is chosen, ``null`` wins and the picture stays untouched.

    Args:
        scores: output of the selector graph, [1, p + 1], ``null`` last.
        plugins: ids of its p plugins, in registry order.
        prompt: the request.
        table: mapping of compound tasks.
        threshold: theta of Eq. 5, the bundle's (the paper: 0).

    Raises:
        NotFinite: a score is NaN or infinite.
    """
    values = scores.reshape(-1).tolist()
    named = dict(zip((*plugins, NULL), values, strict=True))
    if not np.isfinite(scores).all():
        raise NotFinite(f"the selector's scores are not finite: {named}; try another precision")
    compounds = compounds_in(prompt, table)
    parts = expand(prompt, table, plugins)
    chosen = tuple(plugin for plugin in plugins if named[plugin] > threshold or plugin in parts)
    reasons = [f"request names {' and '.join(compounds)}"] if parts else []
    if any(named[plugin] > threshold for plugin in plugins):
        reasons.append(f"scores above {threshold:g}")
    reason = ", ".join(reasons) or f"no plugin scores above {threshold:g}"
    near = () if chosen else _near(named, threshold)
    return Selection(chosen=chosen, reason=reason, scores=named, compounds=tuple(compounds), near=near)


def _near(scores: Mapping[str, float], threshold: float) -> tuple[str, ...]:
    """Plugins that miss the threshold by less than ``null`` passes it: the request may have been meant for them."""
    missed = {plugin: threshold - score for plugin, score in scores.items() if plugin != NULL}
    close = sorted((m, plugin) for plugin, m in missed.items() if m < scores[NULL] - threshold)
    return tuple(plugin for _, plugin in close[:2])


def select_found(findings: Sequence[Finding], plugins: Sequence[str]) -> Selection:
    """The installed ``plugins`` (in registry order) that the photo needs."""
    needed = {one.task for one in findings if one.needed}
    chosen = tuple(plugin for plugin in plugins if plugin in needed)
    seen = described(findings, plugins)
    reason = f"seen in the photo: {seen}" if seen else NOTHING_FOUND
    return Selection(chosen=chosen, reason=reason, findings=tuple(findings))


def select_named(names: Sequence[str], cards: Mapping[str, PluginCard]) -> Selection:
    """The caller's own chain, in the caller's order; ids and aliases are understood.

    Raises:
        RequestError: a plugin is not in ``cards``.
    """
    return Selection(chosen=tuple(find_card(name, cards).id for name in names), reason="named by the caller")
