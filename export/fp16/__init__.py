"""Graphs in strongly typed float16, and their validation on a CPU."""
