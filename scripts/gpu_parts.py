"""What has to travel to a GPU machine without network, in parts below 64 MiB.

    python scripts/gpu_parts.py pack OUT [--python 3.12,3.13] [--gpus 90] [--prepared DIR]      here
    python OUT/gpu_parts.py unpack OUT TO          there; then PYTHONPATH=TO/site, and --prepared TO/prepared

    OUT/code.tar.xz              the package without the embedded model, as an installer lays it out
    OUT/onnxruntime-3.12.tar     ONNX Runtime's GPU build for this Python, one file for each; of its CUDA library the
                                 machine code of other GPUs is zeroed
    OUT/prepared.tar.xz          bundles, goldens, photographs (diffplugin.bench.gpu_acceptance.prepare)
    OUT/gpu_parts.py             this file

``unpack`` names what that machine lacks: Python with NumPy, Pillow, tokenizers, cuda-python and PyTorch, CUDA 13 and
cuDNN 9. What runs from these parts is not byte for byte what pip installs: say so beside its numbers. Nothing of the
repository's history or of its heavy files (embedded model, its checkpoint, tests/data, pictures) is needed there.
"""

from __future__ import annotations

import argparse
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VERSION = "1.31.1"
_CODE, _PREPARED = "code.tar.xz", "prepared.tar.xz"
MOST = 64 * 2**20
ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("bench", "engines", "export", "plugins", "runtime")
_HEAVY = ("core/embedded/", "plugins/embedded_checkpoint/", "plugins/diagnosis/", "bench/results/")
_FATBIN = 0xBA55ED50  # begins a block of machine code in an ELF section of this name
_NEEDED = ("numpy", "PIL", "tokenizers", "cuda.bindings.runtime", "torch", "onnxruntime", "diffplugin")
_LEFT_OUT = re.compile(
    r"onnxruntime/(transformers|tools|quantization|backend|datasets)/|providers_tensorrt\.so|/libonnxruntime\.so|Notices"
)


def pack(out: Path, pythons: list[str], gpus: set[int], prepared: Path | None) -> None:
    """Write the parts; those of ONNX Runtime and the prepared one that are there already stay.

    Args:
        prepared: a folder that is prepared already; None: it is prepared now.
    """
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).resolve(), out / "gpu_parts.py")
    _pack_code(out / _CODE)
    for python in pythons:
        if not (part := out / _part(python)).is_file():
            _pack_onnxruntime(part, python, gpus)
    if not (out / _PREPARED).is_file():
        with tempfile.TemporaryDirectory(dir=out) as temporary:
            if prepared is None:
                prepared = Path(temporary, "prepared")
                command = [sys.executable, "-m", "diffplugin.bench.gpu_acceptance.prepare", str(prepared)]
                subprocess.run(command, check=True)
            _archive(prepared, "prepared", out / _PREPARED)
    for part in sorted(out.iterdir()):
        size = part.stat().st_size
        print(f"{part}: {size / 2**20:.1f} MiB{'' if size < MOST else ', TOO LARGE for one transfer of 64 MiB'}")


def _archive(folder: Path, name: str, file: Path) -> None:
    """The folder as an archive that is there whole or not at all; compressed if its name says so."""
    unfinished = file.with_name(f".{file.name}")
    with tarfile.open(unfinished, "w:xz" if file.suffix == ".xz" else "w") as archive:
        archive.add(folder, name)
    unfinished.rename(file)


def _part(python: str) -> str:
    return f"onnxruntime-{python}.tar"


def _pack_code(file: Path) -> None:
    """The tracked modules and their small data, under the names that they are imported by."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tarfile.open(file, "w:xz") as archive:
        for name in sorted(listed.split("\0")):
            room, _, rest = name.partition("/")
            if room not in (*ROOMS, "core") or name.startswith(_HEAVY):
                continue
            place = f"diffplugin/{rest}" if room == "core" else f"diffplugin/{name}"
            archive.add(ROOT / name, place, recursive=False)


def _pack_onnxruntime(file: Path, python: str, gpus: set[int]) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        folder = Path(temporary)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (28, 27)]
        target = [f"--python-version={python}", "--implementation=cp", *platforms]
        subprocess.run([*download, *target, "--dest", temporary, f"onnxruntime-gpu=={VERSION}"], check=True)
        (wheel,) = folder.glob("*.whl")
        site = folder / "site"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site, [name for name in archive.namelist() if not _LEFT_OUT.search(name)])
        library = site / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
        data, kept, zeroed = keep_only(library.read_bytes(), gpus)
        library.write_bytes(data)
        print(f"machine code kept {kept / 2**20:.1f} MiB, zeroed {zeroed / 2**20:.1f} MiB")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_compress, sorted(map(str, site.rglob("*.so*")))))
        _archive(site, ".", file)


def _compress(name: str) -> None:
    path = Path(name)
    with path.open("rb") as source, lzma.open(f"{name}.xz", "wb", preset=6) as target:
        shutil.copyfileobj(source, target, 2**22)
    path.unlink()


def _sections(data: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, place, bytes) of an ELF file's sections."""
    start = struct.unpack_from("<Q", data, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    rows = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * size) for i in range(count)]
    for row in rows:
        at = rows[names][4] + row[0]
        yield data[at : data.index(b"\0", at)].decode(), row[4], row[5]


def _images(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(compute capability, place, bytes) of every image of machine code."""
    for name, start, size in _sections(data):
        if name != ".nv_fatbin":
            continue
        at, end = start, start + size
        while at < end - 16:
            magic, _, head, length = struct.unpack_from("<IHHQ", data, at)
            if magic != _FATBIN:
                at += 8
                continue
            entry, at = at + head, at + head + length
            while entry < at:
                skip, payload = struct.unpack_from("<IQ", data, entry + 4)
                yield struct.unpack_from("<I", data, entry + 28)[0], entry + skip, payload
                entry += skip + payload


def keep_only(data: bytes, gpus: set[int]) -> tuple[bytes, int, int]:
    """(copy with the machine code of other GPUs zeroed, bytes kept, bytes zeroed); the layout stays."""
    made, kept, zeroed = bytearray(data), 0, 0
    for gpu, at, size in _images(data):
        if gpu in gpus:
            kept += size
        else:
            made[at : at + size] = bytes(size)
            zeroed += size
    return bytes(made), kept, zeroed


def unpack(parts: Path, to: Path) -> None:
    """What there is of the parts: code and ONNX Runtime in ``to/site``, the prepared folder in ``to/prepared``.

    Raises:
        SystemExit: there are no parts, or those of ONNX Runtime are for another Python.
    """
    here = "{}.{}".format(*sys.version_info)
    others = sorted(file.name for file in parts.glob(_part("*")))
    if others and _part(here) not in others:
        remedy = f"pack --python {here}, or use another Python"
        raise SystemExit(f"{parts}: has {', '.join(others)}, and this is Python {here}; {remedy}")
    places = {_part(here): to / "site", _CODE: to / "site", _PREPARED: to}
    there = {name: place for name, place in places.items() if (parts / name).is_file()}
    if not there:
        raise SystemExit(f"{parts}: has none of {', '.join(places)}; name the folder that pack wrote")
    for name, place in there.items():
        place.mkdir(parents=True, exist_ok=True)
        with tarfile.open(parts / name) as archive:
            archive.extractall(place, filter="data")
    with ThreadPoolExecutor() as pool:  # lzma leaves other threads their turn
        list(pool.map(_expand, sorted(map(str, (to / "site").rglob("*.so*.xz")))))


def lacking(site: Path) -> list[str]:
    """One line for each module of the run that cannot be imported here."""
    faults = []
    path = os.pathsep.join(filter(None, [str(site.resolve()), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    for name in _NEEDED:
        command = [sys.executable, "-c", f"import {name}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            faults.append(f"{name}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return faults


def _expand(name: str) -> None:
    with lzma.open(name) as source, Path(name.removesuffix(".xz")).open("wb") as target:
        shutil.copyfileobj(source, target, 2**22)
    Path(name).unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description="Parts for a GPU machine without network.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("pack")
    make.add_argument("out", type=Path)
    make.add_argument(
        "--python", default="3.12", metavar="X.Y,…", help="that machine's, or all that it may have (default: 3.12)"
    )
    make.add_argument("--gpus", default="90", metavar="N,…", help="compute capabilities without dot (default: 90)")
    make.add_argument("--prepared", type=Path, metavar="DIR", help="a folder of bench.gpu_acceptance.prepare to take")
    take = commands.add_parser("unpack")
    take.add_argument("parts", type=Path)
    take.add_argument("to", type=Path)
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.out, args.python.split(","), {int(gpu) for gpu in args.gpus.split(",")}, args.prepared)
    else:
        unpack(args.parts, args.to)
        faults = lacking(args.to / "site")
        print("\n".join(f"lacking: {fault}" for fault in faults) or f"{args.to}: every module can be imported")


if __name__ == "__main__":
    main()
