"""Checkpoints in, bundles out: the only room besides training that may import PyTorch."""
