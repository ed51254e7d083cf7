"""Writing: the picture, its alpha and its metadata arrive whole, or nothing changes."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from diffplugin.errors import ImageError
from diffplugin.runtime.photos.read import Photo, photo_from, read_photo
from diffplugin.runtime.photos.write import check_writable, output_suffixes, write_photo

LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
ALPHA = (".png", ".tif", ".tiff", ".webp", ".avif")


@pytest.fixture
def photo() -> Photo:
    y, x = np.mgrid[:32, :48]
    rgb = np.stack((x * 5, y * 7, (x + y) * 3), axis=-1).astype(np.uint8)
    return Photo(rgb=rgb, alpha=np.where((x // 12 + y // 8) % 2, 255, 0).astype(np.uint8))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_usual_formats_are_there() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"} <= set(output_suffixes())


@pytest.mark.parametrize("deep", [False, True])
def test_a_png_is_as_small_as_is_asked_for(tmp_path: Path, photo: Photo, deep: bool) -> None:
    photo = Photo(rgb=photo.rgb, deep=photo.rgb.astype(np.uint16) * 257 if deep else None)
    paths = [write_photo(tmp_path / f"{level}.png", photo, png_level=level) for level in (0, 1, 9)]
    sizes = [path.stat().st_size for path in (*paths, write_photo(tmp_path / "default.png", photo))]
    assert sizes[0] > photo.rgb.nbytes * (1 + deep) and sizes[2] < sizes[1] == sizes[3], sizes
    for path in paths:
        np.testing.assert_array_equal(read_photo(path).rgb, photo.rgb)


@pytest.mark.parametrize("suffix", output_suffixes())
def test_round_trip(tmp_path: Path, photo: Photo, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    assert write_photo(path, Photo(rgb=photo.rgb)) == path
    back = read_photo(path)
    if suffix in LOSSLESS:
        np.testing.assert_array_equal(back.rgb, photo.rgb)
    else:
        assert psnr(back.rgb, photo.rgb) > (25 if suffix == ".gif" else 38), (
            f"{suffix}: {psnr(back.rgb, photo.rgb):.1f} dB"
        )
    assert back.alpha is None and names(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [s for s in output_suffixes() if s in ALPHA])
def test_alpha_is_kept_where_the_format_can(tmp_path: Path, photo: Photo, suffix: str) -> None:
    write_photo(tmp_path / f"out{suffix}", photo)
    back = read_photo(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(back.alpha, photo.alpha)
    opaque = photo.alpha == 255
    assert psnr(back.rgb[opaque], photo.rgb[opaque]) > 35


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_other_formats_get_the_picture_over_white(tmp_path: Path, photo: Photo, suffix: str) -> None:
    write_photo(tmp_path / f"out{suffix}", photo)
    back = read_photo(tmp_path / f"out{suffix}")
    assert photo.alpha is not None
    expected = np.where(photo.alpha[..., None] == 255, photo.rgb, 255)
    assert back.alpha is None and psnr(back.rgb, expected) > 30


def test_upper_case_suffix_and_plain_array(tmp_path: Path, photo: Photo) -> None:
    write_photo(tmp_path / "OUT.PNG", photo.rgb)
    np.testing.assert_array_equal(read_photo(tmp_path / "OUT.PNG").rgb, photo.rgb)


@pytest.mark.parametrize("suffix", [s for s in output_suffixes() if s not in (".bmp", ".gif")])
def test_profile_and_exif_follow(tmp_path: Path, photo: Photo, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x013B] = "someone"
    exif[0x8769] = {0x9003: "2024:01:01 10:00:00"}
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_photo(tmp_path / f"out{suffix}", Photo(rgb=photo.rgb, icc=icc, exif=exif.tobytes()))
    back = read_photo(tmp_path / f"out{suffix}")
    assert back.icc == icc
    kept = Image.Exif()
    kept.load(back.exif or b"")
    assert kept.get(0x013B) == "someone" and kept.get_ifd(0x8769).get(0x9003) == "2024:01:01 10:00:00"


def test_exif_too_long_for_jpeg_is_left_out(tmp_path: Path, photo: Photo) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    write_photo(tmp_path / "out.jpg", Photo(rgb=photo.rgb, exif=exif.tobytes()))
    assert read_photo(tmp_path / "out.jpg").exif is None
    exif[0x010E] = "x" * 65_000
    write_photo(tmp_path / "out.jpg", Photo(rgb=photo.rgb, exif=exif.tobytes()))
    assert read_photo(tmp_path / "out.jpg").exif is not None


def test_noise_is_written_too(tmp_path: Path) -> None:
    """Worst case of the encoders' buffers."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    for suffix in output_suffixes():
        write_photo(tmp_path / f"noise{suffix}", noise)
        assert read_photo(tmp_path / f"noise{suffix}").size == (600, 400)


# ---- what is refused, before and during


def both_refuse(path: Path | str, photo: Photo, pattern: str) -> None:
    for attempt in (lambda: check_writable(path), lambda: write_photo(path, photo)):
        with pytest.raises(ImageError, match=pattern) as caught:
            attempt()
        assert str(caught.value).isprintable(), caught.value


def test_impossible_outputs_are_found_before_the_work(tmp_path: Path, photo: Photo) -> None:
    both_refuse(tmp_path / "out.xyz", photo, r"suffix '\.xyz' is no picture format written here, expected one of \.png")
    both_refuse(tmp_path / "out", photo, "has no suffix, expected one of")
    both_refuse(tmp_path / "out.jp2", photo, "suffix '.jp2'")
    both_refuse(tmp_path / "no" / "out.png", photo, "folder .*no does not exist; create it first")
    (tmp_path / "file").write_text("text")
    both_refuse(tmp_path / "file" / "out.png", photo, "folder .*file is not a folder")
    (tmp_path / "folder.png").mkdir()
    both_refuse(tmp_path / "folder.png", photo, "a folder, expected a file name")
    both_refuse("null\0byte.png", photo, "cannot be written")
    (tmp_path / "circle.png").symlink_to("circle.png")
    both_refuse(tmp_path / "circle.png", photo, "cannot be written")
    (tmp_path / "circle.png").unlink()
    assert names(tmp_path) == ["file", "folder.png"]


def test_writable_leaves_no_trace(tmp_path: Path, photo: Photo) -> None:
    check_writable(tmp_path / "out.png")
    assert names(tmp_path) == []
    (tmp_path / "out.png").write_bytes(b"before")
    check_writable(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == b"before"


def test_unwritable_folder(tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # the superuser writes everywhere: let the system call refuse
        real = os.open

        def refuse(path: str, *args: object, **options: object) -> int:
            if str(path).startswith(str(folder)):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match=r"out\.png: cannot be written \(Permission denied\)"):
        check_writable(folder / "out.png")


def test_write_protected_file(tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"precious")
    path.chmod(0o444)
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: str(p) != str(path.resolve()) and real(p, mode))
    both_refuse(path, photo, "exists and is write-protected")
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("bad"), KeyboardInterrupt()])
def test_interrupted_writing_changes_nothing(
    tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"before")

    def half(self: Image.Image, file: object, *args: object, **options: object) -> None:
        file.write(b"half a picture")  # type: ignore[attr-defined]
        assert len([n for n in names(tmp_path) if n.endswith(".tmp")]) == 1, (
            "not written to a temporary file in the same folder"
        )
        raise error

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ImageError) as caught:
        write_photo(path, photo)
    if isinstance(error, OSError):
        assert "cannot be written (No space left on device)" in str(caught.value)
    assert path.read_bytes() == b"before" and names(tmp_path) == ["out.png"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX mode bits")
@pytest.mark.parametrize(("own", "expected"), [(0o600, 0o600), (0o640, 0o640), (0o444, 0o644), (0o755, 0o644)])
def test_a_new_file_is_no_more_open_than_the_photo(tmp_path: Path, photo: Photo, own: int, expected: int) -> None:
    write_photo(tmp_path / "photo.png", photo)
    (tmp_path / "photo.png").chmod(own)
    write_photo(tmp_path / "new.png", read_photo(tmp_path / "photo.png"))
    assert oct(stat.S_IMODE((tmp_path / "new.png").stat().st_mode)) == oct(expected)


@pytest.mark.skipif(os.name != "posix", reason="POSIX mode bits")
def test_mode_bits_and_links(tmp_path: Path, photo: Photo) -> None:
    before = os.umask(0o027)
    try:
        write_photo(tmp_path / "new.png", photo)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.png").stat().st_mode) == 0o640
    (tmp_path / "new.png").chmod(0o600)
    (tmp_path / "link.png").symlink_to("new.png")
    write_photo(tmp_path / "link.png", 255 - photo.rgb)
    assert (tmp_path / "link.png").is_symlink()
    assert stat.S_IMODE((tmp_path / "new.png").stat().st_mode) == 0o600
    np.testing.assert_array_equal(read_photo(tmp_path / "new.png").rgb, 255 - photo.rgb)


def test_too_long_for_the_format(tmp_path: Path) -> None:
    long = np.zeros((8, 16_384, 3), np.uint8)
    with pytest.raises(ImageError, match=r"16384x8 pixels, WEBP holds at most 16383; write a \.png"):
        write_photo(tmp_path / "out.webp", long)
    write_photo(tmp_path / "out.webp", long[:, :-1])
    with pytest.raises(ImageError, match="JPEG holds at most 65500"):
        write_photo(tmp_path / "out.jpg", np.zeros((65_501, 8, 3), np.uint8))
    write_photo(tmp_path / "out.jpg", np.zeros((65_500, 8, 3), np.uint8))


def test_all_faults_of_a_photo_at_once(tmp_path: Path, photo: Photo) -> None:
    assert photo.alpha is not None
    bad = Photo(rgb=photo.rgb.astype(np.float32), alpha=photo.alpha[1:])
    with pytest.raises(
        ImageError, match="rgb is float32 32x48x3, expected uint8 HxWx3; alpha is uint8 31x48, expected"
    ):
        write_photo(tmp_path / "out.png", bad)
    assert names(tmp_path) == []


def test_writing_over_the_input(tmp_path: Path, photo: Photo) -> None:
    path = write_photo(tmp_path / "p.png", photo)
    write_photo(path, photo_from(path))
    np.testing.assert_array_equal(read_photo(path).rgb, photo.rgb)
