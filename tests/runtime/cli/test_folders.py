"""Folder runs: every file accounted for, results known by the record, trees kept. The cases are reports of users."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.runtime.cli import kinds
from diffplugin.runtime.photos.write import output_suffixes

if TYPE_CHECKING:
    from tests.runtime.cli.conftest import Run
    from tests.runtime.conftest import FakeModel

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
Infer = Callable[..., "Run"]
FEW = ("--plugin", "derain", "--steps", "1")


def photo(path: str, level: int = 90) -> None:
    """A small photo, each level another one."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(level).integers(level, level + 60, (4, 5, 3), np.uint8)
    Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(path)


def names(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def statuses(run: Run) -> dict[str, str]:
    facts: dict[str, Any] = json.loads(run.out)
    return {Path(one["input"]).name: one["status"] for one in facts["files"]}


def test_numbered(infer: Infer) -> None:
    """The second run restored its own result; out/a.png was a.ppm's."""
    photo("numbered/a.ppm", 40)
    photo("numbered/a.png", 90)
    for _ in range(3):
        assert infer("numbered", *FEW).status == 0
        assert names("numbered") == ["a-ppm-restored.png", "a-restored.png", "a.png", "a.ppm"]
    assert infer("numbered", *FEW, "-o", "out/").status == 0
    assert names("out") == ["a-ppm.png", "a.png"] and len(names("numbered")) == 4
    before = np.asarray(Image.open("numbered/a-restored.png"))
    np.testing.assert_array_equal(np.asarray(Image.open("out/a.png")), before, "a.png is a.png's")
    assert "results of earlier runs, no inputs: 2 (a-ppm-restored.png, a-restored.png)" in infer("numbered", *FEW).out


def test_patterns_and_what_a_shell_makes_of_them(infer: Infer) -> None:
    for name in ("a", "b"):
        photo(f"in/{name}.png", 40 + ord(name))
    for words in (["in/*.png"], ["in/*.png"], ["in/a.png", "in/b.png", "in/a-restored.png", "in/b-restored.png"]):
        assert infer(*words, *FEW).status == 0
        assert names("in") == ["a-restored.png", "a.png", "b-restored.png", "b.png"]
    assert infer("in/a-restored.png", *FEW).status == 0, "named without its original, it is meant"
    assert "a-restored-restored.png" in names("in")


def test_a_photo_named_as_its_own_result_stays(infer: Infer) -> None:
    photo("own.png")
    before = Path("own.png").read_bytes()
    for overwrite in ("made", "always"):
        run = infer("own.png", *FEW, "-o", "own.png", "--overwrite", overwrite)
        assert run.status == 0, run.err
        assert Path("own.png").read_bytes() == before and Path("own-restored.png").is_file()


def test_dash(infer: Infer) -> None:
    photo("-dash.jpg")
    assert infer("--steps", "1", "--", "-dash.jpg", "rain").status == 0
    assert Path("-dash-restored.jpg").is_file()


def test_usb(infer: Infer) -> None:
    photo("usb/IMG_1.JPG")
    Path("usb/._IMG_1.JPG").write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ")
    run = infer("usb", *FEW)
    assert run.status == 0 and run.err == "" and "hidden files and sidecars: 1 (._IMG_1.JPG)" in run.out
    assert names("usb") == ["._IMG_1.JPG", "IMG_1-restored.JPG", "IMG_1.JPG"]


def test_phone(infer: Infer) -> None:
    """Kinds that are not read are named; a user's own IMG_1-restored.jpg is a photo, and stays."""
    photo("phone/IMG_1.jpg", 40)
    photo("phone/IMG_1-restored.jpg", 90)
    own = Path("phone/IMG_1-restored.jpg").read_bytes()
    for name in ("IMG_2.PSD", "IMG_3.PSD", "IMG_4.jxl", "IMG_5.MOV"):
        Path("phone", name).write_bytes(b"x")
    run = infer("phone", *FEW, "--json")
    facts = json.loads(run.out)
    assert statuses(run) == {
        "IMG_1.jpg": "restored", "IMG_1-restored.jpg": "restored", "IMG_2.PSD": "unsupported",
        "IMG_3.PSD": "unsupported", "IMG_4.jxl": "unsupported", "IMG_5.MOV": "no photo",
    }  # fmt: skip
    assert (facts["done"], facts["failed"], facts["left_out"], facts["exit_code"]) == (2, 3, 1, 1) and run.status == 1
    assert run.err.splitlines() == [
        "dp-infer: Photoshop: 2 (IMG_2.PSD, IMG_3.PSD) not read here; convert them to PNG, TIFF or JPEG first",
        "dp-infer: JPEG XL: 1 (IMG_4.jxl) not read here; convert them to PNG, TIFF or JPEG first",
    ]
    assert Path("phone/IMG_1-restored.jpg").read_bytes() == own
    assert names("phone")[:3] == ["IMG_1-restored-2.jpg", "IMG_1-restored-restored.jpg", "IMG_1-restored.jpg"]
    again = infer("phone", *FEW)
    assert "2 of 5 done, 3 failed" in again.out and "no photos: 1 (IMG_5.MOV)" in again.out
    assert len(names("phone")) == 8, "the second run makes the same files"


@pytest.mark.parametrize(("name", "kind", "extra"), [("a.HEIC", "HEIC", "heif"), ("a.DNG", "camera RAW", "raw")])
def test_an_extra_that_would_read_a_kind_is_named(
    infer: Infer, name: str, kind: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "find_spec", lambda package: None)  # as if none were installed
    formats = tuple(suffix for suffix in output_suffixes() if suffix not in (".heic", ".heif"))
    monkeypatch.setattr(kinds, "output_suffixes", lambda: formats)
    Path("in").mkdir()
    Path("in", name).write_bytes(b"x")
    run = infer("in", *FEW)
    assert run.status == 1
    assert run.err == f"dp-infer: {kind}: 1 ({name}) not read here; pip install 'diffplugin[{extra}]' reads them\n"


def test_a_tree_is_kept(infer: Infer) -> None:
    for name in ("in/a.png", "in/sub/a.png", "in/sub/deep/b.jpg", "in/.git/c.png"):
        photo(name)
    run = infer("in", *FEW, "-o", "out")
    assert names("out") == ["a.png"] and "folders not entered: 1 (sub) (--recursive enters it)" in run.out
    assert infer("in", *FEW, "-o", "out", "--recursive").status == 0
    assert names("out") == ["a.png", "sub/a.png", "sub/deep/b.jpg"]
    infer("in", *FEW, "--recursive")
    infer("in", *FEW, "--recursive", "-o", "in/made")
    infer("in", *FEW, "--recursive", "-o", "in/made")
    assert names("in") == [
        ".git/c.png", "a-restored.png", "a.png", "made/a.png", "made/sub/a.png", "made/sub/deep/b.jpg",
        "sub/a-restored.png", "sub/a.png", "sub/deep/b-restored.jpg", "sub/deep/b.jpg",
    ]  # fmt: skip


def test_one_folder_of_results_is_the_next_runs_input(infer: Infer) -> None:
    photo("in/a.png")
    infer("in", *FEW, "-o", "out")
    assert infer("out", "--plugin", "deblur", "--steps", "1", "-o", "final").status == 0
    assert names("final") == ["a.png"] and names("out") == ["a.png"]


def test_skip_existing(infer: Infer, model: FakeModel) -> None:
    photo("in/a.png", 40)
    photo("in/b.png", 90)
    infer("in", *FEW, "-o", "out")
    runs = model.runs("unet")
    run = infer("in", *FEW, "-o", "out", "--skip-existing")
    assert run.status == 0 and model.runs("unet") == runs == 2 and "2 of 2 done, 2 up to date, 0 failed" in run.out
    photo("in/b.png", 120)
    run = infer("in", *FEW, "-o", "out", "--skip-existing", "--json")
    assert statuses(run) == {"a.png": "up to date", "b.png": "restored"}, "b.png has changed"
    Path("out/a.png").unlink()
    assert statuses(infer("in", *FEW, "-o", "out", "--skip-existing", "--json"))["a.png"] == "restored"
    other = infer("in", "--plugin", "deblur", "--steps", "1", "-o", "out", "--skip-existing", "--json")
    assert set(statuses(other).values()) == {"restored"}, "another request"


def test_skip_existing_is_not_fooled_by_names(infer: Infer) -> None:
    """A file of the right name that was not made from the photo is neither skipped for nor replaced."""
    photo("in/a.png", 40)
    photo("out/a.png", 90)
    own = Path("out/a.png").read_bytes()
    assert statuses(infer("in", *FEW, "-o", "out", "--skip-existing", "--json")) == {"a.png": "restored"}
    assert names("out") == ["a-2.png", "a.png"] and Path("out/a.png").read_bytes() == own
    infer("in", *FEW, "-o", "out", "--overwrite", "always")
    assert Path("out/a.png").read_bytes() != own


def test_nothing_selected_in_a_folder(infer: Infer) -> None:
    photo("in/a.png", 40)
    photo("in/b.png", 90)
    run = infer("in", "paint it", "-o", "out")
    assert run.status == 3 and names("out") == [] and "0 of 2 done, 2 left as they were, 0 failed" in run.out
    assert infer("in", "paint it", "-o", "out", "--keep-untouched", "copies").status == 0
    assert names("out") == ["a.png", "b.png"]
    infer("in", "paint it", "--keep-untouched", "copies")
    infer("in", "paint it", "--keep-untouched", "copies")
    assert names("in") == ["a-restored.png", "a.png", "b-restored.png", "b.png"], "copies are results, too"


def test_results_of_a_failed_run_stay_as_they_were(infer: Infer, model: FakeModel) -> None:
    photo("in/a.png", 40)
    infer("in", *FEW)
    good = Path("in/a-restored.png").read_bytes()
    model.swap("unet", lambda x: {"eps": np.full_like(x["latents"], np.nan)})
    assert infer("in", *FEW).status == 1 and Path("in/a-restored.png").read_bytes() == good


def test_without_a_record_work_goes_on(infer: Infer, cache: Path) -> None:
    cache.rmdir()
    cache.write_text("a file in the place of the cache folder")
    photo("in/a.png")
    assert infer("in", *FEW).status == 0 and names("in") == ["a-restored.png", "a.png"]


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases beside the repository")
def test_the_reported_files_themselves(infer: Infer) -> None:
    """What the tests above make small copies of."""
    for case in ("numbered", "dash", "usb", "phone", "enc"):
        shutil.copytree(CASES / case, case, copy_function=shutil.copyfile)
        Path(case).chmod(0o755)
    for _ in range(2):
        infer("numbered", *FEW)
        infer("numbered", *FEW, "-o", "out")
    assert len(names("numbered")) == 4 and len(names("out")) == 2 and "a.png" in names("out")
    assert infer("usb", *FEW).status == 0 and names("usb") == ["._IMG_1.JPG", "IMG_1-restored.JPG", "IMG_1.JPG"]
    assert infer("enc", *FEW).status == 0 and len(names("enc")) == 4
    assert infer(*FEW, "-o", "dash-made.jpg", "--", "dash/-dash.jpg").status == 0 and Path("dash-made.jpg").is_file()
    run = infer("phone", *FEW, "--json")
    told = statuses(run)
    assert run.status == 1 and set(told) == {path.name for path in (CASES / "phone").iterdir()}
    assert told["IMG_1.jpg"] == told["IMG_1-restored.jpg"] == "restored"
    assert all(told[name] in ("unsupported", "failed") for name in ("IMG_2.HEIC", "IMG_3.DNG", "IMG_4.jxl"))
    own = CASES / "phone" / "IMG_1-restored.jpg"
    assert Path("phone/IMG_1-restored.jpg").read_bytes() == own.read_bytes()
