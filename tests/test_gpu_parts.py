"""What travels to a GPU machine: machine code of other GPUs is zeroed in place; parts come out as they went in."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.sources import ROOT, is_repository, repository_files

MIB = 2**20


@pytest.fixture(scope="module")
def gpu_parts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_parts", ROOT / "scripts" / "gpu_parts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _image(gpu: int, payload: bytes) -> bytes:
    """One image of a block of machine code: kind 2, its own header of 64 bytes, the payload."""
    return struct.pack("<HHIQIIII", 2, 0, 64, len(payload), 0, 0, 0, gpu).ljust(64, b"\0") + payload


def _library() -> bytes:
    """An ELF file with a section of two blocks of machine code, and one that must stay as it is."""
    names = b"\0.nv_fatbin\0.text\0.shstrtab\0"
    blocks = b""
    for images in ((_image(80, b"a" * 24), _image(90, b"b" * 40)), (_image(90, b"c" * 8), _image(120, b"d" * 16))):
        block = b"".join(images)
        blocks += struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(block)) + block + b"\0" * 8  # some padding between them
    text = b"code that stays"
    body, rows = b"", [bytes(64)]
    for name, content in ((1, blocks), (12, text), (18, names)):
        body += b"\0" * (-len(body) % 8)
        rows.append(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, 64 + len(body), len(content), 0, 0, 1, 0))
        body += content
    body += b"\0" * (-len(body) % 8)
    head = bytearray(64)
    struct.pack_into("<Q", head, 0x28, 64 + len(body))
    struct.pack_into("<HHH", head, 0x3A, 64, len(rows), 3)
    return bytes(head) + body + b"".join(rows)


def test_only_the_wanted_machine_code_is_left(gpu_parts: ModuleType) -> None:
    library = _library()
    made, kept, zeroed = gpu_parts.keep_only(library, {90})
    assert (len(made), kept, zeroed) == (len(library), 48, 40)
    assert b"b" * 40 in made and b"c" * 8 in made and b"code that stays" in made
    assert b"a" * 24 not in made and b"d" * 16 not in made
    expected = library.replace(b"a" * 24, bytes(24)).replace(b"d" * 16, bytes(16))
    assert made == expected
    assert gpu_parts.keep_only(library, {80, 90, 120})[0] == library


def test_parts_come_out_as_they_went_in(gpu_parts: ModuleType, tmp_path: Path) -> None:
    if not is_repository():
        pytest.skip("the code is what git lists")
    parts, site = tmp_path / "parts", tmp_path / "site"
    parts.mkdir()
    gpu_parts._pack_code(parts / "code.tar.xz")
    packed = tmp_path / "onnxruntime"
    packed.mkdir()
    (packed / "lib.so.1").write_bytes(b"machine code" * 1000)
    gpu_parts._compress(str(packed / "lib.so.1"))
    here = "{}.{}".format(*sys.version_info)
    with tarfile.open(parts / f"onnxruntime-{here}.tar", "w") as archive:
        archive.add(packed, "onnxruntime")
    prepared = tmp_path / "some name"
    prepared.mkdir()
    (prepared / "prepared.json").write_text("{}")
    gpu_parts._archive(prepared, "prepared", parts / "prepared.tar.xz")
    gpu_parts.unpack(parts, tmp_path)
    assert (tmp_path / "prepared/prepared.json").read_text() == "{}"
    assert (site / "onnxruntime/lib.so.1").read_bytes() == b"machine code" * 1000
    assert not list(site.rglob("*.xz"))
    for name in (
        "__init__.py",
        "engines/onnxruntime_cuda/engine.py",
        "bench/gpu_acceptance/__main__.py",
        "plugins/cards/derain.toml",
    ):
        source = ROOT / ("core/" + name if "/" not in name else name)
        assert (site / "diffplugin" / name).read_bytes() == source.read_bytes()
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    modules = {
        name.removeprefix("core/") for name in listed.split() if name.partition("/")[0] in (*gpu_parts.ROOMS, "core")
    }
    assert {file.relative_to(site / "diffplugin").as_posix() for file in site.rglob("diffplugin/**/*.py")} == modules
    assert not (site / "diffplugin/embedded").exists() and (parts / "code.tar.xz").stat().st_size < MIB


def test_parts_for_another_python_are_refused(gpu_parts: ModuleType, tmp_path: Path) -> None:
    here = "{}.{}".format(*sys.version_info)
    with pytest.raises(SystemExit, match=rf"has none of onnxruntime-{here}.tar, code.tar.xz, prepared.tar.xz"):
        gpu_parts.unpack(tmp_path, tmp_path / "to")
    (tmp_path / "onnxruntime-3.9.tar").write_bytes(b"")
    with pytest.raises(SystemExit, match=rf"has onnxruntime-3.9.tar, and this is Python {here}; pack --python {here}"):
        gpu_parts.unpack(tmp_path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_what_a_machine_lacks_is_named(gpu_parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "_NEEDED", ("json", "nowhere_at_all"))
    assert gpu_parts.lacking(tmp_path) == ["nowhere_at_all: ModuleNotFoundError: No module named 'nowhere_at_all'"]


def test_the_checkout_travels_in_one_transfer(gpu_parts: ModuleType) -> None:
    """What is tracked is below 64 MiB: the embedded model's weights are there once (export.share_weights)."""
    if not is_repository():
        pytest.skip("what travels is what git lists")
    sizes = {name: (ROOT / name).stat().st_size for name in repository_files(tracked=True)}
    largest = ", ".join(f"{name} {sizes[name] / MIB:.1f}" for name in sorted(sizes, key=lambda n: -sizes[n])[:5])
    print(f"{sum(sizes.values()) / MIB:.1f} MiB; {largest}")
    assert sum(sizes.values()) < gpu_parts.MOST, largest


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_a_lean_clone_leaves_room_for_the_largest_part(tmp_path: Path) -> None:
    """ONNX Runtime's part is 58.0 MiB; the clone that it travels with has no heavy file, and the modules."""
    if not is_repository():
        pytest.skip("it clones the repository")
    script = ROOT / "scripts" / "lean_clone.sh"
    done = subprocess.run(["bash", script, "lean"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lean = tmp_path / "lean"
    files = [file for file in lean.rglob("*") if file.is_file() and ".git" not in file.relative_to(lean).parts]
    size = sum(file.stat().st_size for file in files)
    assert size < 6 * MIB, f"{size / MIB:.1f} MiB and 58.0 are more than 64"
    assert (lean / "bench/gpu_acceptance/__main__.py").is_file() and not (lean / "core/embedded").exists()
