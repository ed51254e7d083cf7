"""The training loop: exact resume after a real kill, averaged weights, curves."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffplugin.errors import CheckpointError, MissingDependency, RequestError
from diffplugin.plugins.train import loop
from diffplugin.plugins.train.common import gaussian, load_state, owned

ROOT = Path(__file__).resolve().parents[3]
STEPS = 9


class Fit(nn.Module):
    """A small network with everything that may break a resume: bf16, noise, a frozen part; it dies at ``dies``."""

    def __init__(self, dies: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.dies = dies

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        if step == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        x = gaussian((2, 3, 8, 8), rng)
        error: Tensor = (self.net(x).float() - x[:, :, 2:-2, 2:-2]).square().mean()
        return error


def run(path: Path, steps: int = STEPS, dies: int | None = None) -> Fit:
    objective = Fit(dies)
    arguments = loop.TrainingArguments(steps=steps, peak=1e-2, warmup=2, every=4, weight_decay=0.01, precision="bf16")
    loop.fit(objective, arguments, path, name="toy", report=lambda step: {"step": float(step)})
    return objective


def test_killed_and_resumed_is_bit_for_bit_the_uninterrupted_run(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole/state.pt")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_loop as t; from pathlib import Path; "
    code += "t.run(Path(sys.argv[2]), dies=6)"
    here, path = str(Path(__file__).parent), tmp_path / "killed/state.pt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, here, str(path)], env=environment, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.returncode
    state = load_state(path)
    assert state is not None and state["step"] == 4, "the last saved step before the kill at step 6"
    resumed = run(path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    ends = [load_state(tmp_path / folder / "state.pt") for folder in ("whole", "killed")]
    for name, value in ends[0]["model"].items():  # type: ignore[index]
        assert torch.equal(value, ends[1]["model"][name]), name  # type: ignore[index]


def test_holds_the_averaged_weights_and_leaves_the_frozen_ones(tmp_path: Path) -> None:
    objective = run(tmp_path / "state.pt")
    state = load_state(tmp_path / "state.pt")
    assert state is not None and "frozen.weight" not in state["model"]
    for name, value in state["average"].items():
        assert torch.equal(objective.state_dict()[name], value), name
        assert not torch.equal(state["model"][name], value), f"{name}: the average is not the last step"
    assert torch.equal(objective.frozen.weight, Fit().frozen.weight)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, second = run(tmp_path / "state.pt"), run(tmp_path / "state.pt")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_refuses_the_state_of_another_training(tmp_path: Path) -> None:
    run(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="another training"):
        loop.fit(nn.Linear(2, 2), loop.TrainingArguments(steps=1, peak=1e-3), tmp_path / "state.pt", name="other")


def test_a_state_is_one_process_alone(tmp_path: Path) -> None:
    path = tmp_path / "run/state.pt"
    with owned(path), pytest.raises(RequestError, match=r"state\.pt: another process trains on it; wait for it"):
        run(path, steps=1)
    assert not path.exists()
    run(path, steps=1)
    assert path.exists(), "free again"


def test_writes_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "state.pt")
    curves = EventAccumulator(str(tmp_path / "curves/toy"))
    curves.Reload()
    assert [event.step for event in curves.Scalars("loss")] == [4, 8, 9]
    assert [event.value for event in curves.Scalars("step")] == [4, 8, 9]


class Given(nn.Module):
    """Learns from batches that are given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, step: int, rng: np.random.Generator, batch: Tensor) -> Tensor:
        return (self.weight * batch).square().mean()


def batches(first: int, last: int, process: int, processes: int) -> Iterator[Tensor]:
    """Micro step k: three numbers that k decides."""
    return (torch.from_numpy(np.random.default_rng(k).normal(size=3).astype(np.float32)) for k in range(first, last))


def test_accumulated_micro_steps_are_one_step_of_their_mean(tmp_path: Path) -> None:
    def pairs(first: int, last: int, process: int, processes: int) -> Iterator[Tensor]:
        return (torch.stack(tuple(batches(2 * k, 2 * k + 2, 0, 1))) for k in range(first, last))

    shared = {"steps": 3, "peak": 0.1, "schedule": "constant", "ema": None, "trackers": ()}
    apart, whole = Given(), Given()
    loop.fit(apart, loop.TrainingArguments(**shared, accumulation=2), tmp_path / "a.pt", name="a", batches=batches)  # type: ignore[arg-type]
    loop.fit(whole, loop.TrainingArguments(**shared), tmp_path / "b.pt", name="b", batches=pairs)  # type: ignore[arg-type]
    assert torch.allclose(apart.weight, whole.weight, atol=1e-6), (apart.weight, whole.weight)
    again = Given()
    arguments = loop.TrainingArguments(**{**shared, "steps": 2}, accumulation=2)  # type: ignore[arg-type]
    loop.fit(again, arguments, tmp_path / "c.pt", name="c", batches=batches)
    resumed = Given()
    loop.fit(resumed, loop.TrainingArguments(**shared, accumulation=2), tmp_path / "c.pt", name="c", batches=batches)  # type: ignore[arg-type]
    assert torch.equal(resumed.weight, apart.weight), "a resumed run meets the batches that were to come"


def test_parts_are_clipped_on_their_own() -> None:
    """As released: the norm of the TPB's gradients does not shrink the SCB's."""
    run = loop.accelerator(loop.TrainingArguments(steps=1, peak=1.0, trackers=()))
    parameters = {f"model.{name}.w": nn.Parameter(torch.zeros(4)) for name in ("tpb", "scb")}
    for parameter, size in zip(parameters.values(), (100.0, 0.1), strict=True):
        parameter.grad = torch.full((4,), size)
    loop._clip(run, loop.TrainingArguments(steps=1, peak=1.0, clip_parts=("model.tpb.", "model.scb.")), parameters)
    norms = [float(p.grad.norm()) for p in parameters.values() if p.grad is not None]
    assert norms == pytest.approx([1.0, 0.2], rel=1e-4), norms


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1]),
        ("constant_with_warmup", [0.1, 1, 1]),
        ("linear", [0.1, 1, 0.01]),
        ("cosine", [0.1, 1, 0.02]),
    ],
)
def test_rates(schedule: str, rates: list[float]) -> None:
    arguments = loop.TrainingArguments(steps=110, peak=1.0, schedule=schedule, warmup=10)
    assert [arguments.rate(k) for k in (0, 10, 109)] == pytest.approx(rates, abs=2e-3)


def test_trackers_that_are_not_there_are_named(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(MissingDependency, match=r"--report-to wandb: .*diffplugin\[wandb\]"):
            loop.fit(
                Given(), loop.TrainingArguments(steps=1, peak=1.0, trackers=("wandb",)), tmp_path / "w.pt", name="w"
            )
    with pytest.raises(MissingDependency, match="--report-to no_such_tracker"):
        loop.fit(
            Given(),
            loop.TrainingArguments(steps=1, peak=1.0, trackers=("no_such_tracker",)),
            tmp_path / "n.pt",
            name="n",
        )


@pytest.mark.slow
def test_two_processes_learn_the_same_weights(tmp_path: Path) -> None:
    """Two CPU processes, as ``accelerate launch`` starts them: gradients are averaged, one process writes."""
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import test_loop\n"
        "from diffplugin.plugins.train import loop\n"
        "here = Path(sys.argv[1])\n"
        "made = test_loop.run(here / 'run/state.pt')\n"
        "rank = loop.accelerator().process_index\n"
        "torch.save(made.state_dict(), here / f'rank{rank}.pt')\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name]), name
    alone = run(tmp_path / "alone/state.pt")
    weight = alone.state_dict()["net.0.weight"]
    assert not torch.equal(weight, ranks[0]["net.0.weight"]), "the second process saw other data"
    assert done.stdout.count("toy step 9/9") == 1, done.stdout
