"""Unpack ONNX Runtime's GPU build into a folder of its own, for the tests on the stand-in for CUDA.

    python scripts/onnxruntime_gpu.py [FOLDER]

It is never installed: it and the processors' build bring the same module and overwrite each other. Done once; a folder
that has it already is left alone. Default: ``.onnxruntime-gpu`` beside this folder. 244 MiB are downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "1.31.1"
_LEFT_OUT = ("onnxruntime/transformers/", "onnxruntime/tools/", "onnxruntime/quantization/")
_PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"


def unpack(folder: Path) -> Path:
    """The package in ``folder``, so that it can stand first in PYTHONPATH."""
    if (folder / _PROVIDER).is_file() and (folder / f"onnxruntime_gpu-{VERSION}.dist-info").is_dir():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*download, "--dest", temporary, f"onnxruntime-gpu=={VERSION}"], check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        made = Path(temporary) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if not n.startswith(_LEFT_OUT) and "tensorrt.so" not in n]
            archive.extractall(made, names)
        made.rename(folder)
    return folder


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / ".onnxruntime-gpu"
    print(unpack(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
