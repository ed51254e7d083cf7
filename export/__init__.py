"""Converts checkpoints to bundles: the only package besides training that may import PyTorch."""
