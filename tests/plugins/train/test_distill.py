"""Distilling plugins of few steps, at toy size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffplugin
from diffplugin.export import cli as export_cli
from diffplugin.export.checkpoints import find
from diffplugin.export.checkpoints.weights import read_tensors
from diffplugin.plugins.cards import PluginCard, load_card
from diffplugin.plugins.train import autoencoder, base, cli, common, distill, loop, pairs, plugin, pool, validation
from diffplugin.runtime.sampling.loop import sample
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import unipc
from diffplugin.runtime.sampling.start_noise import normal
from tests.export.checkpoints.tiny import write_tiny
from tests.plugins.train.test_tasks import make_pairs
from tests.plugins.train.toys import TOY, VAE

SCHEDULE = NoiseSchedule.from_config(TOY["scheduler"])


def card(**changes: Any) -> PluginCard:
    return replace(base.card("derain"), output="residual", coring=4, coring_peak=2, **changes)


def crops(rng: np.random.Generator) -> pool.Crops:
    photos = [np.random.default_rng(5).integers(0, 255, (80, 70, 3), dtype=np.uint8)]
    return pool.draw_crops(pairs.degraded(photos, "deblur", 64), rng, 2, 32)


def toy(teacher: PluginCard, student: PluginCard) -> distill.Distillation:
    torch.manual_seed(0)
    model, vae = plugin.Denoiser(TOY), autoencoder.build(VAE)
    return distill.Distillation(model, vae, crops, schedule=SCHEDULE, teacher=teacher, student=student)


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
@pytest.mark.parametrize(
    ("start", "first_t", "renoise_from_t"),
    [
        *(("noise", 999, 960), ("noised_input", 999, 960), ("noised_input", 999, 400)),
        *(("noised_input", 600, 960), ("input", 150, 960)),
    ],
)
def test_final_latents_are_the_runtimes(start: Any, first_t: int, renoise_from_t: int, steps: int) -> None:
    torch.manual_seed(0)
    model = plugin.Denoiser(TOY)
    told = card(start=start, first_t=first_t, renoise_from_t=renoise_from_t, steps_first=steps)
    table = unipc(SCHEDULE, steps, first_t)
    tokens, shape = torch.randn(2, 256, 8), (2, 4, 8, 12)
    noise, cond = normal(1, shape), normal(2, shape)

    def denoise(i: int, latents: Any) -> Any:
        t = torch.full((2,), float(table.t[i]))
        return model(torch.from_numpy(latents), t, tokens, torch.from_numpy(cond)).numpy()

    with torch.no_grad():
        want = sample(table, denoise, noise, cond, start=start, renoise_from_t=renoise_from_t)
        by = distill.Sampled.of(model.scb, told, SCHEDULE)
        found = distill.final_latents(model, by, tokens, torch.from_numpy(cond), torch.from_numpy(noise)).numpy()
    error = float(np.abs(found - want).max() / np.abs(want).max())
    assert error < 1e-5, error


@pytest.mark.parametrize("output", ["residual", "decoded"])
def test_the_loss_sees_what_the_runtime_shows(output: Any) -> None:
    told = replace(card(steps_first=3, start="noised_input", first_t=600), output=output)
    objective = toy(told, told)
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (want,) = validation.restore(objective.model, objective.vae, SCHEDULE, [photo], told)
    given = common.to_tensor(photo[None])
    with torch.no_grad():
        cond = objective.vae.encode(given)
        lesson = distill.Lesson(
            **dict.fromkeys(("given", "truth", "target"), given),
            cond=cond,
            noise=torch.from_numpy(normal(42, tuple(cond.shape))),
            known=objective.vae.decode(cond),
            tokens=objective.model.tokens(pool.clip_pixels(pool.shrink(photo)[None])),
        )
        image = objective.shown(objective.student, lesson)
    found = ((image[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    error = np.abs(found - want).max()
    assert error < 0.51, f"{error} levels: more than rounding"


def test_a_student_learns_its_teachers_result_and_nothing_else_moves(tmp_path: Path) -> None:
    teacher = replace(card(steps_first=4, start="input", first_t=150), coring=0, coring_peak=0)
    objective = toy(teacher, replace(teacher, steps_first=1))
    with torch.no_grad():  # a teacher that does much: random weights hardly do anything
        for weight in objective.taught.controlnet_down_blocks.parameters():
            weight.mul_(10)
    before = {name: value.clone() for name, value in objective.state_dict().items()}

    def loss() -> float:
        with torch.no_grad():
            return float(np.mean([objective(0, loop.generator(1, i)).item() for i in range(2)]))

    start = loss()
    arguments = loop.TrainingArguments(steps=20, peak=1e-2, warmup=2, ema=None, trackers=())
    loop.fit(objective, arguments, tmp_path / "state.pt", name="distill")
    assert loss() < start - 1, f"{start} -> {loss()}: 1 dB nearer"
    after = objective.state_dict()
    moved = {".".join(name.split(".")[:2]) for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"model.scb"}, moved


def test_a_student_as_its_teacher_has_nothing_to_learn() -> None:
    """Both begin with the same weights, noise and steps, so the pictures are one."""
    told = card(steps_first=2, start="noised_input")
    found = toy(told, told)(0, loop.generator(0, 0)).item()
    assert found == pytest.approx(10 * np.log10(plugin.UNSEEN)), found


def test_gradients_reach_the_whole_scb_in_bf16() -> None:
    """The teacher's steps come first, without gradients: autocast must not keep what they cast for the student."""
    teacher = card(steps_first=3, start="noised_input", first_t=600)
    objective = toy(teacher, replace(teacher, steps_first=2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(0, loop.generator(0, 0))
    loss.backward()
    silent = [name for name, p in objective.model.scb.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent, silent
    assert all(p.grad is None for name, p in objective.named_parameters() if not name.startswith("model.scb."))


def test_a_share_of_the_loss_looks_at_the_truth() -> None:
    teacher = card(steps_first=3, start="input", first_t=150)
    objective = toy(teacher, replace(teacher, steps_first=1))
    found = []
    for objective.truth in (0.0, 1.0, 0.25):
        with torch.no_grad():
            found.append(objective(0, loop.generator(0, 0)).item())
    assert found[2] == pytest.approx(0.75 * found[0] + 0.25 * found[1]) and abs(found[0] - found[1]) > 1, found


def test_kept_samples_are_taught_once() -> None:
    teacher = card(steps_first=3, start="noise", first_t=999)
    objective, again = (toy(teacher, replace(teacher, steps_first=1)) for _ in range(2))
    objective.samples = again.samples = 2
    losses = [objective(i, loop.generator(0, i)).item() for i in range(12)]
    assert len(set(losses)) == 2, f"{losses}: two samples, and weights that stay"
    resumed = [again(i, loop.generator(0, i)).item() for i in range(6, 12)]
    assert resumed == losses[6:], "what a sample holds depends on its number alone"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = write_tiny(tmp_path_factory.mktemp("checkpoint") / "root")
    rows = make_pairs(root / "pairs", 4)
    return [
        *("distill", "deblur", "--base", str(root / "base"), "--clip", str(root / "clip"), "--pairs", str(rows)),
        *("--teacher", str(root / "pre-trained/deblur"), "--teacher-steps", "3", "--resolution", "32"),
        *("--batch", "1", "--mixed-precision", "no", "--report-to", "none", "--lr-warmup-steps", "1"),
    ]


def weights(tree: Path) -> dict[str, torch.Tensor]:
    place = tree / "deblur"
    return {**read_tensors(place / "tpb.pt"), **read_tensors(place / "scb/diffusion_pytorch_model.bin")}


def test_the_command_writes_a_plugin_of_few_steps_and_goes_on_bit_for_bit(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(options[options.index("--teacher") + 1])
    work, teacher = tmp_path / "work", weights(folder.parent)
    run = [*options, "--work", str(work), "--steps", "2", "--validation-pictures", "1", "--lr-scheduler", "constant"]
    assert cli.main([*run, "--max-train-steps", "4", "--out", str(tmp_path / "whole")]) == 0
    told = capsys.readouterr().out
    assert "a student of 2 for its teacher's 3 steps; 3 pairs, 1 crops of 32 px a step, 4 steps of training" in told
    assert "1 held-out pictures, in PyTorch: to the teacher's" in told, told
    assert cli.main([*run, "--max-train-steps", "2", "--restart"]) == 0
    assert cli.main([*run, "--max-train-steps", "4"]) == 0
    whole, resumed = weights(tmp_path / "whole"), weights(work / "distilled")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    moved = {name for name, value in whole.items() if not torch.equal(value, teacher[name].half())}
    assert moved and not any(name.startswith("visual_projection") for name in moved), "the TPB stays"
    told_card = load_card(work / "distilled/deblur/card.toml", expected_id="deblur")
    assert (told_card.steps_first, told_card.steps_chained) == (2, 2)
    read = find(Path(options[3]), Path(options[5]), work / "distilled")
    assert {part: read.misfits(part)[2] for part in ("tpb/deblur", "scb/deblur")} == {
        "tpb/deblur": [],
        "scb/deblur": [],
    }
    capsys.readouterr()
    assert cli.main([*run, "--teacher-steps", "5"]) == 2
    assert "teacher was" in capsys.readouterr().err, "a state of another teacher is not taken"


def test_what_cannot_be_distilled_is_said_in_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(options[options.index("--teacher") + 1])
    for more, message in (
        (["--steps", "3"], "invalid choice: 3 (choose from 1, 2, 4)"),
        (["--steps", "4"], "the teacher's steps are 3, expected more than the student's 4; give it more"),
        (["--truth-share", "1.5"], "--truth-share is 1.5, expected 0 to 1"),
        (["--teacher", str(tmp_path / "nowhere")], "nowhere"),
        (["--out", str(folder.parent)], "is the teacher's own folder"),
        (["--crop", "-1", "--learning-rate", "0"], "--crop is -1, expected 0 or more; --learning-rate is 0"),
        (["--validation-pictures", "-1"], "--validation-pictures is -1, expected 0 or more"),
    ):
        try:
            code = cli.main([*options, "--work", str(tmp_path / "work"), *more])
        except SystemExit as stop:
            code = int(stop.code or 0)
        error = capsys.readouterr().err
        assert code in (1, 2) and message in error and "Traceback" not in error, error
        assert error.startswith("dp-train") and error.count("\n") == 1, error
    assert not (tmp_path / "work").exists(), "nothing was written"


@pytest.mark.slow  # a whole export
def test_export_takes_a_student(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "cache"))
    run = [*options, "--work", str(tmp_path / "work"), "--validation-pictures", "0", "--max-train-steps", "1"]
    assert cli.main(run) == 0
    where = [*options[2:6], "--plugins", str(tmp_path / "work/distilled"), "--out", str(tmp_path / "bundle")]
    assert export_cli.main([*where, "--engine", "onnxruntime", "--precision", "fp32", "--no-validate"]) == 0
    photo = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with diffplugin.load(tmp_path / "bundle", engine="onnxruntime", precision="fp32") as restorer:
        plan, _ = restorer.plan(photo, plugins=["deblur"])
        assert [stage.steps for stage in plan.chain] == [1], "as many as the student learned, without a word"
        assert restorer.restore(photo, plugins=["deblur"]).array.shape == photo.shape
