"""Engines behind one base class (``engines.base``). Libraries are imported when an engine is used, not before."""

from diffplugin.engines.offline import turn_off_telemetry

turn_off_telemetry()
