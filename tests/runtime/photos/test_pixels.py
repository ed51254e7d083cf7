"""Working sizes, tensors and CLIP's view, against rules, against transformers and against the oracle's goldens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import ImageError, NotFinite, RequestError, ShapeMismatch
from diffplugin.runtime.photos.pixels import (
    clip_pixels,
    from_tensor,
    reflected,
    resize,
    side_by_side,
    to_tensor,
    with_rgb,
    working_photo,
    working_size,
)
from diffplugin.runtime.photos.read import Photo, photo_from, read_photo

GOLDENS = [
    ("landscape.png", "deblur_landscape_20", "deblur"),
    ("portrait.png", "lowlight_portrait_6", "lowlight"),
    ("small.png", "derain_small_4", "derain"),
]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack((128 + 90 * np.sin(x / 9), 128 + 90 * np.cos(y / 7), 255 * x / width), -1).astype(np.uint8)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


# ---- working size


@pytest.mark.parametrize(
    ("size", "before", "after"),
    [
        ("native", (123, 91), (123, 91)),
        ("released", (600, 512), (600, 512)),
        ("released", (512, 640), (512, 640)),
        ("released", (123, 91), (688, 512)),
        ("released", (91, 123), (512, 688)),
        ("released", (4001, 3007), (4000, 3000)),
        ("released", (519, 513), (512, 512)),
        ("released", (49, 98), (512, 1016)),
        ("released", (98, 49), (1016, 512)),
        ("released", (49, 49), (504, 512)),
        (512, (512, 640), (512, 640)),
        (512, (4000, 3000), (680, 512)),
        (512, (530, 701), (512, 672)),
        (512, (701, 530), (672, 512)),
        (256, (123, 91), (344, 256)),
        (500, (1000, 1000), (496, 496)),
        ((640, 480), (123, 91), (640, 480)),
        ((333, 101), (123, 91), (333, 101)),
    ],
)
def test_working_size(size: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    assert working_size(*before, size) == after
    if max(before) < 1000:
        assert working_photo(smooth(before[1], before[0]), size).shape == (after[1], after[0], 3)


def released_rule(picture: Image.Image, short: int, enlarge_only: bool) -> tuple[tuple[int, int], np.ndarray]:
    """The released scripts' preparation, as written there: (size after the first step, pixels that are encoded)."""
    width, height = picture.size
    if not enlarge_only or width < short or height < short:
        if width < height:
            width, height = short, int((short / width) * height)
        else:
            width, height = int((short / height) * width), short
        picture = picture.resize((width, height))
    first = picture.size
    floored = (width - width % 8, height - height % 8)  # diffusers' VaeImageProcessor, with its Lanczos
    return first, np.asarray(picture.resize(floored, resample=Image.Resampling.LANCZOS))


def test_530x701_goes_by_512x677_to_512x672() -> None:
    rgb = smooth(701, 530)
    first, expected = released_rule(Image.fromarray(rgb), 512, False)
    assert first == (512, 677) and expected.shape == (672, 512, 3)
    np.testing.assert_array_equal(working_photo(rgb, 512), expected)


@pytest.mark.parametrize("seed", range(6))
def test_released_rules_at_many_sizes_pixel_by_pixel(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = [tuple(random.integers(8, 160, 2).tolist()) for _ in range(12)]
    for (width, height), short in zip(sizes, (64, 100, 77, 8, 33, 96, 120, 51, 88, 64, 64, 47), strict=True):
        rgb = noise(height, width, seed)
        if short > 60 and max(width, height) > 12 * min(width, height):
            continue
        _, expected = released_rule(Image.fromarray(rgb), short, False)
        got = working_photo(rgb, short)
        assert got.shape == expected.shape, f"{width}x{height} at {short}: {got.shape}, the demo makes {expected.shape}"
        np.testing.assert_array_equal(got, expected, err_msg=f"{width}x{height} at {short}")


def test_sizes_of_every_small_picture_are_the_released_ones() -> None:
    """int((512 / s) * l) in floating point is one less than the exact quotient for 264 of these sizes."""
    differ = 0
    for short in range(8, 512):
        for long in range(short, 2049):
            exact = long * 512 // short
            written = int((512 / short) * long)
            if exact // 8 == written // 8:
                continue
            differ += 1
            wide = (written // 8 * 8, 512)
            assert working_size(long, short, "released") == wide, (long, short)
            assert working_size(long, short, 512) == wide, (long, short)
            assert working_size(short, long, "released") == (wide if short == long else wide[::-1]), (short, long)
    assert differ == 264


@pytest.mark.parametrize("size", [(49, 98), (98, 49), (49, 49), (63, 97)])
def test_released_size_pixel_by_pixel(size: tuple[int, int]) -> None:
    rgb = noise(size[1], size[0])
    _, expected = released_rule(Image.fromarray(rgb), 512, True)
    np.testing.assert_array_equal(working_photo(rgb, "released"), expected)


@pytest.mark.parametrize("size", ["big", 7, 0, -512, True, (7, 512), (512,), (512, 512, 3), (512.0, 512.0), None])
def test_unknown_sizes_are_refused(size: Any) -> None:
    with pytest.raises(RequestError, match="expected native, released, N or WxH"):
        working_size(600, 512, size)


def test_a_long_strip_is_not_enlarged_beyond_the_limit() -> None:
    with pytest.raises(ImageError, match="8x20000 pixels become 512x1280000 at size released"):
        working_size(8, 20_000, "released")
    assert working_size(8, 20_000, "native") == (8, 20_000)


def test_size_that_fits_returns_the_same_pixels() -> None:
    rgb = noise(512, 640)
    for size in ("native", "released", 512, (640, 512)):
        assert working_photo(rgb, size) is rgb
        np.testing.assert_array_equal(working_photo(photo_from(rgb), size), rgb)


def test_filters_of_the_released_rule() -> None:
    rgb = smooth(91, 123)
    step = Image.fromarray(rgb).resize((692, 512), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        working_photo(rgb, "released"), np.asarray(step.resize((688, 512), Image.Resampling.LANCZOS))
    )


def test_resize_there_and_back() -> None:
    rgb = smooth(91, 123)
    back = resize(resize(rgb, (600, 512)), (123, 91))
    assert back.shape == rgb.shape and np.abs(back.astype(int) - rgb).mean() < 1
    assert resize(rgb, (123, 91)) is rgb
    assert resize(rgb[..., 0], (20, 30)).shape == (30, 20)


def test_alpha_follows_the_pixels() -> None:
    photo = Photo(rgb=smooth(40, 60), alpha=np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1)), icc=b"profile")
    same = with_rgb(photo, 255 - photo.rgb)
    np.testing.assert_array_equal(same.alpha, photo.alpha)
    larger = with_rgb(photo, smooth(80, 120))
    assert larger.alpha is not None and larger.alpha.shape == (80, 120) and larger.icc == b"profile"
    assert photo.alpha is not None
    assert np.abs(larger.alpha[40, ::2].astype(int) - photo.alpha[20]).max() <= 4
    assert with_rgb(Photo(rgb=photo.rgb), smooth(80, 120)).alpha is None


# ---- tensors


def test_tensors_go_there_and_back_exactly() -> None:
    rgb = np.arange(256 * 3, dtype=np.uint32).reshape(16, 16, 3).astype(np.uint8)
    tensor = to_tensor(rgb)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == np.float32 and tensor.flags.c_contiguous
    assert tensor.min() == -1 and tensor.max() == 1
    np.testing.assert_array_equal(tensor[0, :, 2, 5], 2 * (rgb[2, 5].astype(np.float32) / np.float32(255)) - 1)
    back = from_tensor(tensor)
    np.testing.assert_array_equal(back, rgb)
    assert back.flags.c_contiguous
    to_tensor(rgb)[...] = 0
    np.testing.assert_array_equal(to_tensor(rgb), tensor)


def test_from_tensor_clamps_and_rounds_half_to_even() -> None:
    levels = np.array([-9, -1, (0.5 / 255 - 0.5) * 2, (1.5 / 255 - 0.5) * 2, 0.999, 1, 9], np.float32)
    got = from_tensor(np.broadcast_to(levels, (1, 3, 1, 7)))[0, :, 0].tolist()
    assert got[:2] == [0, 0] and got[2] in (0, 1) and got[3] in (1, 2) and got[4:] == [255, 255, 255]
    assert from_tensor(np.zeros((1, 3, 1, 1), np.float32))[0, 0, 0] == 128  # 127.5, to even


def test_from_tensor_refuses_what_is_no_picture() -> None:
    with pytest.raises(NotFinite, match="2 values of 12 that are NaN or infinite"):
        from_tensor(np.array([np.nan, np.inf] + [0] * 10, np.float32).reshape(1, 3, 2, 2))
    with pytest.raises(ShapeMismatch, match="image is 3x2x2, expected 1x3xHxW"):
        from_tensor(np.zeros((3, 2, 2), np.float32))
    with pytest.raises(ShapeMismatch, match="picture is float32 2x2x3, expected uint8 HxWx3"):
        to_tensor(np.zeros((2, 2, 3), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 8), (9, 40), (91, 123), (8, 1), (2, 3)])
def test_a_window_beyond_the_picture_shows_its_reflection(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    height, width = shape
    made = reflected(pixels, -16, -3, height + 21, width + 3)
    assert made.shape == (height + 21, width + 3, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(made[16 : 16 + height, 3:], pixels)
    there = np.abs(np.arange(-16, height + 5)) % max(2 * (height - 1), 1)  # a triangle wave
    np.testing.assert_array_equal(made[:, 3:], pixels[np.minimum(there, 2 * (height - 1) - there)])
    part = reflected(pixels, 1, 0, 1, width)
    assert np.shares_memory(part, pixels) and np.array_equal(part, pixels[1:2])


# ---- CLIP


@pytest.mark.parametrize("shape", [(224, 224), (512, 600), (640, 512), (91, 123), (225, 226), (8, 300), (1000, 333)])
def test_clip_pixels_are_transformers(shape: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    name = "CLIPImageProcessorPil"
    from transformers.models import clip

    if not hasattr(clip, name):
        pytest.skip(f"this transformers ({transformers.__version__}) has no {name}")
    rgb = noise(*shape)
    expected = getattr(clip, name)()(Image.fromarray(rgb), return_tensors="np")["pixel_values"]
    got = clip_pixels(rgb)
    assert got.shape == (1, 3, 224, 224) and got.dtype == np.float32 and got.flags.c_contiguous
    off = np.abs(got - expected).max()
    assert off < 2e-6, f"{shape}: off by {off:.1e}"


def test_clip_pixels_centre_crop_and_normalisation() -> None:
    rgb = np.zeros((100, 300, 3), np.uint8)
    rgb[:, 100:200] = 255
    got = clip_pixels(rgb, 100, mean=(0.5, 0.25, 0), std=(0.5, 0.25, 2))
    np.testing.assert_allclose(got[0, :, 50, 50], [1, 3, 0.5], rtol=1e-6)
    assert got.shape == (1, 3, 100, 100) and got.min() > 0, "the crop is not the centre"


# ---- before and after


def test_side_by_side() -> None:
    before, after = noise(40, 60), noise(80, 120, 1)
    both = side_by_side(before, after)
    assert both.shape == (80, 242, 3)
    np.testing.assert_array_equal(both[:, :120], resize(before, (120, 80)))
    np.testing.assert_array_equal(both[:, 120:122], 255)
    np.testing.assert_array_equal(both[:, 122:], after)
    assert side_by_side(noise(10, 2000), noise(10, 2000)).shape == (10, 4010, 3)


# ---- the oracle


def load_networks(checkpoint: Path, plugin: str) -> tuple[Any, Any, Any]:
    torch = pytest.importorskip("torch", reason="the goldens need the reference networks: torch is not installed")
    load_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").load_file
    from diffplugin.plugins.networks.clip import VisionEncoder
    from diffplugin.plugins.networks.taskplugin import TaskPromptBranch
    from diffplugin.plugins.networks.vae import Autoencoder

    def tensors(path: Path) -> dict[str, Any]:
        return {name: value for name, value in load_file(path).items() if not name.endswith("position_ids")}

    folder = checkpoint / "stable-diffusion" / "vae"
    vae = Autoencoder(json.loads((folder / "config.json").read_text()))
    vae.load_state_dict(tensors(folder / "diffusion_pytorch_model.safetensors"))
    config = json.loads((checkpoint / "clip" / "config.json").read_text())
    vision = VisionEncoder(config.get("vision_config", config))
    vision.load_state_dict(tensors(checkpoint / "clip" / "model.safetensors"))
    stored = torch.load(checkpoint / "pre-trained" / plugin / "tpb.pt", weights_only=True)["model"]
    state = {name.removeprefix("module."): value for name, value in stored.items()}
    last = state["visual_projection.6.weight"]
    branch = TaskPromptBranch(last.shape[1], last.shape[0])
    branch.load_state_dict(state)
    return vae, vision, branch


@pytest.mark.parametrize(("picture", "golden", "plugin"), GOLDENS, ids=[golden for _, golden, _ in GOLDENS])
def test_borders_reproduce_the_release(oracle: Path, picture: str, golden: str, plugin: str) -> None:
    vae, vision, branch = load_networks(oracle / "checkpoint", plugin)
    import torch

    photo = read_photo(oracle / "golden" / picture)
    expected = np.load(oracle / "golden" / f"{golden}.npz")
    with torch.no_grad():
        cond = vae.encode(torch.from_numpy(to_tensor(working_photo(photo, "released")))).numpy()
        tokens = branch(vision(torch.from_numpy(clip_pixels(photo.rgb)))).numpy()
    assert cond.shape == expected["cond"].shape
    assert "cond" in expected
    for name, got in (("cond", cond), ("tokens", tokens)):
        if name not in expected:  # the copy in the repository holds the tokens once
            continue
        error = relative_error(got, expected[name])
        assert error < 1e-5, f"{golden}: {name} is off by {error:.1e}"


def test_wrong_borders_would_show(oracle: Path) -> None:
    """The tolerance above tells the released filters and roundings from their neighbours."""
    vae, _, _ = load_networks(oracle / "checkpoint", "derain")
    import torch

    rgb = read_photo(oracle / "golden" / "small.png").rgb
    expected = np.load(oracle / "golden" / "derain_small_4.npz")["cond"]
    cubic, lanczos = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
    for middle, first, second in (
        ((692, 512), lanczos, lanczos),
        ((692, 512), cubic, cubic),
        ((693, 512), cubic, lanczos),
    ):
        other = resize(resize(rgb, middle, first), (688, 512), second)
        with torch.no_grad():
            error = relative_error(vae.encode(torch.from_numpy(to_tensor(other))).numpy(), expected)
        assert error > 1e-4, (middle, first, second, error)


@pytest.mark.parametrize("demo", ["demo_2.png", "demo_3.png", "demo_4.png"])
def test_untouched_demo_pictures_are_the_working_photo(oracle: Path, demo: str) -> None:
    selected = json.loads((oracle / "golden" / demo).with_suffix(".json").read_text())
    photo, result = (read_photo(oracle / "golden" / name) for name in ("portrait.png", demo))
    for size in (512, "released"):
        np.testing.assert_array_equal(working_photo(photo, size), result.rgb, err_msg=f"{demo} {selected}")
