"""The training loop: exact resume after a real kill, averaged weights, curves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffplugin.errors import CheckpointError
from diffplugin.plugins.train import loop
from diffplugin.plugins.train.common import gaussian, load_state

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
    plan = loop.Plan(steps=steps, peak=1e-2, warmup=2, every=4, weight_decay=0.01, precision="bf16")
    loop.fit(objective, plan, path, name="toy", report=lambda step: {"step": float(step)})
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
        loop.fit(nn.Linear(2, 2), loop.Plan(steps=1, peak=1e-3), tmp_path / "state.pt", name="other")


def test_writes_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "state.pt")
    curves = EventAccumulator(str(tmp_path / "curves/toy"))
    curves.Reload()
    assert [event.step for event in curves.Scalars("loss")] == [4, 8, 9]
    assert [event.value for event in curves.Scalars("step")] == [4, 8, 9]


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
