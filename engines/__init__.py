"""Engines behind one protocol (``engines.base``). Libraries are imported when an engine is used, not before."""
