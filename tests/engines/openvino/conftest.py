"""Engines of the tiny graph (tests/engines/conftest.py) by OpenVINO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffplugin.engines.openvino.engine import OpenVinoEngine


def load(tiny: Any, **options: Any) -> OpenVinoEngine:
    from diffplugin.engines.openvino.builder import OpenVinoBuilder

    settings: dict[str, Any] = {"precision": "fp32", "threads": 1, "cache": None} | options
    return OpenVinoBuilder().load(tiny.bundle, "unet", **settings)
