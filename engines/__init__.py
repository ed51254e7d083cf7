"""Engines behind one base class (``engines.base``). Libraries are imported only when an engine is used."""

from diffplugin.engines.offline import turn_off_telemetry

turn_off_telemetry()
