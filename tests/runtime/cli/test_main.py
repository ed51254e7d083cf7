"""dp-infer from the outside: files, messages, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.engines.choice import get_builder
from diffplugin.errors import BundleError, EngineUnavailable
from diffplugin.runtime import cli
from diffplugin.runtime.cli import session
from diffplugin.runtime.restorer import Restorer

if TYPE_CHECKING:
    from tests.runtime.cli.conftest import Run
    from tests.runtime.conftest import FakeModel


def _size(name: str) -> tuple[int, int]:
    with Image.open(name) as image:
        image.load()
        return image.size


def test_a_photo_and_a_request(infer: Callable[..., Run]) -> None:
    run = infer("photo.png", "dark rain", "--steps", "4")
    assert run.status == 0 and run.err == ""
    assert "photo.png: understood: Rain removal (derain), then Low-light enhancement (lowlight)\n" in run.out
    assert "photo-restored.png: 80x64 px in" in run.out and "(derain, lowlight, fake fp32)" in run.out
    assert _size("photo-restored.png") == (80, 64)


def test_scores_are_shown_where_asked_for(infer: Callable[..., Run]) -> None:
    for words in ("dark rain", "paint it"):
        assert "null +0." not in infer("photo.png", words, "--dry-run").out
    run = infer("photo.png", "dark rain", "--dry-run", "--scores")
    assert "[derain +0.50, lowlight +0.50, deblur -0.50, null +0.10; scores above 0]" in run.out


def test_named_plugins_and_compare(infer: Callable[..., Run]) -> None:
    run = infer("--plugin", "deblur", "photo.png", "-o", "sharp.jpg", "--steps", "2", "--compare")
    assert run.status == 0 and "deblur (named by the caller)" in run.out
    assert _size("sharp.jpg") == (80, 64) and _size("sharp-compare.jpg") == (162, 64)


def test_png_level(infer: Callable[..., Run]) -> None:
    sizes = {}
    for level in ("0", "1", "9", None):
        words = () if level is None else ("--png-level", level)
        assert infer("photo.png", "blur", "--steps", "1", "-o", f"{level}.png", "--compare", *words).status == 0
        sizes[level] = Path(f"{level}.png").stat().st_size
        np.testing.assert_array_equal(np.asarray(Image.open(f"{level}.png")), np.asarray(Image.open("0.png")))
    assert sizes["0"] > 80 * 64 * 3 > sizes["1"] > sizes["9"] and sizes[None] == sizes["1"], sizes
    assert infer("photo.png", "blur", "--png-level", "10").status == 2


def test_options_between_the_words(infer: Callable[..., Run]) -> None:
    assert infer("photo.png", "--steps", "2", "rain").status == 0


def test_nothing_selected_writes_nothing_and_explains(infer: Callable[..., Run]) -> None:
    Path("same.png").write_bytes(b"an earlier result")
    run = infer("photo.png", "paint it", "-o", "same.png", "--compare")
    assert run.status == 3 and run.err == ""
    assert Path("same.png").read_bytes() == b"an earlier result", "no byte copy that pretends to be restored"
    assert sorted(p.name for p in Path().iterdir()) == ["photo.png", "same.png"]
    assert '"remove the rain"' in run.out and '"remove the blur"' in run.out and "understood: nothing" in run.out
    facts = json.loads(infer("photo.png", "paint it", "--json").out)
    assert (facts["done"], facts["nothing_selected"], facts["failed"], facts["exit_code"]) == (0, 1, 0, 3)
    assert facts["files"][0]["status"] == "nothing selected" and facts["files"][0]["output"] is None
    assert infer("photo.png", "paint it", "--dry-run").status == 3


def test_untouched_photos_are_copied_if_asked_for(infer: Callable[..., Run]) -> None:
    run = infer("photo.png", "paint it", "-o", "same.png", "--keep-untouched", "copies")
    assert run.status == 0 and Path("same.png").read_bytes() == Path("photo.png").read_bytes()
    assert "copied as it is" in run.out
    infer("photo.png", "paint it", "-o", "same.bmp", "--keep-untouched", "copies")
    with Image.open("same.bmp") as made, Image.open("photo.png") as photo:
        assert np.array_equal(np.asarray(made), np.asarray(photo))


def test_one_bad_file_does_not_stop_the_others(infer: Callable[..., Run]) -> None:
    Path("in").mkdir()
    Image.open("photo.png").save("in/1.png")
    Path("in/2.png").write_text("not a picture")
    Path("in/3.jpg").write_bytes(b"")
    Path("in/4.png").write_bytes(Path("photo.png").read_bytes()[:300])
    Image.open("photo.png").save("in/5.webp")
    Path("in/readme.txt").write_text("left alone")
    run = infer("in", "gone.png", "rain", "--steps", "1", "-o", "out")
    assert run.status == 1 and "2 of 6 done, 4 failed" in run.out
    errors = run.err.splitlines()
    assert len(errors) == 4 and all(line.startswith("dp-infer: ") for line in errors)
    for name in ("2.png", "3.jpg", "4.png", "gone.png"):
        assert any(name in line for line in errors), name
    assert sorted(p.name for p in Path("out").iterdir()) == ["1.png", "5.webp"]


def test_json_is_one_object(infer: Callable[..., Run]) -> None:
    run = infer("photo.png", "gone.png", "blur", "--json", "--steps", "2", "-o", "out")
    facts: dict[str, Any] = json.loads(run.out)
    assert run.status == 1 and (facts["done"], facts["failed"], facts["engine"]) == (1, 1, "fake")
    good, bad = facts["files"]
    assert good["output"] == "out/photo.png" and good["selection"]["scores"]["deblur"] == 0.5
    assert good["plan"]["chain"][0]["steps"] == 2 and good["timings"]["unet"] >= 0 and good["seconds"] > 0
    assert "no such file" in bad["error"]


def test_dry_run_writes_nothing(infer: Callable[..., Run], model: FakeModel) -> None:
    run = infer("photo.png", "blur", "--dry-run", "-o", "out/", "--size", "200x100")
    assert run.status == 0 and "working 200x100" in run.out and "40 UNet runs" in run.out
    assert sorted(p.name for p in Path().iterdir()) == ["photo.png"] and "unet" not in model.loads
    facts = json.loads(infer("photo.png", "blur", "--dry-run", "--json").out)
    assert facts["files"][0]["plan"]["unet_runs"] == 20 and facts["files"][0]["strength"] == 1
    assert "strength: auto" in infer("photo.png", "blur", "--dry-run", "--strength", "auto").out
    assert "strength" not in run.out


def test_quality(infer: Callable[..., Run], model: FakeModel) -> None:
    run = infer("photo.png", "blur", "--quality", "balanced", "--json")
    facts = json.loads(run.out)
    plan = facts["files"][0]["plan"]
    assert run.status == 0 and facts["quality"] == plan["quality"] == "balanced"
    assert plan["unet_runs"] == plan["chain"][0]["steps"] < 20, "the card's steps are 20"
    assert model.runs("unet") == plan["full_unet_runs"] and model.runs("unet_shallow") == plan["shallow_unet_runs"] > 0
    run = infer("photo.png", "blur", "--quality", "fast", "--steps", "20", "--dry-run")
    assert "fast: at most" in run.out and "20 steps: UNet whole at" in run.out
    assert "at most" not in infer("photo.png", "blur", "--dry-run").out


def test_size_tile_and_output_size(infer: Callable[..., Run]) -> None:
    run = infer("photo.png", "blur", "--size", "160x128", "--tile", "128", "--output-size", "working", "--json")
    plan = json.loads(run.out)["files"][0]["plan"]
    assert plan["working_size"] == [160, 128] and len(plan["tiles"]) == 4 and _size("photo-restored.png") == (160, 128)


@pytest.mark.parametrize(
    ("words", "status", "part"),
    [
        (["photo.png", "?!"], 2, "the request '?!' has no words"),
        (["photo.png", "x" * 10_000], 2, "10000 characters"),
        (["rain"], 2, "no photo given"),
        ([], 2, "the words are missing"),
        (["photo.png", "--plugin", "colour"], 2, "unknown plugin 'colour'"),
        (["photo.png", "rain", "--sampler", "magic"], 2, "magic"),
        (["photo.png", "rain", "--steps", "0"], 2, "steps is 0"),
        (["photo.png", "rain", "--steps", "many"], 2, "many"),
        (["photo.png", "rain", "--size", "big"], 2, "'big' is no size"),
        (["photo.png", "rain", "--size", "3x3"], 2, "size"),
        (["photo.png", "rain", "--format", "xyz"], 2, "xyz"),
        (["photo.png", "rain", "--format", "jpg", "-o", "x.png"], 2, "differ"),
        (["-", "rain"], 2, "where the photo from stdin goes"),
        (["photo.png", "photo.png/../photo.png", "rain", "-o", "-"], 2, "takes one photo, 2 were given"),
        (["photo.png", "rain", "-o", "-", "--compare"], 2, "leave --compare out"),
        (["x" * 300 + ".png", "rain"], 1, "File name too long"),
        (["photo.png", "rain", "-o", "x" * 300 + ".png"], 1, "File name too long"),
        (["photo.png", "rain", "-o", "x" * 300 + "/"], 1, "File name too long"),
        (["~nosuch/a.png", "rain"], 1, "~nosuch/a.png: no such file"),
        (["photo.png", "rain", "-o", "~nosuch/a.png"], 2, "there is no such user"),
        (["photo.png", "rain", "--bundle", "~nosuch"], 2, "there is no such user"),
        (["photo.png", "rain", "--tile", "7"], 2, "tile 7"),
        (["photo.png", "rain", "--tile", "all"], 2, "'all' is no tile"),
        (["photo.png", "rain", "--threads", "0"], 2, "threads is 0"),
        (["photo.png", "rain", "--concurrency", "0"], 2, "'0' is no number of photos"),
        (["photo.png", "rain", "--quality", "best"], 2, "'best'"),
        (["photo.png", "rain", "--nonsense"], 2, "--nonsense"),
        (["gone.png", "rain"], 1, "gone.png: no such file"),
        (["*.tif", "rain"], 1, "no photo matches"),
        (["", "rain"], 1, "'': an empty name"),
        (["photo.png", "rain", "-o", "out.xyz"], 1, ".xyz"),
        (["photo.png", "rain", "-o", "no/such/out.png"], 1, "does not exist"),
        (["photo.png", "rain", "-o", "photo.png/"], 2, "photo.png/ is a file"),
    ],
)
def test_bad_calls_get_one_line(infer: Callable[..., Run], words: list[str], status: int, part: str) -> None:
    run = infer(*words)
    assert run.status == status, run.err
    assert part in run.err and run.err.startswith("dp-infer: ") and run.err.count("\n") == 1, run.err
    assert sorted(p.name for p in Path().iterdir()) == ["photo.png"]


@pytest.mark.parametrize("error", [BundleError("x: no bundle"), EngineUnavailable("engine y: unknown")])
def test_a_bundle_that_cannot_be_loaded(
    infer: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any, **options: Any) -> Restorer:
        raise error

    monkeypatch.setattr(session, "load", fail)
    run = infer("photo.png", "rain")
    assert run.status == 1 and run.err == f"dp-infer: {error}\n"


def test_interrupt_leaves_nothing(infer: Callable[..., Run], model: FakeModel) -> None:
    def interrupt(inputs: Any) -> Any:
        raise KeyboardInterrupt

    model.swap("unet", interrupt)
    run = infer("photo.png", "rain", "-o", "out.png")
    assert run.status == 130 and run.err == "dp-infer: interrupted\n" and not Path("out.png").exists()


def test_a_broken_picture_fails_alone(infer: Callable[..., Run], model: FakeModel) -> None:
    def broken(inputs: Any) -> Any:
        latents = inputs["latents"]
        return {"eps": np.full_like(latents, np.nan), "deep": np.zeros((1, 6, *latents.shape[2:]), np.float32)}

    model.swap("unet", broken)
    run = infer("photo.png", "rain")
    assert run.status == 1 and "NaN" in run.err and not Path("photo-restored.png").exists()


def test_version_and_help(infer: Callable[..., Run]) -> None:
    assert infer("--version").out.startswith("diffplugin ")
    out = infer("--help").out
    for option in (
        "--plugin", "--bundle", "--output", "--steps", "--seed", "--engine", "--precision", "--size", "--tile",
        "--output-size", "--compare", "--json", "--dry-run", "--sampler", "--quality",
    ):  # fmt: skip
        assert option in out


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_from_a_shell_no_traceback(tmp_path: Path) -> None:
    run = _python("-m", "diffplugin.runtime.cli", str(tmp_path / "a.png"), "rain", "--bundle", str(tmp_path))
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.startswith("dp-infer: ") and run.stderr.count("\n") == 1 and "bundle" in run.stderr


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_its_engines_are_refused_in_one_line(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if get_builder(engine).unavailable_reason() is None:
        pytest.skip("this machine has a GPU")
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    assert cli.main([str(photo), "remove the rain", "--engine", engine]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"dp-infer: engine {engine}: ") and err.count("\n") == 1
    assert "pip install" in err or "NVIDIA" in err, "the remedy"
    assert list(tmp_path.iterdir()) == [photo]


def test_the_command_imports_nothing_heavy() -> None:
    """The runtime never imports what only export needs, and no engine before one is chosen."""
    heavy = ("torch", "transformers", "diffusers", "onnx", "onnxruntime", "openvino", "tokenizers", "scipy")
    code = f"import sys, diffplugin.runtime.cli; print([n for n in {heavy!r} if n in sys.modules])"
    run = _python("-c", code)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_several_pictures_at_once(infer: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files as one after the other, told in the order of the command line, a bad one among them."""
    names = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((64, 80, 3), 40 * i + 20, np.uint8)).save(name)
    Path("2.png").write_bytes(b"no picture")
    alone = infer(*names, "blur", "-o", "one", "--concurrency", "1", "--json", "--steps", "2")
    at_once = infer(*names, "blur", "-o", "two", "--concurrency", "3", "--threads", "4", "--json", "--steps", "2")
    assert alone.status == at_once.status == 1
    facts = json.loads(at_once.out)
    assert [one["input"] for one in facts["files"]] == names and "error" in facts["files"][2]
    assert (facts["done"], facts["failed"], facts["concurrency"]) == (3, 1, 3)
    for name in ("0.png", "1.png", "3.png"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    said = infer(*names, "blur", "-o", "three", "--concurrency", "2", "--steps", "2")
    assert said.out.count(" px in ") == 3 and "3 of 4 done, 1 failed" in said.out


def test_a_bad_request_ends_all_jobs(infer: Callable[..., Run], model: FakeModel) -> None:
    def fail(inputs: Any) -> Any:
        raise BundleError("x: damaged")

    model.swap("unet", fail)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.full((64, 80, 3), 90, np.uint8)).save(name)
    run = infer("a.png", "b.png", "c.png", "blur", "--concurrency", "2", "-o", "out/")
    assert run.status == 1 and run.err == "dp-infer: x: damaged\n" and not list(Path("out").iterdir())


def test_a_mask_or_a_region_leaves_the_rest_alone(infer: Callable[..., Run]) -> None:
    photo = np.asarray(Image.open("photo.png"))
    grey = np.zeros((64, 80), np.uint8)
    grey[20:50, 30:70] = 255
    Image.fromarray(grey).save("mask.png")
    for options in (["--mask", "mask.png"], ["--region", "30,20,40,30", "--feather", "0"]):
        assert infer("photo.png", "--plugin", "lowlight", "-o", "out.png", *options).status == 0
        made = np.asarray(Image.open("out.png"))
        np.testing.assert_array_equal(made[grey == 0], photo[grey == 0])
        assert (made[grey > 0] != photo[grey > 0]).any()
    assert "what the mask touches" in infer("photo.png", "dark", "--mask", "mask.png", "--dry-run").out
    run = infer("photo.png", "dark", "--region", "1,2,3")
    assert run.status == 2 and "region '1,2,3' is not understood" in run.err
    run = infer("photo.png", "dark", "--region", "1,2,3,4", "--mask", "mask.png")
    assert run.status == 2 and "expected one of them" in run.err
    run = infer("photo.png", "dark", "--mask", "none.png")
    assert run.status == 1 and "none.png: no such file" in run.err


def test_without_a_request_the_photo_decides(infer: Callable[..., Run]) -> None:
    with Image.open("photo.png") as image:
        Image.fromarray(np.asarray(image.convert("RGB")) // 2).save("dark.png")
    run = infer("photo.png", "dark.png", "--json", "--steps", "2")
    facts = json.loads(run.out)
    clean, dark = facts["files"]
    assert (clean["status"], clean["output"]) == ("nothing selected", None) and dark["status"] == "restored"
    assert dark["selection"]["chosen"] == ["lowlight"]
    found = next(one for one in dark["selection"]["findings"] if one["needed"])
    assert (found["task"], found["threshold"], found["strength"]) == ("lowlight", 0.5, 0.6)
    assert run.status == facts["exit_code"] == 3
    said = infer("photo.png", "auto").out
    assert "photo.png: nothing found to restore" in said and "--keep-untouched copies" in said, said
    assert '"remove the rain"' not in said, "who wrote no words needs no examples of words"
    run = infer("photo.png", "-o", "same.png", "--keep-untouched", "copies")
    assert run.status == 0 and Path("same.png").read_bytes() == Path("photo.png").read_bytes()
    assert (
        "dark.png: seen: Low-light enhancement (lowlight, 88%, strong)"
        in infer("dark.png", "fix this", "--dry-run").out
    )
