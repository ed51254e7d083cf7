"""Messages of ``dp-infer``: lines for people, and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from diffplugin.plugins.cards import TRAIN_STEPS, PluginCard, example_requests
from diffplugin.runtime.planning.plan import Plan, Stage
from diffplugin.runtime.planning.quality import EXACT
from diffplugin.runtime.request.selection import NOTHING_FOUND, Selection
from diffplugin.runtime.restoration import Restoration

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer

GIB = 2**30


def loaded_line(restorer: Restorer, why: str = "") -> str:
    """``embedded: onnxruntime fp32 (…)``, why this bundle, and a description of the quality unless it is exact."""
    line = f"{restorer.bundle.manifest.name}: {restorer.engine} {restorer.precision} ({restorer.reason})"
    line += f"; {why}" if why else ""
    quality = restorer.quality
    return line if quality == EXACT else f"{line}; {quality.name}: {quality.description}"


def selection_line(selection: Selection, cards: Mapping[str, PluginCard], *, scores: bool = False) -> str:
    """What was understood, ``understood: Deblurring (deblur)``, or that nothing was; ``scores``: the numbers too."""
    if selection.findings:
        return _seen_line(selection, cards, scores=scores)
    if not selection.scores:
        return f"{', then '.join(selection.chosen)} ({selection.reason})"
    chosen = [f"{cards[plugin].title} ({plugin})" for plugin in selection.chosen]
    line = f"understood: {', then '.join(chosen) or f'nothing that one of the {len(cards)} plugins does'}"
    if chosen and selection.compounds:
        line += f" (the request names {' and '.join(selection.compounds)})"
    why, _, unread = selection.reason.partition("; ")
    line += f"; {unread}" if unread else ""
    numbers = ", ".join(f"{name} {score:+.2f}" for name, score in selection.scores.items())
    return f"{line} [{numbers}; {why}]" if scores else line


def _seen_line(selection: Selection, cards: Mapping[str, PluginCard], *, scores: bool) -> str:
    """What the photo shows: ``seen: Rain removal (derain, 97%, strong)``, in the order of the chain."""
    found = {one.task: one for one in selection.findings}
    seen = [f"{cards[p].title} ({p}, {found[p].probability:.0%}, {found[p].degree})" for p in selection.chosen]
    line = f"seen: {', then '.join(seen)}" if seen else NOTHING_FOUND
    if lacking := [one.task for one in selection.findings if one.needed and one.task not in cards]:
        line += f"; {' and '.join(lacking)} too, but this bundle has no such plugin"
    numbers = ", ".join(f"{one.task} {one.probability:.2f} of {one.threshold:g}" for one in selection.findings)
    return f"{line} [{numbers}]" if scores else line


def refusal_lines(selection: Selection, cards: Mapping[str, PluginCard], *, copies: bool = False) -> list[str]:
    """For a user whose request selected nothing: what happened to the photo, what is near, what can be asked for."""
    if selection.findings:
        return ["copied as it is" if copies else "nothing written (--keep-untouched copies: a copy, and exit code 0)"]
    lines = [f"nothing selected, {'copied as it is' if copies else 'nothing written'}"]
    if selection.near:
        near = [f'{cards[plugin].title}: "{cards[plugin].examples[0]}"' for plugin in selection.near]
        lines.append(f"  near it: {'; '.join(near)}")
    lines.append("  what can be asked for (or named with --plugin):")
    width = max(map(len, cards)) + 1
    return lines + [f'    {plugin + ":":<{width}} "{example}"' for plugin, example in example_requests(cards.values())]


def plan_lines(plan: Plan) -> list[str]:
    """A plan for people."""
    chain = ", then ".join(map(_stage, plan.chain))
    sizes = [f"{name} {w}x{h}" for name, (w, h) in (("input", plan.input_size), ("working", plan.working_size))]
    sizes.append("output {}x{}".format(*plan.output_size))
    carried = {"picture": "", "change": ", the change is carried to the photo"}
    carried["guided"] = f"{carried['change']} by a guided filter"
    free = "" if plan.available is None else f" of {plan.available / GIB:.1f} GiB free"
    return [
        f"chain:   {chain or 'none, the picture is not changed'}",
        f"size:    {', '.join(sizes)} px{carried[plan.carry]}",
        f"pieces:  {len(plan.tiles)} ({plan.tiling})",
        f"sampler: {plan.sampler}, seed {plan.seed}",
        f"engine:  {plan.engine} {plan.precision}, {_work(plan)}",
        *([f"loop:    {plan.loop} ({plan.loop_reason})"] if plan.loop_reason else []),
        f"memory:  about {plan.estimated_bytes / GIB:.1f} GiB{free}",
    ]


def _stage(stage: Stage) -> str:
    """``deblur (20 steps, from the noised input)``."""
    level = "" if stage.first_t == TRAIN_STEPS - 1 else f" at t = {stage.first_t}"
    kept = _KEPT[stage.output]
    levels = [f"{stage.coring}"] * bool(stage.coring) + [f"{stage.coring_peak} nearby"] * bool(stage.coring_peak)
    kept += f" (cored at {', '.join(levels)} levels)" if levels else ""
    return f"{stage.plugin} ({stage.steps} steps, from {_START[stage.start]}{level}{kept})"


def _work(plan: Plan) -> str:
    """``20 UNet runs``, or ``10 steps: UNet whole at 5, outer blocks at 5, SCB at 6 (balanced)``, over the chain."""
    if plan.quality == EXACT.name:
        return f"{plan.unet_runs} UNet runs"
    steps, whole, outer, scb = (
        runs // len(plan.tiles) for runs in (plan.unet_runs, plan.full_unet_runs, plan.shallow_unet_runs, plan.scb_runs)
    )
    pieces = f", each for {len(plan.tiles)} pieces" if len(plan.tiles) > 1 else ""
    tiny = ", tiny autoencoder" if any(stage.tiny for stage in plan.chain) else ""
    return f"{steps} steps: UNet whole at {whole}, outer blocks at {outer}, SCB at {scb}{pieces}{tiny} ({plan.quality})"


_KEPT = {
    "decoded": "",
    "residual": ", added to the input as a residual",
    "head": ", the input changed by the plugin's head",
}
_START = {"noised_input": "the noised input", "input": "the input", "noise": "noise"}


def memory_warning(plan: Plan) -> str | None:
    """A line for a plan that may not fit, or None."""
    if plan.available is None or plan.estimated_bytes <= plan.available:
        return None
    need, free = plan.estimated_bytes / GIB, plan.available / GIB
    return f"this may need {need:.1f} GiB of memory, {free:.1f} GiB are free; try --tile or a smaller --size"


def done_line(made: Restoration, target: object, seconds: float) -> str:
    """``photo-restored.png: 512x384 px in 4.2 s (deblur, onnxruntime fp32)``, with the strength unless it is 1."""
    width, height = made.plan.output_size
    chain = ", ".join(stage.plugin for stage in made.plan.chain)
    pieces = f", {len(made.plan.tiles)} pieces" if len(made.plan.tiles) > 1 else ""
    strength = f", strength {made.strength:g}" if made.strength != 1 else ""
    engine = f"{made.plan.engine} {made.plan.precision}"
    return f"{target}: {width}x{height} px in {seconds:.1f} s ({chain}{strength}{pieces}, {engine})"


class ProgressBar:
    """One line that is redrawn, on a terminal only."""

    def __init__(self, stream: TextIO, *, width: int = 24, hidden: bool = False) -> None:
        self._stream, self._width = stream, width
        self._shown = stream.isatty() and not hidden
        self._began = time.monotonic()
        self._length = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        """``runtime.progress.Progress``: UNet runs done, UNet runs in total, the current plugin."""
        if not self._shown:
            return
        if done == 0:
            self._began = time.monotonic()
        filled = self._width * done // max(total, 1)
        left = (time.monotonic() - self._began) / done * (total - done) if done else None
        rest = "" if left is None else f"  {int(left) // 60}:{int(left) % 60:02d} left"
        line = f"[{'#' * filled}{'-' * (self._width - filled)}] {done}/{total} {what}{rest}"
        self._stream.write("\r" + line.ljust(self._length))
        self._stream.flush()
        self._length = len(line)

    def clear(self) -> None:
        """Erase the line, so that other text may follow."""
        if self._shown and self._length:
            self._stream.write("\r" + " " * self._length + "\r")
            self._stream.flush()
        self._length = 0
