"""Uploads a bundle to the Hugging Face hub, with a model card."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.bundle import Bundle, open_bundle
from diffplugin.errors import BundleError, MissingDependency
from diffplugin.hub import CARD, parse_name

if TYPE_CHECKING:
    from diffplugin.runtime.planning.plan import Plan

SIDE = 256  # px of the photo whose time stands in the card


def push_bundle(path: str | Path, target: str, log: Callable[[str], None] = lambda line: None) -> str:
    """Upload a bundle and its card; returns the address of the commit.

    Args:
        target: ``hf:user/name[@branch]``; the repository is created if it is missing.

    Raises:
        RequestError: ``target`` is not such a name.
        MissingDependency: huggingface_hub is not installed.
        BundleError: the bundle has faults, or the hub refuses it.
    """
    from diffplugin.export.maintenance import verify

    name = parse_name(target)
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError:
        raise MissingDependency("--push-to needs huggingface_hub: pip install 'diffplugin[hub]'") from None
    if faults := verify(path):
        raise BundleError(f"{path}: {faults[0]}; only a sound bundle is pushed")
    bundle = open_bundle(path)
    log(f"{path}: measuring a photo of {SIDE}x{SIDE} px for the card")
    card = model_card(bundle, target.partition("@")[0], measure(bundle))
    files = ["manifest.json", *bundle.manifest.files]
    added = [CommitOperationAdd(file, str(bundle.path / file)) for file in files]
    added.append(CommitOperationAdd(CARD, card.encode()))
    api = HfApi(library_name="diffplugin")
    try:
        api.create_repo(name.repository, exist_ok=True)
        if name.revision != "main":
            api.create_branch(name.repository, branch=name.revision, exist_ok=True)
        commit = api.create_commit(
            name.repository, added, commit_message=f"Bundle {bundle.manifest.name}", revision=name.revision
        )
    except Exception as error:  # the hub client has a dozen kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BundleError(f"{target}: the hub refuses: {lines[0] if lines else type(error).__name__}") from None
    return str(commit.commit_url)


def measure(bundle: Bundle) -> tuple[Plan, float]:
    """(plan, seconds) of one photo of ``SIDE`` px with the first plugin and prepared engines."""
    import diffplugin

    plugin = bundle.manifest.plugins[0]
    photo = np.random.default_rng(0).integers(0, 256, (SIDE // 8, SIDE // 8, 3)).astype(np.uint8)
    photo = photo.repeat(8, 0).repeat(8, 1)
    with diffplugin.load(bundle) as restorer:
        restorer.prepare((SIDE, SIDE), plugins=[plugin])
        began = time.perf_counter()
        made = restorer.restore(photo, plugins=[plugin])
        return made.plan, time.perf_counter() - began


def model_card(bundle: Bundle, target: str, measured: tuple[Plan, float]) -> str:
    """The card as Markdown with the hub's front matter: tasks, licences, parity, speed."""
    manifest, cards, (plan, seconds) = bundle.manifest, bundle.cards().values(), measured
    tasks = "\n".join(f"| `{card.id}` | {card.title} | {card.examples[0]} | {_cell(card.licence)} |" for card in cards)
    licences = "\n".join(f"- {part}: {text}" for part, text in manifest.licences.items()) or "- not stated"
    steps = plan.chain[0].steps
    return f"""---
license: other
library_name: diffplugin
pipeline_tag: image-to-image
tags: [image-restoration, diffusion, onnx]
---
# {manifest.name}

A bundle of [diffplugin](https://arxiv.org/abs/2403.00644): restores photographs on request, without PyTorch.

```bash
pip install 'diffplugin[hub]'
dp-infer photo.jpg "{next(iter(cards)).examples[0]}" --bundle {target}
```

## Tasks

| plugin | task | for example | licence |
|---|---|---|---|
{tasks}

{"It chooses plugins from words." if manifest.selector else "It has no selector: name the plugins."}

## Licences

{licences}

## Parity

Errors against the PyTorch reference, measured at export:

{_parity(manifest.parity)}

## Speed

{SIDE}x{SIDE} px, `{plan.chain[0].plugin}`, {steps} step{"s" * (steps != 1)}: {seconds:.2f} s with {plan.engine}
{plan.precision} on {_processor()}.

Made with diffplugin {manifest.created_with}, bundle format {manifest.format}.
"""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split()) or "not stated"


def _parity(report: Any) -> str:
    rows = [f"| {name} | {value} |" for name, value in sorted(_flat(report)) if not isinstance(value, dict)]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else "not measured"


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not hasattr(value, "items"):
        return [(prefix, f"{value:.3g}" if isinstance(value, float) else value)]
    return [pair for key, inner in value.items() for pair in _flat(inner, f"{prefix} {key}".strip())]


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
