"""Loaded engines at work: one plugin over one photo, on the host or as a captured graph."""
