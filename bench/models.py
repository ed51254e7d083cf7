"""What is measured: a bundle, the checkpoint that it came from (for the peers), and where peers keep what they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffplugin.bundle import cache_folder, default_bundle
from diffplugin.errors import RequestError
from diffplugin.manifest import MANIFEST

if TYPE_CHECKING:
    from diffplugin.export.checkpoints import Checkpoint

EMBEDDED = "embedded"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to measure.

    Attributes:
        spec: as it was named: ``embedded``, ``embedded:BUNDLE`` or ``full:DIR``.
        bundle: what our engines run.
        artefacts: folder for what the peers make of the checkpoint: plain exports, compiled models.
        root: the checkpoint's folder; None: the embedded one.
    """

    spec: str
    bundle: Path
    artefacts: Path
    root: Path | None

    @property
    def title(self) -> str:
        """For reports: what it is, without the machine's folders."""
        return "embedded trained model" if self.root is None else "Stable Diffusion 1.4 widths, random weights"

    def checkpoint(self) -> Checkpoint:
        """The released layouts that peers read. Imports PyTorch."""
        from diffplugin.export.checkpoints import embedded_checkpoint, find

        if self.root is None:
            return embedded_checkpoint([])[0]
        return find(self.root / "base", self.root / "clip", self.root / "pre-trained")


def parse_model(spec: str) -> Model:
    """``embedded``, ``embedded:BUNDLE`` for another export of it (int8, say), or ``full:DIR`` with DIR as
    ``diffplugin.bench.full_width`` and ``dp-export`` fill it.

    Raises:
        RequestError: none of these, or there is no bundle.
    """
    kind, _, name = spec.partition(":")
    folder = Path(name).expanduser()
    if spec == EMBEDDED or (kind == EMBEDDED and name):
        bundle, artefacts, root = folder if name else default_bundle(), cache_folder() / "bench" / EMBEDDED, None
    elif kind == "full" and name:
        bundle, artefacts, root = folder / "bundle", folder / "peers", folder
    else:
        raise RequestError(f"model {spec!r}: expected embedded, embedded:BUNDLE or full:DIR")
    if not (bundle / MANIFEST).is_file():
        raise RequestError(f"model {spec!r}: {bundle} is no bundle; bench/README.md says how to make one")
    return Model(spec=spec, bundle=bundle, artefacts=artefacts, root=root)
