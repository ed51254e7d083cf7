"""The one training loop: every network of this package learns through :func:`fit`.

What a step does depends on (seed, step, process) alone, so a run that was killed and resumed ends bit for bit where an
uninterrupted one does. Devices and several processes are accelerate's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffplugin.errors import CheckpointError
from diffplugin.plugins.train.common import load_state, rate, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["fp32", "bf16"]
Report = Callable[[int], Mapping[str, "float | NDArray[np.uint8]"]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast: AdamW, linear warm-up, cosine to 2 % of ``peak``, averaged weights (arXiv:2006.11239)."""

    steps: int
    peak: float
    warmup: int = 100
    decay: float = 0.998
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    every: int = 500
    """Steps between two saved states and reports."""
    precision: Precision = "fp32"


def learned(objective: nn.Module) -> dict[str, nn.Parameter]:
    """What the optimiser may change, by name."""
    return {name: p for name, p in objective.named_parameters() if p.requires_grad}


def accelerator() -> Accelerator:
    """Devices and processes as ``accelerate launch`` or the environment set them."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # the vision encoder's last norm is part of CLIP's layout, but no patch passes it
    return Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


def generator(seed: int, step: int, process: int = 0) -> np.random.Generator:
    """All randomness of one step."""
    return np.random.default_rng((seed, step, process))


@contextmanager
def exchanged(objective: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """``objective`` with other weights for a while."""
    parameters = learned(objective)
    kept = {name: p.detach().clone() for name, p in parameters.items()}
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
    plan: Plan,
    path: Path,
    *,
    name: str,
    seed: int = 0,
    report: Report | None = None,
) -> None:
    """Train ``objective`` (called with step and generator, it returns the loss), or go on from the state in ``path``.

    Afterwards ``objective`` holds the averaged weights. Curves and pictures of ``report(step)``, which sees the
    averaged weights, go to TensorBoard files in ``path.parent / "curves"``.

    Raises:
        CheckpointError: ``path`` holds the state of another training.
    """
    from torch.utils.tensorboard import SummaryWriter

    run = accelerator()
    parameters = learned(objective)
    optimiser = torch.optim.AdamW(
        parameters.values(), lr=plan.peak, betas=plan.betas, weight_decay=plan.weight_decay, foreach=True
    )
    prepared, optimiser = run.prepare(objective, optimiser)
    average = {key: p.detach().clone() for key, p in parameters.items()}
    first = _resume(path, objective, average, optimiser)
    folder = str(path.parent / "curves" / name)
    curves = SummaryWriter(folder, purge_step=first) if run.is_main_process else None
    began, losses = time.time(), []
    prepared.train()
    for step in range(first, plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, plan.steps, plan.peak, plan.warmup)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            loss = prepared(step, generator(seed, step, run.process_index))
        optimiser.zero_grad()
        run.backward(loss)
        run.clip_grad_norm_(parameters.values(), plan.clip)
        optimiser.step()
        keep = min(plan.decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, p in parameters.items():
                average[key].lerp_(p, 1 - keep)
        losses.append(loss.detach())
        done = step + 1
        if curves is not None and (done % plan.every == 0 or done == plan.steps):
            save_state(path, _state(parameters, average, optimiser, done))
            with exchanged(objective, average), torch.no_grad():
                found = {"loss": float(torch.stack(losses).mean()), **(report(done) if report else {})}
            _write(curves, name, done, plan.steps, found, time.time() - began)
            losses = []
    assign(objective, average)
    if curves is not None:
        curves.close()


def _state(
    parameters: Mapping[str, Tensor], average: Mapping[str, Tensor], optimiser: Any, step: int
) -> dict[str, Any]:
    return {
        "model": {key: p.detach() for key, p in parameters.items()},
        "average": dict(average),
        "optimiser": optimiser.state_dict(),
        "step": step,
    }


def _resume(path: Path, objective: nn.Module, average: dict[str, Tensor], optimiser: Any) -> int:
    """Load what ``path`` holds; the step to go on from."""
    state = load_state(path)
    if state is None:
        return 0
    if set(state["model"]) != set(average):
        raise CheckpointError(f"{path}: the state of another training; move it away, or take another --work folder")
    assign(objective, state["model"])
    for key, value in average.items():
        value.copy_(state["average"][key])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _write(curves: Any, name: str, step: int, steps: int, found: Mapping[str, Any], seconds: float) -> None:
    numbers = {key: value for key, value in found.items() if isinstance(value, float)}
    for key, value in found.items():
        if isinstance(value, float):
            curves.add_scalar(key, value, step)
        else:
            curves.add_image(key, value, step, dataformats="HWC")
    curves.flush()
    line = " ".join(f"{key} {value:.4f}" for key, value in numbers.items())
    print(f"{name} step {step}/{steps} {line} {seconds:.0f} s", flush=True)
