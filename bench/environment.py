"""The machine and the versions that a number belongs to. No host name, no path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import diffplugin
from diffplugin.engines.threads import usable_cores

_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_PACKAGES = ("numpy", "openvino", "onnxruntime", "ncnn", "torch", "nncf")


def environment() -> dict[str, str | int | float | list[str]]:
    """Plain values for a report; what the system does not tell is left out."""
    cpu = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpu, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", cpu, re.MULTILINE)
    there = set(flags[1].split()) if flags else set()
    found: dict[str, str | int | float | list[str]] = {
        "cpu": model[1].strip() if model else platform.machine(),
        "cpu_flags": [flag for flag in _FLAGS if flag in there],
        "cores": usable_cores(),
        "system": " ".join([platform.system(), *re.findall(r"^\d+\.\d+", platform.release())]),
        "python": platform.python_version(),
        "diffplugin": diffplugin.__version__,
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
