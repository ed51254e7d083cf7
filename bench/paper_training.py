"""Time and memory of the paper's training at Stable Diffusion 1.4's full widths, on random weights:

    python -m diffplugin.bench.paper_training DIR --steps 2 --mixed-precision bf16

A few steps of ``dp-train plugin derain --recipe paper`` on pictures of noise, 512 pixels, one picture a step, in a
process of its own whose largest resident memory is told. The checkpoint is written into DIR where it is missing (5 GB,
:mod:`diffplugin.bench.full_width`). ``--base`` and ``--clip`` name another one.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffplugin.bench import full_width

SIDE = 512


def write_pairs(folder: Path, count: int, side: int = SIDE) -> Path:
    """``target/`` and ``input/`` with ``count`` pictures: patches of colour, and the same under noise."""
    rng = np.random.default_rng(0)
    for name in ("target", "input"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        patches = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        noisy = np.clip(np.asarray(patches) + rng.normal(0, 25, (side, side, 3)), 0, 255).astype(np.uint8)
        patches.save(folder / f"target/{i}.png")
        Image.fromarray(noisy).save(folder / f"input/{i}.png")
    return folder


def measure(out: Path, base: Path, clip: Path, *, steps: int, more: Sequence[str]) -> tuple[int, float]:
    """Train; (exit code, largest resident memory in bytes of the training, which its loader's workers do not exceed).

    The training says what it needs by estimate, and the seconds of every step.
    """
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)  # it would go on where it was
    pairs = write_pairs(out / "pairs", 2 * steps + 2)
    command = [
        *(sys.executable, "-P", "-m", "diffplugin.plugins.train", "plugin", "derain", "--recipe", "paper"),
        *("--work", str(work), "--base", str(base), "--clip", str(clip), "--pairs", str(pairs)),
        *("--max-train-steps", str(steps), "--validation-steps", "1", "--validation-pictures", "0"),
        *("--checkpointing-steps", str(steps), "--report-to", "none", "--dataloader-num-workers", "1", *more),
    ]
    done = subprocess.run(command, check=False)
    shutil.rmtree(work, ignore_errors=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return done.returncode, float(unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; other options are dp-train's. Returns the training's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the checkpoint and the pairs")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--base", type=Path, help="diffusers folder (default: random weights in the folder)")
    parser.add_argument("--clip", type=Path, help="CLIP folder")
    args, more = parser.parse_known_args(argv)
    if (args.base is None) != (args.clip is None):
        parser.error("--base and --clip belong together")
    if args.base is None and not (args.out / "clip/model.safetensors").is_file():
        full_width.make(args.out, plugins=())
    if "--train-batch-size" not in more:
        more += ["--train-batch-size", "1"]
    began = time.perf_counter()
    base, clip = args.base or args.out / "base", args.clip or args.out / "clip"
    code, peak = measure(args.out, base, clip, steps=args.steps, more=more)
    print(
        f"{args.steps} steps in {time.perf_counter() - began:.0f} s with loading; peak resident {peak / 2**30:.2f} GiB"
    )
    return code


if __name__ == "__main__":
    raise SystemExit(main())
