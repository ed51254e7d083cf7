"""The outcome of every file: a few lines for people, one JSON object for programs, the exit code for scripts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from diffplugin import __version__
from diffplugin.command import DONE, FAILED, NOTHING_SELECTED, answer, print_error, say
from diffplugin.runtime.cli.inputs import Inputs, LeftOut, by_kind
from diffplugin.runtime.cli.targets import PhotoPaths
from diffplugin.runtime.photos.read import printable
from diffplugin.runtime.photos.strength import Strength
from diffplugin.runtime.planning.plan import Plan
from diffplugin.runtime.request.selection import Selection
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.restorer import Restorer

_SHOWN = 3  # names of a kind


class Account:
    """Every file that the arguments of a command line led to, with its outcome."""

    def __init__(self, found: Inputs, photos: Sequence[PhotoPaths]) -> None:
        self._found, self._photos = found, photos
        self._results: dict[Path, dict[str, Any]] = {}
        self._lock = Lock()

    def made(
        self,
        paths: PhotoPaths,
        made: Restoration,
        seconds: float,
        *,
        copied: bool,
        bundle: str,
        notes: Sequence[str] = (),
    ) -> None:
        """Record a photo that succeeded: restored, or untouched because nothing was selected.

        Args:
            bundle: the bundle that restored it.
            notes: what the format of the result could not hold.
        """
        if not made.untouched or copied:
            facts: dict[str, Any] = {"output": str(paths.target)}
            if paths.compare:
                facts["compare"] = str(paths.compare)
        else:
            facts = {"output": None}
        status = "restored" if not made.untouched else "copied" if copied else "nothing selected"
        told = made.to_json()
        told["notes"] = [*told["notes"], *notes]
        self._put(paths, status, **facts, bundle=bundle, seconds=round(seconds, 3), **told)

    def planned(self, paths: PhotoPaths, plan: Plan, selection: Selection, strength: Strength, *, bundle: str) -> None:
        """Record a photo of a dry run."""
        status = "planned" if plan.chain else "nothing selected"
        facts = {"plan": plan.to_json(), "selection": selection.to_json(), "strength": strength}
        self._put(paths, status, output=str(paths.target), bundle=bundle, **facts)

    def skipped(self, paths: PhotoPaths) -> None:
        """Record a photo whose result is up to date."""
        self._put(paths, "up to date", output=str(paths.target))

    def failed(self, paths: PhotoPaths, error: str) -> None:
        """Record a photo that could not be read, restored or written."""
        self._put(paths, "failed", error=error)

    def _put(self, paths: PhotoPaths, status: str, **facts: Any) -> None:
        with self._lock:
            self._results[paths.source] = {"input": str(paths.source), "status": status, **facts}

    def _count(self, *statuses: str) -> int:
        return sum(result["status"] in statuses for result in self._results.values())

    @property
    def code(self) -> int:
        """The exit code: one failure fails the run; otherwise it reports a photo without a result because nothing was
        selected.
        """
        unread = any(left.reason == "unsupported" for left in self._found.left_out)
        if self._found.faults or unread or self._count("failed"):
            return FAILED
        return NOTHING_SELECTED if self._count("nothing selected") else DONE

    def finish(self, restorer: Restorer, args: argparse.Namespace) -> int:
        """Print the summary or the JSON; returns the exit code."""
        unsupported = list(by_kind(self._found.left_out, "unsupported"))
        for kind, files in unsupported:
            print_error("dp-infer", f"{kind}: {_names(files)} not read here; {files[0].remedy}")
        if args.json:
            answer(json.dumps(self._facts(restorer), indent=2))
        elif not args.quiet and (lines := self._summary(verbose=args.verbose)):
            say(*lines)
        return self.code

    def _facts(self, restorer: Restorer) -> dict[str, Any]:
        left = [_left_out_facts(one) for one in self._found.left_out]
        faults = [{"input": None, "status": "failed", "error": fault} for fault in self._found.faults]
        failed = sum("error" in one for one in (*left, *faults, *self._results.values()))
        return {
            "version": __version__,
            "bundle": restorer.bundle.manifest.name,
            "engine": restorer.engine,
            "precision": restorer.precision,
            "reason": restorer.reason,
            "quality": restorer.quality.name,
            "concurrency": restorer.concurrency,
            "done": self._count("restored", "copied", "planned", "up to date"),
            "nothing_selected": self._count("nothing selected"),
            "failed": failed,
            "left_out": sum("error" not in one for one in left),
            "exit_code": self.code,
            # done in any order, told in that of the command line
            "files": [*faults, *(self._results[p.source] for p in self._photos if p.source in self._results), *left],
        }

    def _summary(self, *, verbose: bool) -> list[str]:
        """``2 of 4 done, 1 failed, 1 nothing selected``, and the counts of other files."""
        left = self._found.left_out
        unread = sum(one.reason == "unsupported" for one in left)
        total = len(self._results) + len(self._found.faults) + unread
        lines = []
        if total > 1 or left:
            failed = self._count("failed") + len(self._found.faults) + unread
            words = [f"{self._count('restored', 'copied', 'planned', 'up to date')} of {total} done"]
            words += [f"{count} up to date"] if (count := self._count("up to date")) else []
            words += [f"{count} left as they were"] if (count := self._count("nothing selected")) else []
            lines.append(", ".join([*words, f"{failed} failed"]))
        for reason, what in (
            ("result", "results of earlier runs, no inputs"),
            ("no photo", "no photos"),
            ("folder", "folders not entered"),
            ("ignored", "hidden files and sidecars"),
        ):
            kinds = list(by_kind(left, reason))  # type: ignore[arg-type]
            if kinds:
                told = [_names(files, every=verbose) + _of_kind(reason, kind) for kind, files in kinds]
                remedies = {one.remedy for _, files in kinds for one in files} - {""}
                lines.append(f"{what}: {'; '.join(told)}{''.join(f' ({remedy})' for remedy in sorted(remedies))}")
        return lines


def _of_kind(reason: str, kind: str) -> str:
    return f" [{kind}]" if reason == "no photo" and not kind.startswith(".") else ""


def _names(files: Sequence[LeftOut], *, every: bool = False) -> str:
    """``3 (a.heic, b.heic, c.heic)``: the number and the first names."""
    names = [printable(one.path.name) for one in files]
    shown = names if every else names[:_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{len(names)} ({', '.join(shown)}{more})"


def _left_out_facts(left: LeftOut) -> dict[str, Any]:
    facts = {"input": str(left.path), "status": left.reason, "kind": left.kind}
    if left.reason == "unsupported":
        facts["error"] = f"{printable(left.path)}: {left.kind} is not read here; {left.remedy}"
    return facts
