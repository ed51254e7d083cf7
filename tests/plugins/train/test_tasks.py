"""``dp-train plugin --recipe paper`` at toy size: what is trained, resumed, refused and announced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffplugin.export.checkpoints.weights import read_tensors
from diffplugin.plugins.cards import registry
from diffplugin.plugins.train import cli, tasks


def make_pairs(folder: Path, count: int, seed: int = 0, same: bool = False) -> Path:
    """A CSV of noisy inputs, or of rows whose input is the truth."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["image,conditioning_image"]
    for i in range(count):
        pixels = rng.integers(0, 255, (72, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"gt{i}.png")
        Image.fromarray(255 - pixels).save(folder / f"in{i}.png")
        rows.append(f"gt{i}.png,{'gt' if same else 'in'}{i}.png")
    path = folder / "pairs.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def options(oracle: Path, tmp_path: Path) -> list[str]:
    root = oracle / "checkpoint"
    return [
        *("--work", str(tmp_path / "work"), "--base", str(root / "stable-diffusion"), "--clip", str(root / "clip")),
        *("--recipe", "paper", "--resolution", "64", "--train_batch_size", "2", "--dataloader-num-workers", "0"),
        *("--report-to", "none", "--validation-pictures", "0"),
    ]


def weights(work: Path, task: str = "derain") -> dict[str, torch.Tensor]:
    place = work / "checkpoint/pre-trained" / task
    return {**read_tensors(place / "tpb.pt"), **read_tensors(place / "scb/diffusion_pytorch_model.bin")}


def test_trains_announces_and_goes_on_bit_for_bit(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = make_pairs(tmp_path / "a", 5)
    first = ["plugin", "derain", *options, "--pairs", str(pairs), "--use_data_aug", "--learning_rate", "1e-4"]
    assert cli.main([*first, "--max_train_steps", "2"]) == 0
    told = capsys.readouterr().out
    assert "5 pairs (1 held out) at 64 px; 2 a process x 1 accumulated x 1 process = 2 a step" in told, told
    assert "rate 0.0002 constant" in told and "GiB a process" in told, "scaled by the batch, as released"
    assert cli.main([*first, "--max_train_steps", "4"]) == 0
    resumed = weights(tmp_path / "work")
    shutil.rmtree(tmp_path / "work")
    assert cli.main([*first, "--max_train_steps", "4"]) == 0
    whole = weights(tmp_path / "work")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert registry(tmp_path / "work/checkpoint")["derain"].licence == "trained by the user with dp-train"


def test_a_state_is_keyed_by_what_it_was_made_from(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = make_pairs(tmp_path / "a", 3), make_pairs(tmp_path / "b", 3, seed=1)
    run = ["plugin", "derain", *options, "--steps", "1", "--pairs"]
    assert cli.main([*run, str(one)]) == 0
    before = weights(tmp_path / "work")
    for more, named in (
        ([str(other)], "pairs was"),
        ([str(one), "--resolution", "72"], "recipe resolution was 64, now 72"),
    ):
        capsys.readouterr()
        assert cli.main([*run, *more]) == 2
        error = capsys.readouterr().err
        assert named in error and "--restart" in error and error.count("\n") == 1, error
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "work").items())
    assert cli.main([*run, str(other), "--restart"]) == 0
    after = weights(tmp_path / "work")
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    fresh = ["plugin", "derain", *options, "--steps", "1", "--pairs", str(other), "--work", str(tmp_path / "new")]
    assert cli.main(fresh) == 0
    assert all(torch.equal(value, after[name]) for name, value in weights(tmp_path / "new").items()), "anew is new"


@pytest.mark.slow
def test_kept_latents_train_as_pictures_do(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = make_pairs(tmp_path / "a", 4)
    run = ["plugin", "derain", *options, "--steps", "2", "--pairs", str(pairs), "--learning-rate", "1e-4"]
    assert cli.main([*run, "--work", str(tmp_path / "streamed")]) == 0
    kept = [*run, "--work", str(tmp_path / "kept"), "--cache-latents"]
    assert cli.main(kept) == 0
    files = sorted(p.name for p in (tmp_path / "kept/latents/derain/view000").iterdir())
    assert files == ["cond.npy", "deviation.npy", "mean.npy", "patches.npy"]
    one, other = weights(tmp_path / "streamed"), weights(tmp_path / "kept")
    worst = max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
    assert worst < 5e-4, f"{worst}: latents are kept in float16, no more apart than that"
    assert cli.main([*kept, "--variant", "reconstruction", "--clean-share", "0.5"]) == 2
    assert "clean_share was None, now 0.5" in capsys.readouterr().err, "latents of other pictures are not taken"


def test_what_cannot_be_learned_from_is_said_before_any_work(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "colourise.toml"
    card.write_text('id = "colourise"\ntitle = "Colourise"\naliases = []\nexamples = ["add colour"]\nstart = "noise"\n')
    same = make_pairs(tmp_path / "same", 2, same=True)
    own = ["plugin", "colourise", *options, "--card", str(card), "--steps", "1", "--pairs", str(same)]
    assert cli.main(own) == 2
    assert "row 1: input and ground truth are one file" in capsys.readouterr().err
    assert cli.main(["plugin", "face", *options, "--steps", "1", "--pairs", str(same)]) == 0, "faces: on the fly"
    for arguments, message in (
        (["--adam-beta1", "1.5", "--max-grad-norm", "0"], "--adam-beta1 is 1.5, expected 0 to 1; --max-grad-norm is 0"),
        (["--variant", "F-9"], "--variant F-9: expected one of released"),
    ):
        assert cli.main(["plugin", "derain", *options, "--pairs", str(same), *arguments]) in (1, 2)
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    monkeypatch.setattr(tasks, "available_memory", lambda: 50 * 2**20)
    assert cli.main(["plugin", "derain", *options, "--pairs", str(same), "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert "GiB are free: take a smaller --resolution, --gradient-checkpointing" in error, error


def test_a_dry_run_writes_nothing(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = make_pairs(tmp_path / "a", 40)
    assert cli.main(["plugin", "derain", *options, "--pairs", str(pairs), "--dry-run", "--num_train_epochs", "3"]) == 0
    assert "57 steps" in capsys.readouterr().out, "38 pairs are learned from, 2 at a time, three times"
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_two_processes_train_one_plugin(options: list[str], tmp_path: Path) -> None:
    """As ``accelerate launch`` starts them: each reads its own pairs, gradients are averaged, one writes."""
    pairs = make_pairs(tmp_path / "a", 5)
    launch = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = ["plugin", "derain", *options, "--pairs", str(pairs), "--steps", "3", "--gradient-accumulation-steps", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, "-m", "diffplugin.plugins.train", *run, "--mixed-precision", "bf16"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 a process x 2 accumulated x 2 processes = 8 a step") == 1, done.stdout
    assert done.stdout.count("derain step 3/3") == 1 and "mixed precision bf16" in done.stdout
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "work").values())
