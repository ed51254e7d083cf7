"""The one training loop: every network of this package learns through :func:`fit`.

What a step does depends on (seed, step, process) alone, so a run that was killed and resumed ends bit for bit where an
uninterrupted one does. Devices, several processes, mixed precision, accumulation and trackers are accelerate's
business.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffplugin.errors import CheckpointError, MissingDependency, RequestError
from diffplugin.plugins.train.common import load_state, owned, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["no", "fp16", "bf16"]
Report = Callable[[int], Mapping[str, "float | NDArray[np.uint8]"]]
# batches of micro steps first to last, of one process of so many
BatchSource = Callable[[int, int, int, int], Iterator[Any]]
_EXTRAS = {"tensorboard": "train", "wandb": "wandb"}  # tracker -> the extra that brings it


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """How long and how fast an AdamW optimiser runs, and what is kept of it.

    Attributes:
        steps: of the optimiser.
        peak: rate after the warm-up.
        schedule: "cosine": to 2 % of ``peak``; "linear": to 0; "constant": without a warm-up.
        ema: decay of the averaged weights (arXiv:2006.11239), which then stand for the network; None: the last weights.
        clip: largest norm of the gradients; ``clip_parts``: of each of these parts of the objective on its own.
        accumulation: micro steps of one step.
        every: steps between two saved states; ``validate``: between two reports (None: with every state).
        trackers: where curves and pictures go.
    """

    steps: int
    peak: float
    schedule: str = "cosine"
    warmup: int = 100
    ema: float | None = 0.998
    clip: float = 1.0
    clip_parts: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    accumulation: int = 1
    every: int = 500
    validate: int | None = None
    precision: Precision | None = "no"
    unused: bool = False
    """Some learned weights may take no part in a step (DistributedDataParallel has to search for them then)."""
    trackers: tuple[str, ...] = ("tensorboard",)

    def rate(self, step: int) -> float:
        """The rate of one step."""
        if self.schedule == "constant":
            return self.peak
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        if self.schedule == "linear":
            return self.peak * (1 - done)
        if self.schedule == "cosine":
            return self.peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        return self.peak


def learned(objective: nn.Module) -> dict[str, nn.Parameter]:
    """What the optimiser may change, by name."""
    return {name: p for name, p in objective.named_parameters() if p.requires_grad}


def accelerator(arguments: TrainingArguments | None = None, logs: Path | None = None) -> Accelerator:
    """Devices and processes as ``accelerate launch`` or the environment set them.

    Raises:
        MissingDependency: a tracker's package is not there.
        RequestError: a precision that this device has not.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    arguments = arguments or TrainingArguments(steps=1, peak=1.0, precision=None, trackers=())
    for tracker in arguments.trackers:
        if importlib.util.find_spec(tracker) is None:
            extra = _EXTRAS.get(tracker, tracker)
            raise MissingDependency(f"--report-to {tracker}: not installed: pip install 'diffplugin[{extra}]'")
    before = AcceleratorState._shared_state.get("_mixed_precision")
    if arguments.precision is not None and before not in (None, arguments.precision):
        AcceleratorState._reset_state()  # another training of this process chose another precision
    try:
        return Accelerator(
            mixed_precision=arguments.precision,
            gradient_accumulation_steps=arguments.accumulation,
            log_with=list(arguments.trackers) or None,
            project_dir=str(logs) if logs else None,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=arguments.unused)],
        )
    except (ValueError, RuntimeError) as error:
        raise RequestError(f"mixed precision {arguments.precision}: {str(error).splitlines()[0]}") from None


def generator(seed: int, step: int, process: int = 0) -> np.random.Generator:
    """All randomness of one micro step."""
    return np.random.default_rng((seed, step, process))


@contextmanager
def exchanged(objective: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """``objective`` with other weights for a while (None: with its own)."""
    if weights is None:
        yield
        return
    kept = {name: p.detach().clone() for name, p in learned(objective).items()}
    assign(objective, weights)
    try:
        yield
    finally:
        assign(objective, kept)


@torch.no_grad()
def assign(objective: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the learned parameters.

    Raises:
        KeyError: a parameter is missing in ``weights``, which names it.
    """
    for name, parameter in learned(objective).items():
        parameter.copy_(weights[name])


def fit(
    objective: nn.Module,
    arguments: TrainingArguments,
    path: Path,
    *,
    name: str,
    seed: int = 0,
    report: Report | None = None,
    batches: BatchSource | None = None,
) -> None:
    """Train ``objective``, or go on from the state in ``path``.

    It is called with (micro step, generator), and with a batch where there are ``batches``, and returns the loss.
    Afterwards it holds the averaged weights, if there is an average. Curves and pictures of ``report(step)``, which
    sees those weights, go to the trackers: TensorBoard's files lie in ``path.parent / "curves"``.

    Raises:
        CheckpointError: ``path`` holds the state of another training.
        RequestError: another process trains on ``path``.
        ImageError: a pair cannot be used.
    """
    run = accelerator(arguments, path.parent / "curves")
    with owned(path) if run.is_main_process else nullcontext():
        _fit(run, objective, arguments, path, name=name, seed=seed, report=report, batches=batches)


def _fit(
    run: Accelerator,
    objective: nn.Module,
    arguments: TrainingArguments,
    path: Path,
    *,
    name: str,
    seed: int,
    report: Report | None,
    batches: BatchSource | None,
) -> None:
    parameters = learned(objective)
    optimiser = torch.optim.AdamW(
        parameters.values(),
        lr=arguments.peak,
        betas=arguments.betas,
        eps=arguments.epsilon,
        weight_decay=arguments.weight_decay,
        foreach=True,
    )
    prepared, optimiser = run.prepare(objective, optimiser)
    average = None if arguments.ema is None else {key: p.detach().clone() for key, p in parameters.items()}
    first = _resume(path, objective, average, optimiser, run.scaler)
    _start_trackers(run, arguments, path.parent / "curves", name, first)
    micro = first * arguments.accumulation
    stream = batches and batches(micro, arguments.steps * arguments.accumulation, run.process_index, run.num_processes)
    began, losses, last = time.time(), list[Tensor](), first
    prepared.train()
    for step in range(first, arguments.steps):
        for group in optimiser.param_groups:
            group["lr"] = arguments.rate(step)
        losses += _step(run, arguments, prepared, optimiser, parameters, stream, seed, step)
        if average is not None:
            _follow(average, parameters, min(arguments.ema or 0.0, (step + 1) / (step + 10)))
        done = step + 1
        ended = done == arguments.steps
        if run.is_main_process and (ended or done % arguments.every == 0):
            save_state(path, _state(parameters, average, optimiser, run.scaler, done))
        if ended or done % (arguments.validate or arguments.every) == 0:
            if run.is_main_process:
                with exchanged(objective, average), torch.no_grad():
                    found = {"loss": float(torch.stack(losses).mean()), **(report(done) if report else {})}
                _write(run, name, done, arguments, found, (time.time() - began) / (done - last))
                prepared.train()
            losses, began, last = [], time.time(), done
    if average is not None:
        assign(objective, average)
    for tracker in run.trackers:  # not run.end_training(): further trainings of this process need its group
        tracker.finish()


def _step(
    run: Accelerator,
    arguments: TrainingArguments,
    prepared: nn.Module,
    optimiser: Any,
    parameters: Mapping[str, nn.Parameter],
    stream: Iterator[Any] | None,
    seed: int,
    step: int,
) -> list[Tensor]:
    """One step of the optimiser; the losses of its micro steps."""
    losses = []
    for micro in range(step * arguments.accumulation, (step + 1) * arguments.accumulation):
        with run.accumulate(prepared):
            more = () if stream is None else (next(stream),)
            loss = prepared(micro, generator(seed, micro, run.process_index), *more)
            run.backward(loss)
            if run.sync_gradients:
                _clip(run, arguments, parameters)
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.detach())
    return losses


@torch.no_grad()
def _follow(average: dict[str, Tensor], parameters: Mapping[str, Tensor], keep: float) -> None:
    for key, p in parameters.items():
        average[key].lerp_(p, 1 - keep)


def _clip(run: Accelerator, arguments: TrainingArguments, parameters: Mapping[str, nn.Parameter]) -> None:
    groups: Sequence[list[nn.Parameter]] = [
        [p for key, p in parameters.items() if key.startswith(part)] for part in arguments.clip_parts or ("",)
    ]
    for group in groups:
        if group:
            run.clip_grad_norm_(group, arguments.clip)


def _state(
    parameters: Mapping[str, Tensor], average: Mapping[str, Tensor] | None, optimiser: Any, scaler: Any, step: int
) -> dict[str, Any]:
    model = {key: p.detach() for key, p in parameters.items()}
    return {
        "model": model,
        "average": dict(average) if average is not None else model,
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "step": step,
    }


def _resume(path: Path, objective: nn.Module, average: dict[str, Tensor] | None, optimiser: Any, scaler: Any) -> int:
    """Load what ``path`` holds; the step to go on from."""
    state = load_state(path)
    if state is None:
        return 0
    if set(state["model"]) != set(learned(objective)):
        raise CheckpointError(f"{path}: the state of another training; move it away, or take another --work folder")
    assign(objective, state["model"])
    for key, value in (average or {}).items():
        value.copy_(state["average"][key])
    optimiser.load_state_dict(state["optimiser"])
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    return int(state["step"])


def _start_trackers(run: Accelerator, arguments: TrainingArguments, logs: Path, name: str, first: int) -> None:
    if not arguments.trackers:
        return
    logs.mkdir(parents=True, exist_ok=True)
    more = {"tensorboard": {"purge_step": first}, "wandb": {"name": name, "dir": str(logs)}}
    project = name if "tensorboard" in arguments.trackers else "diffplugin"
    run.init_trackers(project, init_kwargs={key: more[key] for key in arguments.trackers})


def _write(
    run: Accelerator, name: str, step: int, arguments: TrainingArguments, found: Mapping[str, Any], seconds: float
) -> None:
    peak = torch.cuda.max_memory_allocated() if run.device.type == "cuda" else 0
    numbers = {key: value for key, value in found.items() if isinstance(value, float)}
    run.log(numbers | {"lr": arguments.rate(step - 1), "seconds per step": seconds}, step=step)
    for tracker in run.trackers:
        for key, value in found.items():
            if not isinstance(value, float):
                more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({key: value[None]}, step=step, **more)
    line = " ".join(f"{key} {value:.4f}" for key, value in numbers.items())
    memory = f", {peak / 2**30:.1f} GiB on the device" if peak else ""
    print(f"{name} step {step}/{arguments.steps} {line}, {seconds:.2f} s a step{memory}", flush=True)
