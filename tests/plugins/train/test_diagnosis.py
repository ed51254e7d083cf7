"""The diagnosis learns: its samples, its network, its thresholds, and the stage of dp-train at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from diffplugin.export.checkpoints import Checkpoint
from diffplugin.plugins.networks.diagnosis import STATISTICS, Diagnosis, local_statistics
from diffplugin.plugins.train import cli, diagnosis_samples, everyday
from diffplugin.plugins.train.degradations import FAMILIES
from diffplugin.plugins.train.diagnosis import CONFIG, cumulative_chances, make
from diffplugin.plugins.train.diagnosis_samples import TASKS, degraded, draw
from diffplugin.plugins.train.diagnosis_scores import CLEAN, PAIRS, Row
from diffplugin.plugins.train.diagnosis_thresholds import calibrate, choose_thresholds, found_tasks, right_sets
from diffplugin.runtime.request.diagnosis import needed_tasks
from diffplugin.spec import VIEWS, Array


def _photo(height: int = 300, width: int = 380, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def test_a_seed_gives_a_sample_and_clean_ones_want_nothing() -> None:
    photo, clean = _photo(), 0
    for seed in range(24):
        one, same = (draw(photo, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(one.views, same.views)
        assert one.views.shape == (VIEWS, 128, 128, 3) and one.views.dtype == np.uint8
        assert ((one.wanted >= 0) & (one.wanted <= 1)).all() and ((one.strengths >= 0) & (one.strengths < 1)).all()
        assert (one.strengths > 0).sum() <= 2 and (one.wanted <= (one.strengths > 0)).all()
        clean += not one.strengths.any()
    assert 4 <= clean <= 14, clean


def test_what_cannot_be_seen_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    image = (_photo() / 255).astype(np.float32)
    with monkeypatch.context() as patched:
        faint = {name: dict.fromkeys(TASKS, lambda image, rng: image + np.float32(1 / 255)) for name in FAMILIES}
        patched.setattr(diagnosis_samples, "FAMILIES", faint)
        for seed in range(6):
            _, wanted, strengths = degraded(image, ["dehaze"], np.random.default_rng(seed))
            assert wanted.sum() == 0 < strengths.sum(), (seed, wanted, strengths)
    full = [degraded(image, ["dehaze"], np.random.default_rng(seed)) for seed in range(12)]
    order = np.argsort([strengths[TASKS.index("dehaze")] for _, _, strengths in full])
    assert full[order[-1]][1][TASKS.index("dehaze")] == 1, "the strongest is wanted"


@pytest.mark.parametrize("change", [*everyday.PLAIN, *everyday.DRAWN, everyday.uploaded], ids=lambda f: f.__name__)
def test_everyday_changes_are_pictures(change: everyday.Change) -> None:
    image = (_photo(96, 128) / 255).astype(np.float32)
    for seed in range(4):
        made = change(image, np.random.default_rng(seed))
        assert made.dtype == np.float32 and made.ndim == 3 and made.shape[2] == 3
        assert made.min() >= 0 and made.max() <= 1
        if change is not everyday.uploaded:
            assert made.shape == image.shape


def test_folding_the_norms_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Diagnosis(CONFIG, norm=True).train()
    model(torch.randn(2 * VIEWS, 3, 128, 128))
    model.eval()
    plain = Diagnosis(CONFIG).eval()
    plain.load_state_dict(model.folded())
    views = torch.randn(VIEWS, 3, 128, 128)
    for a, b in zip(model(views), plain(views), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_local_statistics_tell_blur_and_glare() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((128, 128, 3)).astype(np.float32) * 0.8
    along = ndimage.uniform_filter1d(image, 9, axis=1)
    glare = image.copy()
    glare[40:48, 64:72] = 1
    stack = np.stack((image, along, glare)).transpose(0, 3, 1, 2) * 2 - 1
    sharp, moved, bright = local_statistics(torch.from_numpy(stack)).numpy()
    assert sharp.shape == (STATISTICS, 16, 16)
    lost = (sharp - moved).mean(axis=(1, 2))
    print(lost)
    assert lost[0] > 1.5 * lost[1] > 0, "along the motion, more than across it"
    assert lost[0] > lost[4] > lost[8], "the finest detail most of all"
    clipped = bright[-3:] - sharp[-3:]
    assert clipped[:, 5, 8].min() > 0.9 and np.count_nonzero(clipped) == 3, "in the square of the glare alone"


def test_the_mirror_image_gets_the_same_answer() -> None:
    torch.manual_seed(0)
    model = Diagnosis(CONFIG).eval()
    one, other = (torch.randn(VIEWS, 3, 128, 128) for _ in range(2))
    both = model(torch.cat((one, other)))
    for k, views in enumerate((one, other)):
        for made, same, of_two in zip(model(views), model(views.flip(3)), both, strict=True):
            torch.testing.assert_close(made, same, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(made[0], of_two[k], atol=1e-5, rtol=1e-5)
    assert (model.decide(model.encode(one), 4)[0] - model(one)[0]).abs().max() > 1e-3, "each alone differs"


def test_the_network_without_statistics_is_still_read() -> None:
    older = Diagnosis({**CONFIG, "statistics": 0})
    assert not [name for name in older.state_dict() if name.startswith("statistics")]
    newer = Diagnosis(CONFIG)
    newer.load_state_dict(older.state_dict(), strict=False)
    views = torch.randn(VIEWS, 3, 128, 128)
    for a, b in zip(older(views), newer(views), strict=True):
        torch.testing.assert_close(a, b, msg="at first they add nothing")


def test_thresholds_spare_clean_photos() -> None:
    """A task whose clean samples score 0.7 gets a threshold above that; the temperature undoes a factor."""
    rng = np.random.default_rng(0)
    wanted = np.zeros((400, 8), np.float32)
    wanted[np.arange(200), rng.integers(0, 8, 200)] = 1
    logits = np.where(wanted > 0, 2.2, -3.0) + rng.normal(0, 0.1, wanted.shape)
    logits[200:, 2] = 0.85
    thresholds, found = choose_thresholds(logits, wanted, TASKS)
    assert 0.7 < thresholds[2] < 0.9 and found["clean"] == found["one"] == 1.0
    assert right_sets(1 / (1 + np.exp(-logits)), wanted, [0.5] * 8, TASKS)["clean"] == 0
    truth = rng.random(wanted.shape) < 1 / (1 + np.exp(-logits))
    assert calibrate(logits * 2, truth.astype(np.float32)) == pytest.approx(2, rel=0.15)


def test_many_photos_are_decided_as_one_is() -> None:
    chances, thresholds = np.random.default_rng(0).random((300, 8)), [0.3, 0.4, 0.5, 0.6, 0.3, 0.7, 0.2, 0.8]
    found = found_tasks(chances, thresholds, TASKS)
    for row, made in zip(chances, found, strict=True):
        one = needed_tasks({t: (float(p), v) for t, p, v in zip(TASKS, row, thresholds, strict=True)})
        assert one == {t for t, there in zip(TASKS, made, strict=True) if there}


def test_what_is_hard_to_see_is_drawn_more_often() -> None:
    labels = np.zeros((4, 2, len(TASKS)), np.float32)
    labels[1, 1, TASKS.index("deblur")] = 0.5
    labels[2, 1, [TASKS.index("deblur"), TASKS.index("lowlight")]] = 0.5
    labels[3, 1, TASKS.index("deblur")] = 0.01  # not to be seen: as a clean one
    chances = np.diff(cumulative_chances(labels), prepend=0)
    np.testing.assert_allclose(chances[[1, 2]] / chances[[0, 3]], 3 / 0.9)
    assert chances.sum() == pytest.approx(1)


def test_rows_count_sets() -> None:
    row = Row("harder", "derain")
    row.add({"derain"}, {"derain"})
    row.add({"derain", "dehaze"}, {"derain"})
    assert (row.photos, row.right, row.found["dehaze"]) == (2, 1, 1) and "**0.500**" in row.line()
    assert Row("", CLEAN).line().startswith("| clean | – |") and ("deblur", "face") not in PAIRS


def test_samples_are_made_again_where_they_are_too_few_or_of_other_photographs(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for i, file in enumerate(files):
        Image.fromarray(_photo(seed=i)).save(file)
    said: list[str] = []

    def made(count: int, *of: Path) -> np.ndarray:
        shards = make(of, tmp_path / "samples", count, seed=0, log=said.append)
        views = np.concatenate([np.array(one) for one, _ in shards])
        assert len(views) == count == sum(len(labels) for _, labels in shards)
        return views

    two, three, one = (made(count, *files) for count in (2, 3, 1))
    np.testing.assert_array_equal(two, three[:2])
    np.testing.assert_array_equal(one, three[:1], err_msg="fewer are the first of those that are there")
    assert len(said) == 2, said
    other = made(1, files[1])
    assert "other photographs" in said[-2] and not np.array_equal(other, one)


def test_the_stage_writes_what_the_exporter_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    _index(tmp_path, 12)
    arguments = ["diagnosis", "--work", str(tmp_path), "--steps", "1", "--samples", "6"]
    assert cli.main(arguments) == 0
    folder = tmp_path / "checkpoint/pre-trained/diagnosis"
    before = (folder / "model.safetensors").read_bytes()
    assert cli.main(arguments) == 0 and (folder / "model.safetensors").read_bytes() == before, "nothing twice"
    read = Checkpoint(tmp_path, tmp_path, {}, None, folder)
    assert [one.task for one in read.diagnosed()] == list(TASKS)
    logits, strengths = read.load("diagnosis")(torch.zeros(VIEWS, 3, 128, 128))
    assert logits.shape == strengths.shape == (1, 8) and torch.isfinite(logits).all()
    assert cli.main([*arguments[:-1], "0"]) == 2

    # a state of other data or of another network is not gone on with
    capsys.readouterr()
    state = (tmp_path / "run/diagnosis.pt").read_bytes()
    assert cli.main([*arguments[:-1], "7"]) == 2 and "samples was 6, now 7" in capsys.readouterr().err
    _index(tmp_path, 13)
    assert cli.main(arguments) == 2 and "photographs number was" in capsys.readouterr().err
    _index(tmp_path, 12)
    with monkeypatch.context() as patched:
        patched.setitem(CONFIG, "hidden", 64)
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert "diagnosis.pt: network hidden was 128, now 64" in said and "--restart" in said, said
        assert (tmp_path / "run/diagnosis.pt").read_bytes() == state
        assert (folder / "model.safetensors").read_bytes() == before
        assert cli.main([*arguments, "--restart"]) == 0
    assert json.loads((folder / "config.json").read_text())["hidden"] == 64


def _index(work: Path, learn: int) -> None:
    """``learn`` photographs to learn from, and one held out."""
    rows = []
    for i, split in enumerate(["val"] + ["train"] * learn):
        Image.fromarray(_photo(seed=i)).save(work / f"photos/p_{i}.png")
        fields = {"package": "p", "source": "s", "licence": "CC0", "holder": "h", "split": split}
        rows.append({"file": f"p_{i}.png", **fields})
    (work / "photos.json").write_text(json.dumps(rows))
