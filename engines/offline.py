"""Turns off the telemetry of the libraries below the engines, before they load.

OpenVINO contacts www.google-analytics.com and writes ``~/intel``, NNCF does the same, and ONNX Runtime writes
``~/.cache/Microsoft`` and looks up a host of Microsoft's. ``DIFFPLUGIN_TELEMETRY=1`` leaves all of it on.
"""

from __future__ import annotations

import os
import sys

ALLOW = "DIFFPLUGIN_TELEMETRY"
_OPENVINO = "openvino_telemetry"  # OpenVINO and NNCF go without it where it is not installed


def turn_off_telemetry() -> None:
    """Turn telemetry off for this process and those that it starts. The user's own setting for ONNX Runtime is kept.

    Has no effect on a library that was imported before.
    """
    if os.environ.get(ALLOW, "0") not in ("", "0"):
        return
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault(_OPENVINO, None)  # type: ignore[arg-type]  # an import then fails as if it were not there
