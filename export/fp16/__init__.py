"""Graphs in strongly typed float16, and the proof that they hold on a CPU."""
