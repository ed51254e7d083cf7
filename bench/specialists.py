"""Published specialist restorers on the test pictures of ``dp-eval restore``, each on the task that it was made for.

Their weights are not part of this project. The packages that hold them are unpacked into a folder of the user's choice
(docs/training.md says how); nothing in them is run but one network's definition in PyTorch.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.bench.environment import environment
from diffplugin.bench.work import Pixels
from diffplugin.engines.threads import thread_count
from diffplugin.errors import CheckpointError, DiffPluginError, MissingDependency, RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from diffplugin.plugins.train.evaluate import Scores

Restore = Callable[[Pixels], Pixels]
NPM = "npm install --ignore-scripts --legacy-peer-deps --prefix"
PIP = "pip install --no-deps --target"
MULTIPLE = 64  # of MAXIM's sides: its authors pad pictures to it
HEAD = (
    "| task | specialist | trained on | side | photos | PSNR, dB | SSIM | GMSD (less is better) | better | seconds |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, kw_only=True)
class Specialist:
    """A restorer of one task.

    Attributes:
        data: what it was trained on.
        package: with version, as ``install`` takes it.
        install: what installs it into a folder: this, the folder, the package.
        file: its weights, in that folder.
        load: makes a restorer of that file; pictures are uint8 [H, W, 3].
    """

    task: str
    name: str
    data: str
    package: str
    install: str
    file: str
    load: Callable[[Path], Restore]

    def check(self, modules: Path) -> None:
        """Raises MissingDependency where it is not installed in ``modules``."""
        if not (modules / self.file).is_file():
            command = f"{self.install} {modules} {self.package}"
            raise MissingDependency(f"{self.name} for {self.task} is not in {modules}: {command}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. ``better``: pictures whose PSNR rose; ``seconds``: median a picture."""

    task: str
    specialist: str
    data: str
    side: int
    photos: int
    given: Scores
    made: Scores
    better: int
    seconds: float

    def line(self) -> str:
        a, b = self.given, self.made
        return (
            f"| {self.task} | {self.specialist} | {self.data} | {self.side} | {self.photos} | "
            f"{a.psnr:.2f} → {b.psnr:.2f} | {a.ssim:.3f} → {b.ssim:.3f} | {a.gmsd:.3f} → {b.gmsd:.3f} | "
            f"{self.better}/{self.photos} | {self.seconds:.2f} |"
        )


def _through(network: Callable[[Tensor], Tensor], pixels: Pixels) -> Pixels:
    """``network``: float32 [1, H, W, 3] to the same, in 0..1."""
    import torch

    with torch.inference_mode():
        made = network(torch.from_numpy(pixels[None] / np.float32(255)))[0]
    return np.asarray(made.clamp(0, 1).numpy() * 255 + 0.5, dtype=np.uint8)


def maxim(file: Path) -> Restore:
    """MAXIM (arXiv:2201.02973) from ``model.json`` of TensorFlow.js; sides are multiples of 64."""
    from diffplugin.bench.tfjs import GraphModel

    model = GraphModel(file)

    def restore(pixels: Pixels) -> Pixels:
        if any(side % MULTIPLE for side in pixels.shape[:2]):
            raise RequestError(f"MAXIM takes sides that are multiples of {MULTIPLE}, not {pixels.shape[:2]}")
        return _through(model, pixels)

    return restore


def zero_dce(file: Path) -> Restore:
    """Zero-DCE++ as neuro-low-light has it: its ``model.py`` alone, without the libraries for video that it imports."""
    import torch

    spec = importlib.util.spec_from_file_location("specialist_zero_dce", file.parents[1] / "model.py")
    if spec is None or spec.loader is None:
        raise CheckpointError(f"{file.parents[1]}: no model.py")
    module: Any = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        network = module.ZeroDCEPP().eval()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["model_state_dict"])
    except Exception as error:
        raise CheckpointError(f"{file}: cannot be loaded ({error!r})") from None
    return lambda pixels: _through(lambda x: network(x.permute(0, 3, 1, 2))[0].permute(0, 2, 3, 1), pixels)


def _maxim(task: str, name: str, data: str, model: str) -> Specialist:
    package = f"@upscalerjs/maxim-{model}"
    file = f"node_modules/{package}/models/model.json"
    return Specialist(task=task, name=name, data=data, package=f"{package}@0.1.0", install=NPM, file=file, load=maxim)


SPECIALISTS = (
    _maxim("deblur", "MAXIM-3S", "GoPro", "deblurring"),
    _maxim("derain", "MAXIM-2S", "Rain13k", "deraining"),
    _maxim("dehaze", "MAXIM-2S", "RESIDE, outdoor", "dehazing-outdoor"),
    _maxim("dehaze", "MAXIM-2S", "RESIDE, indoor", "dehazing-indoor"),
    _maxim("lowlight", "MAXIM-2S", "LOL", "enhancement"),
    Specialist(
        task="lowlight",
        name="Zero-DCE++ (neuro-low-light)",
        data="LOL, unpaired",
        package="neuro-low-light==0.1.0",
        install=PIP,
        file="neuro_low_light/weights/best_model.pth",
        load=zero_dce,
    ),
)
TASKS = tuple(dict.fromkeys(s.task for s in SPECIALISTS))


def compare(specialist: Specialist, restore: Restore, clean: Sequence[Pixels]) -> Row:
    """Degrade ``clean`` (equal sizes) as ``dp-eval restore`` does, restore, compare."""
    from diffplugin.export.measures import psnr
    from diffplugin.plugins.train import evaluate
    from diffplugin.plugins.train.degradations import degrade

    bad = [degrade(p, specialist.task, evaluate.SEED + i) for i, p in enumerate(clean)]
    good, seconds = [], []
    for picture in bad:
        began = time.perf_counter()
        good.append(restore(picture))
        seconds.append(time.perf_counter() - began)
    return Row(
        task=specialist.task,
        specialist=specialist.name,
        data=specialist.data,
        side=clean[0].shape[0],
        photos=len(clean),
        given=evaluate.scores(bad, clean),
        made=evaluate.scores(good, clean),
        better=sum(psnr(g, c) > psnr(b, c) for g, b, c in zip(good, bad, clean, strict=True)),
        seconds=median(seconds),
    )


def measure(
    work: Path,
    modules: Path,
    out: Path,
    *,
    specialists: Sequence[Specialist] = SPECIALISTS,
    side: int = 256,
    photos: int | None = None,
    threads: int | None = None,
) -> list[Row]:
    """The table and its numbers in ``out/specialists.md`` and ``.json``, renewed after every row.

    Raises:
        RequestError: ``work`` has no photos.
        MissingDependency: a specialist is not installed; said before anything is measured.
        CheckpointError: its files are damaged.
    """
    import torch

    from diffplugin.plugins.train import evaluate, layout

    torch.set_num_threads(thread_count(threads))
    if not (work / "photos.json").is_file() or not (clean := evaluate.test_photos(work, side, photos)):
        raise RequestError(f"{work}: no test photos of {side} pixels; run dp-train photos --work {work} first")
    for specialist in specialists:
        specialist.check(modules)
    rows: list[Row] = []
    print(HEAD, flush=True)
    for specialist in specialists:
        rows.append(compare(specialist, specialist.load(modules / specialist.file), clean))
        print(rows[-1].line(), flush=True)
        layout.write_lines(out / "specialists.md", "\n".join([HEAD, *(row.line() for row in rows)]) + "\n")
        conditions = environment() | {"threads": thread_count(threads)}
        layout.write_json(out / "specialists.json", {"environment": conditions, "rows": [asdict(r) for r in rows]})
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffplugin.bench.specialists",
        description="Published specialists on the test pictures and degradations of dp-eval restore.",
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder of dp-train with the photos")
    parser.add_argument(
        "--modules", type=Path, required=True, metavar="DIR", help="where the specialists are installed"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="specialists.md and .json go here")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK", help="default: all")
    parser.add_argument("--size", type=int, default=256, metavar="N", help="side of the test crops (default: 256)")
    parser.add_argument("--photos", type=int, metavar="N", help="at most so many (default: all)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 after one line that says what was wrong."""
    args = _parser().parse_args(argv)
    chosen = [s for s in SPECIALISTS if s.task in args.tasks]
    options = {"side": args.size, "photos": args.photos, "threads": args.threads}
    try:
        measure(args.work, args.modules, args.out, specialists=chosen, **options)
    except DiffPluginError as error:
        print(f"specialists: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"specialists: {error.name} is needed; pip install 'diffplugin[train]'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
