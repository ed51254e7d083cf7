"""Operators of our own in C++ and CUDA, and their portable ONNX form."""
