"""``python -m diffplugin.bench.gpu_acceptance``: the coordinator. Exit status: 0 accepted, 1 not, 2 wrong usage."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffplugin.bench.environment import environment
from diffplugin.bench.gpu_acceptance import prepared
from diffplugin.bench.gpu_acceptance.bars import failures
from diffplugin.bench.gpu_acceptance.card_row import card_row
from diffplugin.bench.gpu_acceptance.report import markdown, verdict
from diffplugin.bench.gpu_acceptance.trial import CARD, EMBEDDED, FULL, ORACLE, SCRATCH, Trial
from diffplugin.bench.measure import worker
from diffplugin.bench.work import parse_work
from diffplugin.engines.base import OnnxBuilder
from diffplugin.engines.choice import get_builder
from diffplugin.engines.device import DeviceBuilder
from diffplugin.errors import DiffPluginError, EngineUnavailable, RequestError
from diffplugin.files import write_text

FORMAT = 1
MIN_SECONDS = 10  # of a budget that are worth a part
SHARE = 1 / 3  # of a budget that one part may take: one that hangs leaves time for the others
RESULTS, REPORT, ROW = "acceptance.json", "acceptance.md", "row.md"
WORKER = "diffplugin.bench.gpu_acceptance.worker"
_MEASURED = ("build", "cold start", "replay", "fidelity", "measure", "pytorch eager", "torch.compile")
PARTS = {ORACLE: ("build", "goldens"), EMBEDDED: _MEASURED, FULL: _MEASURED}
# With --prepared, in the order of what is worth most: (model, part, precision).
PREPARED_PARTS = (
    (CARD, "ceilings", "fp16"),
    (ORACLE, "operators", "fp16"),
    (ORACLE, "goldens", "fp32"),
    (ORACLE, "goldens", "fp16"),
    (EMBEDDED, "replay", "fp16"),
    (EMBEDDED, "fidelity", "fp16"),
    (FULL, "draw", "fp16"),
    (FULL, "measure", "fp16"),
    (CARD, "networks", "fp16"),
    (FULL, "replay", "fp16"),
    (EMBEDDED, "measure", "fp16"),
    (CARD, "native", "fp16"),
    (FULL, "profile", "fp16"),
    (CARD, "compiled networks", "fp16"),
)
_MAKERS = ("build", "draw")  # of the bundles that the other parts of their model run
_OF_PYTORCH = ("networks", "compiled networks")
PEERS = ("pytorch eager", "torch.compile")
Run = Callable[[dict[str, Any], float], dict[str, Any]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffplugin.bench.gpu_acceptance",
        description="Build engines for this machine's GPU, check them against what the release computed, and measure "
        "them beside PyTorch.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for results and bundles")
    parser.add_argument("--full", type=Path, metavar="DIR", help="also the checkpoint that bench.full_width wrote here")
    parser.add_argument(
        "--engine",
        default="tensorrt-rtx",
        metavar="NAME",
        help="tensorrt-rtx (default), tensorrt or onnxruntime-cuda; onnxruntime rehearses all of it on the processor",
    )
    parser.add_argument(
        "--prepared",
        type=Path,
        metavar="DIR",
        help="folder of bench.gpu_acceptance.prepare: nothing is exported or fetched here, within --budget",
    )
    parser.add_argument("--budget", type=float, default=600, metavar="S", help="of a prepared run (default: 600)")
    parser.add_argument("--work", default="512x512", metavar="WxH", help="picture size (default: 512x512)")
    parser.add_argument("--steps", type=int, default=20, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each way is timed (default: 5)")
    parser.add_argument("--no-peers", action="store_true", help="leave PyTorch out")
    parser.add_argument(
        "--only", default="", metavar="PART,…", help="these parts alone, as goldens or measure, and what they need"
    )
    parser.add_argument("--timeout", type=float, default=3600, metavar="S", help="of one part (default: 3600)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; returns the exit status. Errors are one line on stderr, never a traceback."""
    args = _parser().parse_args(argv)
    try:
        trials = _chosen(list(_jobs(args)), args.only)
        found, refused = _environment(args.engine, others=args.prepared is not None)
    except DiffPluginError as error:
        print(f"gpu_acceptance: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError) else 1
    head = {
        "format": FORMAT,
        "environment": found,
        "conditions": {name: getattr(trials[0], name) for name in ("engine", "precision", "width", "height", "steps")}
        | {"rounds": args.rounds, "only": args.only},
    }
    if args.prepared is not None and not prepared.by_this_code(args.prepared):
        head["note"] = "The prepared folder was written by other code than ran here."
        print(f"gpu_acceptance: --prepared {args.prepared}: was written by other code than this", file=sys.stderr)
    try:
        (args.out / SCRATCH).mkdir(parents=True, exist_ok=True)
        (args.out / SCRATCH / ".gitignore").write_text("*\n", encoding="utf-8")
        execute = partial(_in_a_process, refused)
        result = run(trials, head, args.out, execute, args.timeout, args.budget if args.prepared else None)
    except OSError as error:
        print(f"gpu_acceptance: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"gpu_acceptance: interrupted; what is done is in {args.out / RESULTS}", file=sys.stderr)
        return 130
    print(f"{args.out / REPORT}: {verdict(result)}")
    return 1 if failures(result) else 0


def _environment(engine: str, *, others: bool) -> tuple[dict[str, Any], str | None]:
    """(the machine, None or why the engine cannot run here).

    Args:
        others: there are parts that need the GPU and not this engine.

    Raises:
        EngineUnavailable: there is no such engine, no GPU or no driver; or it cannot run, and there are no such parts.
    """
    builder = get_builder(engine)
    refused = None
    if reason := builder.unavailable_reason():
        refused = f"engine {engine} cannot run here: {' '.join(reason.split())}"
        if not others or not isinstance(builder, DeviceBuilder) or _no_gpu(builder.driver()):
            raise EngineUnavailable(refused)
    found: dict[str, Any] = environment()
    if isinstance(builder, DeviceBuilder):
        describe = getattr(builder.driver(), "describe", None)
        found["gpu"] = describe() if describe is not None else {}
    if isinstance(builder, OnnxBuilder):  # the module that runs: several packages install it
        found["onnxruntime"] = builder.version()
    for package in ("tensorrt", "tensorrt-rtx", "cuda-python", "onnxruntime-gpu"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found, refused


def _no_gpu(driver: Any) -> str | None:
    asked = getattr(driver, "unavailable_reason", None)  # a library's own driver may not tell
    return asked() if asked is not None else None


def _jobs(args: argparse.Namespace) -> Iterator[Trial]:
    """Every part in the order in which they run.

    Raises:
        RequestError: an option that cannot be.
    """
    if args.prepared is not None:
        yield from _prepared_jobs(args)
        return
    work = parse_work(args.work)
    for name in ("steps", "rounds"):
        if getattr(args, name) < 1:
            raise RequestError(f"{name} is {getattr(args, name)}, expected at least 1")
    if work.width % 8 or work.height % 8:
        raise RequestError(f"work {args.work}: expected sides that are multiples of 8, which the peers need")
    if args.full is not None and not (args.full / "base").is_dir():
        raise RequestError(f"--full {args.full}: no checkpoint; write it with python -m diffplugin.bench.full_width")
    for model in (ORACLE, EMBEDDED, *([f"{FULL}:{args.full}"] if args.full else [])):
        for part in PARTS[model.partition(":")[0]]:
            if part in PEERS and args.no_peers:
                continue
            yield Trial(
                part=part,
                model=model,
                engine=args.engine,
                precision=get_builder(args.engine).precisions()[0],
                out=str(args.out.resolve()),
                width=work.width,
                height=work.height,
                steps=args.steps,
                rounds=args.rounds,
            )


def _chosen(trials: list[Trial], only: str) -> list[Trial]:
    """The parts of these names, and the ones that make their bundles; all of them if none is named.

    Raises:
        RequestError: there is no such part.
    """
    names, there = set(filter(None, only.split(","))), dict.fromkeys(trial.part for trial in trials)
    if unknown := sorted(names - set(there)):
        raise RequestError(f"--only {only}: no part is called {unknown[0]!r}; expected some of {', '.join(there)}")
    models = {trial.model for trial in trials if trial.part in names}
    return [t for t in trials if not names or t.part in names or (t.part in _MAKERS and t.model in models)]


def _prepared_jobs(args: argparse.Namespace) -> Iterator[Trial]:
    """As :func:`_jobs`, of a prepared folder, whose size and steps they have."""
    told = prepared.read(args.prepared, args.engine)
    if args.rounds < 1:
        raise RequestError(f"rounds is {args.rounds}, expected at least 1")
    for model, part, precision in PREPARED_PARTS:
        if part in _OF_PYTORCH and args.no_peers:
            continue
        yield Trial(
            part=part,
            model=model,
            engine=args.engine,
            precision=precision,
            out=str(args.out.resolve()),
            width=told["width"],
            height=told["height"],
            steps=told["steps"],
            rounds=args.rounds,
            prepared=str(args.prepared.resolve()),
        )


def _in_a_process(refused: str | None, trial: dict[str, Any], timeout: float) -> dict[str, Any]:
    if refused is not None and trial["model"] != CARD:
        return {"error": refused}
    return worker(trial, timeout, WORKER)


def run(
    trials: Sequence[Trial], head: dict[str, Any], out: Path, execute: Run, timeout: float, budget: float | None = None
) -> dict[str, Any]:
    """Run the parts; the result is on disk, whole, after each of them.

    Args:
        timeout: seconds of one part.
        budget: seconds of all; parts that come too late for it are not run, and none takes more than its
            :data:`SHARE`. None: as long as it takes.
    """
    parts: list[dict[str, Any]] = []
    result = head | {"parts": parts}
    ready = {trial.kind: bool(trial.prepared) for trial in trials}
    began = time.monotonic()
    for trial in trials:
        left = None if budget is None else budget - (time.monotonic() - began)
        if left is not None and left < MIN_SECONDS:
            made: dict[str, Any] = {"error": f"no time left of {budget:g} s"}
        elif trial.part != "build" and not ready[trial.kind]:
            made = {"error": "its engines were not built"}
        else:
            print(f"{trial.kind}, {trial.part}: …", flush=True)
            limit = timeout if budget is None or left is None else min(timeout, left, max(budget * SHARE, MIN_SECONDS))
            made = execute(trial.to_json(), limit)
        if trial.part in _MAKERS:
            ready[trial.kind] = "error" not in made
        parts.append(
            {"part": trial.part, "model": trial.kind, "engine": trial.engine, "precision": trial.precision} | made
        )
        print(f"{trial.kind}, {trial.part}: {_told(made)}", flush=True)
        write_text(out / RESULTS, json.dumps(result, indent=1) + "\n")
        write_text(out / REPORT, markdown(result))
        if trial.prepared:
            write_text(out / ROW, card_row(result))
    return result


def _told(made: dict[str, Any]) -> str:
    if "error" in made:
        return f"not run: {made['error']}"
    if "skipped" in made:
        return f"not applicable: {made['skipped']}"
    failed = [f"{c['name']}: {c['found']}" for c in made.get("checks", ()) if not c["ok"]]
    return "; ".join(f"FAILED {text}" for text in failed) or "done"


if __name__ == "__main__":
    sys.exit(main())
