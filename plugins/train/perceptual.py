"""Perceptual measures through pyiqa, where it is installed: LPIPS and DISTS with a ground truth, NIQE, MUSIQ, CLIP-IQA
and others without. Their networks are the user's: pyiqa keeps them in its own cache."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffplugin.errors import MissingDependency, RequestError

Pixels = NDArray[np.uint8]


class Measure:
    """A measure of one picture [H, W, 3], with its truth where ``needs_truth``."""

    def __init__(self, name: str, network: Any) -> None:
        self.name, self._network = name, network
        self.needs_truth: bool = getattr(network, "metric_mode", "NR") == "FR"
        self.title = f"{name} {'↓' if getattr(network, 'lower_better', False) else '↑'}"

    @torch.no_grad()
    def __call__(self, pixels: Pixels, truth: Pixels | None) -> float:
        images = [_image(p) for p in ((pixels, truth) if self.needs_truth and truth is not None else (pixels,))]
        return float(self._network(*images))


def _image(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def open_measure(text: str) -> Measure:
    """``NAME`` or ``NAME=WEIGHTS``: a measure of pyiqa, with a weights file of one's own.

    Raises:
        MissingDependency: pyiqa is not there.
        RequestError: pyiqa cannot be loaded, has no measure of that name, or cannot have its weights.
    """
    name, _, weights = text.partition("=")
    try:
        import pyiqa
    except ImportError as error:
        lacks = "" if error.name == "pyiqa" else f" ({error})"
        raise MissingDependency(f"--measures {name} needs pyiqa{lacks}: pip install 'diffplugin[measures]'") from None
    except Exception as error:  # such as a torchvision that does not fit PyTorch
        raise RequestError(f"--measures {name}: pyiqa cannot be loaded ({str(error).splitlines()[0]})") from None
    if name not in pyiqa.list_models():
        near = (
            ", ".join(m for m in pyiqa.list_models() if m.split("-")[0] == name.split("-")[0]) or "lpips, dists, niqe"
        )
        raise RequestError(f"--measures {name}: pyiqa has none of that name (such as {near})")
    if weights and not Path(weights).is_file():
        raise RequestError(f"--measures {text}: no such weights file")
    more = {"pretrained_model_path": weights} if weights else {}
    try:
        with redirect_stdout(sys.stderr):  # it tells of its downloads
            network = pyiqa.create_metric(name, device="cpu", **more)
    except Exception as error:  # whatever its downloads and its networks raise
        raise RequestError(f"--measures {name}: pyiqa cannot make it ({str(error).splitlines()[0]})") from None
    return Measure(name, network)
